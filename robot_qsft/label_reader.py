"""Reads a source for the labelling page: episodes one after another, and their frames as JPEG.

One thread does all reading, so sources need not be safe for several; what the page waits for goes
first. Frames of an episode are decoded once and kept, compressed, within a bound.

Shape legend: H height, T steps, W width.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.source import EpisodeSource

_BLOCK = 8
"""Frames per camera that are decoded before the thread looks for something more urgent."""
_LARGEST_SIDE = 960
_SMALLEST_SIDE = 32
_QUALITY = 85
_FILMS_IN_WORK = 3
"""Episodes that may be half decoded, each with open files, at a time."""


@dataclass(frozen=True)
class EpisodeFacts:
    """What the page shows of an episode besides its frames.

    Attributes:
        name: what the source calls it.
        instruction: "" where the source does not tell.
        length: in steps, T.
        evidence: the source's own.
        problem: why it cannot be read, in one sentence; "" where it can.
    """

    name: str
    instruction: str
    length: int
    evidence: Evidence
    problem: str = ""


class Unavailable(Exception):  # noqa: N818 - it is a matter of time, nothing is wrong
    """What was asked for takes longer than a request should wait."""


class Film:
    """The frames of an episode as JPEG, decoded a block at a time."""

    def __init__(self, source: EpisodeSource, *, episode: int, length: int, budget: int) -> None:
        """Prepare to decode.

        Args:
            source: that has the episode.
            episode: its index.
            length: in steps, T.
            budget: bytes that all frames together may take; frames get smaller to fit.
        """
        self.jpegs: dict[str, list[bytes]] = {camera: [] for camera in source.info.cameras}
        self.size = 0
        self.problem = ""
        self.ahead = False
        self._frames: dict[str, Iterator[Image]] = {}
        self._source = source
        self._episode = episode
        self._length = length
        self._budget = budget
        self._scale = 1.0

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to decode."""
        return bool(self.problem) or all(
            len(jpegs) == self._length for jpegs in self.jpegs.values()
        )

    def advance(self) -> None:
        """Decode the next block of every camera.

        Raises:
            ValueError: when the source cannot give the frames, or they cannot be kept.
        """
        if not self._frames:
            self._frames = {
                camera: self._source.frames(self._episode, camera) for camera in self.jpegs
            }
        before, count = self.size, 0
        for camera, frames in self._frames.items():
            jpegs = self.jpegs[camera]
            expected = min(_BLOCK, self._length - len(jpegs))
            block = [_jpeg(frame, scale=self._scale) for frame in islice(frames, expected)]
            jpegs.extend(block)
            self.size += sum(map(len, block))
            count += len(block)
            if len(block) < expected:
                raise ValueError(
                    f"camera {camera!r} of episode {self._episode} has {len(jpegs)} frames, but "
                    f"the episode has {self._length} steps; mend or drop the episode"
                )
        if self.complete:
            self._frames.clear()  # and with them the files that they hold open
        self._fit(self.size - before, count)

    def _fit(self, block_size: int, count: int) -> None:
        """Choose the scale at which what is left fits the budget.

        Raises:
            ValueError: when the budget is spent.
        """
        left = sum(self._length - len(jpegs) for jpegs in self.jpegs.values())
        room = self._budget - self.size
        if left and room <= 0:
            raise ValueError(
                f"episode {self._episode} has too many frames to be shown, {self._length} of each "
                "camera; split it"
            )
        if left * block_size > room * count:
            self._scale *= (room * count / (left * block_size)) ** 0.5


class LabelReader:
    """Reads a source in a thread of its own, which runs inside its `with`."""

    def __init__(
        self,
        source: EpisodeSource,
        *,
        report: Callable[[int], None],
        budget: int = 512 * 1024 * 1024,
    ) -> None:
        """Read nothing yet.

        Args:
            source: to be read, by nobody else meanwhile.
            report: called with each episode that has been read, by the thread.
            budget: bytes of compressed frames to keep.
        """
        self._source = source
        self._report = report
        self._budget = budget
        self._facts: list[EpisodeFacts | None] = [None] * len(source)
        self._read = 0
        self._asked: deque[int] = deque()
        self._films: OrderedDict[int, Film] = OrderedDict()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="label reader", daemon=True)

    def __enter__(self) -> "LabelReader":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def known(self, index: int) -> EpisodeFacts | None:
        """What has been read of an episode so far."""
        return self._facts[index]

    def facts(self, index: int, *, timeout_s: float = 30.0) -> EpisodeFacts:
        """What is known of an episode; it is read before others.

        Raises:
            Unavailable: when that takes longer than `timeout_s`.
        """
        with self._changed:
            if self._facts[index] is None:
                self._asked.append(index)
                self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._facts[index] is not None, timeout_s):
                raise Unavailable(f"episode {index} is still being read")
        facts = self._facts[index]
        assert facts is not None
        return facts

    def strip(
        self,
        index: int,
        *,
        camera: str,
        first: int,
        count: int,
        ahead: bool,
        timeout_s: float = 30.0,
    ) -> list[bytes]:
        """Consecutive frames as JPEG, as many of `count` as are decoded, at least one.

        Args:
            index: of the episode.
            camera: of the source.
            first: step of the first frame.
            count: at most so many.
            ahead: whether nobody waits for them yet: other episodes go first.
            timeout_s: to wait for the first frame.

        Raises:
            ValueError: when there is no such frame, or it cannot be decoded.
            Unavailable: when it takes longer than `timeout_s`.
        """
        facts = self.facts(index, timeout_s=timeout_s)
        if facts.problem:
            raise ValueError(facts.problem)
        if first >= facts.length:
            raise ValueError(
                f"frame {first} asked for, but episode {index} has {facts.length}; choose one of "
                "these"
            )
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                film = self._film(index, length=facts.length)
                film.ahead = ahead
                jpegs = film.jpegs[camera]
                if first < len(jpegs):
                    return jpegs[first : first + count]
                if film.problem:
                    raise ValueError(film.problem)
                self._changed.notify_all()
                if not self._changed.wait(deadline_s - time.monotonic()):
                    raise Unavailable(f"frame {first} of episode {index} is still being decoded")

    def _film(self, index: int, *, length: int) -> Film:
        """The film of an episode, begun where there is none, and the last to be forgotten."""
        if index not in self._films:
            half = [one for one, film in self._films.items() if not film.complete]
            for one in half[: max(0, len(half) - _FILMS_IN_WORK + 1)]:
                del self._films[one]
            self._films[index] = Film(
                self._source,
                episode=index,
                length=length,
                budget=self._budget // (_FILMS_IN_WORK + 1),
            )
        self._films.move_to_end(index)
        return self._films[index]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._has_work())
                if self._closing:
                    return
                asked = self._asked.popleft() if self._asked else None
                film = self._most_urgent_film() if asked is None else None
            if asked is not None:
                self._read_facts(asked)
            elif film is not None:
                self._advance(film)
            else:
                self._read_facts(self._read)

    def _has_work(self) -> bool:
        unread = self._read < len(self._facts)
        return unread or bool(self._asked) or self._most_urgent_film() is not None

    def _most_urgent_film(self) -> Film | None:
        """The one asked for last among those that somebody waits for, or else among the others."""
        half = [film for film in reversed(self._films.values()) if not film.complete]
        return min(half, key=lambda film: film.ahead, default=None)

    def _read_facts(self, index: int) -> None:
        if self._facts[index] is None:
            facts = self._facts_of(index)
            with self._changed:
                self._facts[index] = facts
                while self._read < len(self._facts) and self._facts[self._read] is not None:
                    self._read += 1
                self._changed.notify_all()
            self._report(index)

    def _facts_of(self, index: int) -> EpisodeFacts:
        try:
            recording = self._source.recording(index)
        except Exception as error:  # the page must go on with the other episodes
            return EpisodeFacts("", "", 0, NO_EVIDENCE, problem=_sentence(error))
        return EpisodeFacts(
            recording.name, recording.instruction, len(recording), recording.evidence
        )

    def _advance(self, film: Film) -> None:
        problem = ""
        try:
            film.advance()
        except Exception as error:  # the page must go on with the other episodes
            problem = _sentence(error)
        with self._changed:
            film.problem = problem
            while sum(one.size for one in self._films.values()) > self._budget:
                self._films.popitem(last=False)
            self._changed.notify_all()


def _sentence(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    logging.getLogger(__name__).error("a reader failed", exc_info=error)
    return f"the episode cannot be read ({type(error).__name__}: {error}); drop it"


def _jpeg(frame: Image, *, scale: float) -> bytes:
    """One frame compressed, no larger than a page shows it."""
    height, width = frame.shape[:2]
    side = max(height, width)
    fitting = min(1.0, max(scale * min(side, _LARGEST_SIDE), _SMALLEST_SIDE) / side)
    bgr: NDArray[Any] = np.ascontiguousarray(frame[..., ::-1])
    if fitting < 1:
        size = max(1, round(width * fitting)), max(1, round(height * fitting))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done, f"a frame of {frame.shape} and {frame.dtype} was not compressed"
    return jpeg.tobytes()
