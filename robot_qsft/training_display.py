"""What training shows while it runs: a bar, and a TensorBoard log."""

from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress, TaskID
from torch.utils.tensorboard import SummaryWriter

_LOG_EVERY = 20
"""Steps between TensorBoard points."""


class TrainingDisplay:
    """A bar and a TensorBoard log for one training run."""

    def __init__(self, progress: Progress, description: str, total: int, run: Path):
        """Add the bar; the log in `run` begins with the first point, so a refused run has none."""
        self._progress = progress
        self._task: TaskID = progress.add_task(description, total=total, note="")
        self._log_folder = run / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._validation = ""

    def started(self, step: int) -> None:
        """Training begins after this step."""
        self._progress.update(self._task, completed=step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A gradient step was taken."""
        note = (
            f"loss {metrics['loss']:.3f}{self._validation}, {1000 * metrics['step_s']:.0f} ms/step,"
            f" data wait {metrics['data_wait_share']:.1%}"
        )
        self._progress.update(self._task, completed=step, note=note)
        if step % _LOG_EVERY == 0:
            self._log("train", step, metrics)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Losses on held-out episodes were computed."""
        self._validation = f" (held out {metrics['loss']:.3f})"
        self._log("validation", step, metrics)

    def close(self) -> None:
        """Flush the log."""
        if self._writer is not None:
            self._writer.close()

    def _log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            # A run that is gone on with repeats the steps after its last checkpoint.
            self._writer = SummaryWriter(str(self._log_folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
