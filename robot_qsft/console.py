"""What long work shows while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()
complaints = Console(stderr=True, soft_wrap=True)
"""Why a command ended early; a result piped elsewhere stays free of it."""


@contextmanager
def progress_bar(where: Console = console) -> Iterator[Progress]:
    """A display of any number of bars; on a terminal live, elsewhere printed once at the end."""
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=where,
    ) as progress:
        yield progress


class Counter:
    """One bar that counts successes among episodes."""

    def __init__(self, progress: Progress, description: str, total: int):
        """Add the bar."""
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")
        self._done = self._succeeded = 0

    def add(self, success: bool) -> None:
        """One more episode."""
        self._done += 1
        self._succeeded += success
        note = f"{self._succeeded / self._done:.0%} succeed"
        self._progress.update(self._task, advance=1, note=note)


def frame_bar(progress: Progress) -> Callable[[int, int], None]:
    """A bar that appears once frames are being decoded; call it with frames done and in all."""
    tasks: list[TaskID] = []

    def update(done: int, total: int) -> None:
        if not tasks:
            tasks.append(progress.add_task("decoding frames", total=total, note=""))
        progress.update(tasks[0], completed=done)

    return update
