"""What one person labels from opening the page to closing it, with every step to be undone."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robot_qsft.datasets.labels import Label, LabelOutcome, Labels, check_label, now_utc
from robot_qsft.datasets.outcomes import judge
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.tables import Outcome
from robot_qsft.label_reader import EpisodeFacts, LabelReader

_ROWS = 1000
"""At most so many rows are told at a time."""
_SOURCE = "person"


@dataclass(frozen=True)
class _Change:
    """A label that was given, and what it took the place of."""

    episode: int
    before: Label | None


class LabelSession:
    """The labels of a source, what the page shows of its episodes, and a history of changes.

    The source is read inside its `with`.
    """

    def __init__(self, source: EpisodeSource, *, labels: Labels, by: str) -> None:
        """Read nothing yet.

        Args:
            source: to be labelled.
            labels: opened by `Labels.edit`.
            by: who labels.
        """
        self.source = source
        self._labels = labels
        self._by = by
        self._history: list[_Change] = []
        self._changing = threading.Lock()
        self._outcomes: tuple[Outcome, ...] | None = None
        self._unread = len(source)
        # Every episode whose row has changed, in that order: the page asks from where it has got.
        self._log = list(labels)
        self.reader = LabelReader(source, report=self._note_read)

    def __enter__(self) -> "LabelSession":
        """Begin to read the source."""
        self.reader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """End the reading."""
        self.reader.__exit__(*error)

    def about(self) -> Mapping[str, Any]:
        """What all episodes have in common, as JSON."""
        info = self.source.info
        return {
            "source": self.source.path.resolve().name,
            "path": str(self.source.path.resolve()),
            "format": info.format,
            "fps": info.fps,
            "cameras": [
                {"name": name, "width": camera.width, "height": camera.height}
                for name, camera in info.cameras.items()
            ],
            "labels_file": str(self._labels.path),
            "by": self._by,
        }

    def rows(self, since: int) -> Mapping[str, Any]:
        """The episodes that changed since an earlier answer, as JSON.

        Args:
            since: `revision` of that answer; 0 for all that is known.
        """
        log = self._log[since : since + _ROWS]
        return {
            **self._counts(),
            "revision": since + len(log),
            "latest": len(self._log),
            "episodes": [self._row(episode) for episode in sorted(set(log))],
        }

    def row(self, episode: int) -> Mapping[str, Any]:
        """One episode, which is read before others, as JSON.

        Raises:
            Unavailable: when it cannot be read in time.
        """
        self.reader.facts(episode)
        return self._answer(episode)

    def set(
        self, episode: int, *, outcome: LabelOutcome, success_frame: int | None
    ) -> Mapping[str, Any]:
        """Label an episode; on disk when the call returns.

        Returns:
            The new row, as JSON.

        Raises:
            ValueError: when the episode cannot be read or has no such frame, its label is for
                another one, or the file cannot be written.
            Unavailable: when the episode cannot be read in time.
        """
        facts = self.reader.facts(episode)
        if problem := self._problem(episode, facts):
            raise ValueError(problem)
        label = Label(
            episode=episode,
            name=facts.name,
            outcome=outcome,
            success_frame=success_frame,
            source=_SOURCE,
            by=self._by,
            when=now_utc(),
        )
        check_label(label, name=facts.name, length=facts.length)
        with self._changing:
            before = self._labels.get(episode)
            if before is None or _said(before) != _said(label):
                self._labels.set(label)
                self._history.append(_Change(episode, before))
                self._log.append(episode)
            return self._answer(episode)

    def undo(self) -> Mapping[str, Any]:
        """Take the last change of this session back; on disk when the call returns.

        Returns:
            The row as it is again, as JSON.

        Raises:
            ValueError: when nothing is left to undo, or the file cannot be written.
        """
        with self._changing:
            if not self._history:
                raise ValueError("there is nothing to undo in this session; label an episode")
            last = self._history[-1]
            if last.before is None:
                self._labels.remove(last.episode)
            else:
                self._labels.set(last.before)
            self._history.pop()
            self._log.append(last.episode)
            return self._answer(last.episode)

    def _counts(self) -> Mapping[str, Any]:
        return {
            "total": len(self.source),
            "labelled": len(self._labels),
            "unread": self._unread,
            "undoable": len(self._history),
        }

    def _answer(self, episode: int) -> Mapping[str, Any]:
        return {**self._counts(), "episode": self._row(episode)}

    def _row(self, episode: int) -> Mapping[str, Any]:
        facts = self.reader.known(episode)
        label = self._labels.get(episode)
        return {
            "index": episode,
            "name": facts.name if facts else label.name if label else "",
            "instruction": facts.instruction if facts else "",
            "length": facts.length if facts else None,
            "problem": self._problem(episode, facts) if facts else "",
            "recorded": self._recorded(episode, facts) if facts else None,
            "label": label
            and {
                "outcome": label.outcome,
                "success_frame": label.success_frame,
                "source": label.source,
                "by": label.by,
                "when": label.when,
            },
        }

    def _recorded(self, episode: int, facts: EpisodeFacts) -> Mapping[str, Any] | None:
        """What the source itself says; None until all of it is read, for sets are judged whole."""
        if self._outcomes is None:
            return None
        return {
            "outcome": self._outcomes[episode],
            "source": facts.evidence.source,
            "frame": facts.evidence.frame,
        }

    def _problem(self, episode: int, facts: EpisodeFacts) -> str:
        """Why the episode cannot be labelled, in one sentence; "" where it can."""
        label = self._labels.get(episode)
        if facts.problem or label is None:
            return facts.problem
        try:
            check_label(label, name=facts.name, length=facts.length)
        except ValueError as error:
            return str(error)
        return ""

    def _note_read(self, episode: int) -> None:
        """Called by the reader's thread after each episode, the last of them too."""
        self._unread -= 1
        self._log.append(episode)
        if self._unread == 0:
            facts = [self.reader.known(one) for one in range(len(self.source))]
            self._outcomes = judge([one.evidence for one in facts if one is not None])
            self._log.extend(range(len(self.source)))


def _said(label: Label) -> tuple[object, ...]:
    return label.outcome, label.success_frame, label.source, label.by
