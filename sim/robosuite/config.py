"""Which robosuite task is done, by which arm, and how it is seen."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from robot_qsft.sim.contract import check_choices, check_view

Task: TypeAlias = Literal["Lift", "Can", "Square", "Stack", "Door"]
Robot: TypeAlias = Literal["Panda", "Sawyer", "UR5e"]
Controller: TypeAlias = Literal["osc_pose", "joint_position"]
Reward: TypeAlias = Literal["sparse", "shaped"]
Start: TypeAlias = Literal["table", "gripper"]
Rendering: TypeAlias = Literal["fast", "exact"]

TASKS: tuple[Task, ...] = get_args(Task)
CARRIED: tuple[Task, ...] = ("Can", "Stack")
"""Tasks in which an object is picked up and put down elsewhere."""
CAMERAS = {
    "agentview": "agentview",
    "wrist": "robot0_eye_in_hand",
    "front": "frontview",
    "side": "sideview",
    "bird": "birdview",
}
"""Our names of the cameras, and robosuite's."""


@dataclass(frozen=True)
class RobosuiteConfig:
    """A task of robosuite, the arm that does it, and how it is seen.

    Attributes:
        task: what to do; "Can" is robosuite's PickPlaceCan, "Square" its NutAssemblySquare.
        cameras: of "agentview", "wrist", "front", "side" and "bird"; () renders nothing.
        image_size: height and width of the images in pixels.
        max_steps: control steps before a time-out; at 20 Hz.
        robot: which arm, with its usual gripper.
        controller: "osc_pose" takes displacements of the hand (up to 5 cm and 0.5 rad a step) and
            closes the gripper above 0; "joint_position" takes displacements of the joints.
        start: whether an episode begins with the object on the table or in the gripper, lifted by
            a demonstrator (Can and Stack, by a Panda and osc_pose).
        reward: "sparse" pays 1 at the first success, which ends the episode; "shaped" pays
            robosuite's dense reward at every step.
        rendering: "exact" draws the pixels that robosuite draws; "fast" leaves out the floor's
            faint mirror image, and detail finer than half a pixel.
        demos: a robomimic or robosuite HDF5 file whose environment is built instead: task, robot,
            controllers and rate are then those that the file tells; "" for none.
        log: whether robosuite's own warnings are printed.
    """

    simulator: ClassVar[str] = "robosuite"
    control_hz: ClassVar[int] = 20
    film_camera: ClassVar[str] = "agentview"

    task: Task = "Lift"
    cameras: tuple[str, ...] = ("agentview",)
    image_size: int = 84
    max_steps: int = 200
    robot: Robot = "Panda"
    controller: Controller = "osc_pose"
    start: Start = "table"
    reward: Reward = "sparse"
    rendering: Rendering = "fast"
    demos: str = ""
    log: bool = False

    def __post_init__(self) -> None:
        """Refuse what robosuite cannot show.

        Raises:
            ValueError: naming the field.
        """
        check_choices(
            {
                "task": (self.task, TASKS),
                "robot": (self.robot, get_args(Robot)),
                "controller": (self.controller, get_args(Controller)),
                "start": (self.start, get_args(Start)),
                "reward": (self.reward, get_args(Reward)),
                "rendering": (self.rendering, get_args(Rendering)),
            }
        )
        by_demonstrator = (self.robot, self.controller, self.demos) == ("Panda", "osc_pose", "")
        if self.start == "gripper" and not (self.task in CARRIED and by_demonstrator):
            raise ValueError(
                f"only in {' and '.join(CARRIED)} can an episode begin with the object in the "
                "gripper, by a Panda and osc_pose; leave start at 'table'"
            )
        check_view(
            self.cameras, known=CAMERAS, image_size=self.image_size, max_steps=self.max_steps
        )

    @property
    def robot_type(self) -> str:
        """The arm, as data sets call it."""
        return self.robot.lower()
