"""Episodes of a policy on an arm, as an operator runs them."""

from pathlib import Path

from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.hardware.cameras import Cameras
from robot_qsft.hardware.config import RuntimeConfig
from robot_qsft.hardware.controller import Request
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.policy_io import PolicyIO
from robot_qsft.hardware.recorder import Ending, Recorder
from robot_qsft.hardware.runtime import Runtime


class Deployment:
    """A runtime, and the data set that its episodes go to."""

    def __init__(
        self, runtime: Runtime, config: RuntimeConfig, *, recorder: Recorder | None, by: str
    ):
        """Nothing has begun.

        Args:
            runtime: watching.
            config: that it was made with.
            recorder: of episodes; None keeps nothing.
            by: who operates, kept with what is said of outcomes.
        """
        self._runtime = runtime
        self._config = config
        self._recorder = recorder
        self._by = by
        self.said = ""
        """What happened last, for the operator."""
        self.going_on = False
        """Whether an episode is."""

    def begin(self) -> None:
        """A new episode: the policy is asked from now on, and nothing moves yet."""
        try:
            self._runtime.begin()
        except ValueError as error:
            self.said = str(error)
            return
        self.going_on = True
        self.said = "the policy is being asked; arm, then run"

    def arm(self) -> None:
        """Allow motion."""
        self._runtime.request(Request.ARM)

    def run(self) -> None:
        """Let the policy move the arm, now or again."""
        self._runtime.request(Request.RUN)

    def stop(self) -> None:
        """Come to rest along the path."""
        self._runtime.request(Request.STOP)

    def disarm(self) -> None:
        """Forbid motion."""
        self._runtime.request(Request.DISARM)

    def reset(self) -> None:
        """Leave a fault, once its cause is gone."""
        self._runtime.request(Request.RESET)

    def end(self, ending: Ending) -> None:
        """The episode is over; keep it with what the operator says of its outcome."""
        if not self.going_on:
            self.said = "no episode is going on"
            return
        log = self._runtime.end()
        self.going_on = False
        if self._recorder is None or not log.steps:
            self.said = (
                f"ended ({ending}); {'nothing was executed' if not log.steps else 'not kept'}"
            )
            return
        try:
            index = self._recorder.write(
                log.steps,
                log.periods,
                instruction=self._config.instruction,
                ending=ending,
                by=self._by,
            )
        except (ValueError, OSError) as error:
            self.said = f"the episode could not be kept: {error}"
            return
        self.said = f"episode {index} is kept: {ending}, {len(log.steps)} steps"


def recorder_of(
    path: Path, description: RobotDescription, io: PolicyIO, cameras: Cameras, *, fps: int
) -> Recorder:
    """The recorder for an arm's episodes.

    Args:
        path: of the data set.
        description: of the arm.
        io: what states and actions are.
        cameras: whose pictures are kept; all must have given one.
        fps: steps of the policy in a second.

    Raises:
        ValueError: when another data set is there.
    """
    sizes = {name: picture.image.shape for name, picture in cameras.newest().items()}
    info = DatasetInfo(
        fps=fps,
        action_names=io.action_names,
        state_names=io.state_names,
        cameras={name: Camera(height, width) for name, (height, width, _) in sizes.items()},
        robot_type=description.name,
    )
    return Recorder(path, info)
