"""Which PyBullet task is done, and how it is seen."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from robot_qsft.sim.contract import check_choices, check_view

Task: TypeAlias = Literal["Lift", "PickPlace", "Stitch"]
Start: TypeAlias = Literal["table", "gripper"]
Renderer: TypeAlias = Literal["auto", "tiny", "egl"]

TASKS: tuple[Task, ...] = get_args(Task)
CAMERAS = ("front", "wrist")


@dataclass(frozen=True)
class PyBulletConfig:
    """A task of the PyBullet engine and how it is seen.

    Attributes:
        task: what to do with the cube.
        cameras: of "front" and "wrist"; () renders nothing.
        image_size: height and width of the images in pixels.
        max_steps: control steps before a time-out; at 10 Hz.
        start: whether an episode begins with the cube on the table or in the gripper.
        yaw_action: adds a rotation about the vertical to the actions, and random cube yaw.
        renderer: "tiny" runs on the CPU and draws the same pixels on every machine; "egl" uses
            OpenGL without a display; "auto" takes EGL where a graphics card offers it.
        low_poly: draw the arm from its collision meshes, about ten times as fast.
    """

    simulator: ClassVar[str] = "pybullet"
    control_hz: ClassVar[int] = 10
    film_camera: ClassVar[str] = "front"
    robot_type: ClassVar[str] = "panda"

    task: Task = "PickPlace"
    cameras: tuple[str, ...] = ("front",)
    image_size: int = 64
    max_steps: int = 50
    start: Start = "table"
    yaw_action: bool = False
    renderer: Renderer = "tiny"
    low_poly: bool = True

    def __post_init__(self) -> None:
        """Refuse what the engine cannot show.

        Raises:
            ValueError: naming the field.
        """
        check_choices(
            {
                "task": (self.task, TASKS),
                "start": (self.start, get_args(Start)),
                "renderer": (self.renderer, get_args(Renderer)),
            }
        )
        if self.task == "Lift" and self.start == "gripper":
            raise ValueError("Lift begins with the cube on the table; leave start at 'table'")
        check_view(
            self.cameras, known=CAMERAS, image_size=self.image_size, max_steps=self.max_steps
        )
