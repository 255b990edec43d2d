"""What people say of how episodes ended, kept beside a source that is never changed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robot_qsft.datasets.folder_lock import FolderLock
from robot_qsft.datasets.outcomes import Evidence

LabelOutcome: TypeAlias = Literal["success", "failure", "unclear"]

_OUTCOMES: Final = get_args(LabelOutcome)
SCHEMA: Final = pa.schema(
    [
        ("episode", pa.int64()),
        ("name", pa.string()),
        ("outcome", pa.string()),
        ("success_frame", pa.int64()),
        ("source", pa.string()),
        ("by", pa.string()),
        ("when", pa.string()),
    ]
)
_TEXTS: Final = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
_LONGEST_TEXT = 1000
LARGEST_FILE: Final = 256 * 1024 * 1024
"""Bytes that labels never reach."""


@dataclass(frozen=True)
class Label:
    """What somebody says of one episode.

    Attributes:
        episode: its index in the source.
        name: what the source calls it, so that labels of another source are noticed.
        outcome: "unclear" where it was looked at and cannot be told.
        success_frame: step whose action solved the task first; None where nobody marked it, and
            always without success.
        source: where the label comes from, such as "person" or "csv".
        by: who gave it.
        when: it was given, ISO 8601 in UTC, such as "2025-06-01T12:00:00+00:00".
    """

    episode: int
    name: str
    outcome: LabelOutcome
    success_frame: int | None
    source: str
    by: str
    when: str

    def __post_init__(self) -> None:
        """Refuse what no label can say.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        if not _is_index(self.episode):
            raise ValueError(f"episode should be a number from 0, but {self.episode!r} came")
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        if self.outcome not in _OUTCOMES:
            raise ValueError(
                f"outcome should be one of {', '.join(_OUTCOMES)}, but {self.outcome!r} came"
            )
        if self.success_frame is not None:
            if not _is_index(self.success_frame):
                raise ValueError(
                    f"success_frame should be a number from 0, but {self.success_frame!r} came"
                )
            if self.outcome != "success":
                raise ValueError(
                    f"only a success has a success_frame, but {self.success_frame} came with "
                    f"outcome {self.outcome!r}"
                )
        if not _is_utc(self.when):
            raise ValueError(
                "when should be a time in UTC such as 2025-06-01T12:00:00+00:00, but "
                f"{self.when!r} came"
            )


def now_utc() -> str:
    """This moment as `Label.when` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def labels_path(source: Path) -> Path:
    """Where the labels of a source lie: inside a folder, beside a file."""
    return source / "labels.parquet" if source.is_dir() else source.with_suffix(".labels.parquet")


def check_label(label: Label, *, name: str, length: int) -> None:
    """Refuse a label that cannot be of the episode that it was given to.

    Args:
        label: of the episode.
        name: what the source calls the episode.
        length: steps of the episode.

    Raises:
        ValueError: when the name is another, or the success frame lies beyond the end.
    """
    if label.name != name:
        raise ValueError(
            f"the label of episode {label.episode} is for {label.name!r}, but the source calls it "
            f"{name!r}; name the labels of this source, or remove the label"
        )
    if label.success_frame is not None and label.success_frame >= length:
        raise ValueError(
            f"the label of episode {label.episode} has its success at frame {label.success_frame}, "
            f"but {name!r} has {length} frames; label it again"
        )


def apply_labels(
    evidences: Sequence[Evidence],
    labels: Mapping[int, Label],
    *,
    names: Sequence[str],
    lengths: Sequence[int],
) -> list[Evidence]:
    """The evidence of every episode, a label taking the place of what the source has.

    An unclear episode stays unknown, whatever its source says.

    Args:
        evidences: of all episodes of a source.
        labels: of some.
        names: what the source calls them.
        lengths: steps of each.

    Raises:
        ValueError: when a label does not fit its episode, or there is no such episode.
    """
    merged = list(evidences)
    for episode, label in labels.items():
        if episode >= len(merged):
            raise ValueError(
                f"a label is for episode {episode}, but there are {len(merged)}; name the labels "
                "of this source"
            )
        check_label(label, name=names[episode], length=lengths[episode])
        success = {"success": True, "failure": False, "unclear": None}[label.outcome]
        merged[episode] = Evidence("label", success, frame=label.success_frame, certain=True)
    return merged


class Labels(Mapping[int, Label]):
    """The labels of a source by episode; every change is on disk when the call returns.

    `read` gives them to look at. `edit` keeps others from changing them: use it in a `with`.
    """

    def __init__(
        self, path: Path, *, episodes: int, labels: dict[int, Label], lock: FolderLock | None
    ) -> None:
        """Use `Labels.read` or `Labels.edit`."""
        self.path = path
        self._episodes = episodes
        self._labels = labels
        self._lock = lock

    @classmethod
    def read(cls, path: Path, *, episodes: int) -> "Labels":
        """Read labels; a file that is not there holds none.

        Args:
            path: of the sidecar.
            episodes: how many the source has.

        Raises:
            ValueError: when the file is damaged, or holds what cannot be labels of such a source.
        """
        return cls(path, episodes=episodes, labels=_read(path, episodes=episodes), lock=None)

    @classmethod
    def edit(cls, path: Path, *, episodes: int) -> "Labels":
        """Read labels to change them.

        Args:
            path: of the sidecar, which the first label makes.
            episodes: how many the source has.

        Raises:
            ValueError: when another process is changing them, the folder cannot be written to, or
                `read` would raise.
        """
        # The sidecar itself is replaced at each change: a lock on it would be left behind.
        held = path.with_name(f".{path.name}.lock")
        try:
            held.touch()
            lock = FolderLock(held, wait=False)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is changing the labels in {path}; close it or choose another "
                "file with --labels"
            ) from error
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            labels = _read(path, episodes=episodes)
        except BaseException:
            lock.release()
            raise
        return cls(path, episodes=episodes, labels=labels, lock=lock)

    def __enter__(self) -> "Labels":
        """Nothing is done that `edit` has not done."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let others change the labels."""
        self.close()

    def close(self) -> None:
        """Let others change the labels."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __getitem__(self, episode: int) -> Label:
        """The label of an episode."""
        return self._labels[episode]

    def __iter__(self) -> Iterator[int]:
        """Episodes that have a label, ascending."""
        return iter(sorted(self._labels))

    def __len__(self) -> int:
        """Number of episodes that have a label."""
        return len(self._labels)

    def set(self, *labels: Label) -> None:
        """Give episodes labels, all at once, in place of those they may have.

        Raises:
            ValueError: when there is no such episode, or the file cannot be written; the labels
                are then as before.
        """
        for label in labels:
            if label.episode >= self._episodes:
                raise ValueError(
                    f"a label came for episode {label.episode}, but there are {self._episodes}; "
                    "choose one of these"
                )
        self._save(self._labels | {label.episode: label for label in labels})

    def remove(self, episode: int) -> None:
        """Take the label of an episode away, if it has one.

        Raises:
            ValueError: when the file cannot be written; the labels are then as before.
        """
        self._save({key: label for key, label in self._labels.items() if key != episode})

    def _save(self, labels: dict[int, Label]) -> None:
        """Write all labels under another name, and put that file in place once it is on disk."""
        assert self._lock is not None, "labels that are to be changed are opened by edit"
        rows = [labels[episode] for episode in sorted(labels)]
        columns = [
            pa.array([getattr(label, field.name) for label in rows], field.type) for field in SCHEMA
        ]
        temporary = self.path.with_name(f".{self.path.name}.writing")
        try:
            with temporary.open("wb") as opened:
                pq.write_table(pa.table(columns, schema=SCHEMA), opened)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise unwritable(self.path, error) from error
        self._labels = labels


def _read(path: Path, *, episodes: int) -> dict[int, Label]:
    if not path.exists():
        return {}
    labels: dict[int, Label] = {}
    for row, fields in enumerate(_read_table(path, episodes=episodes).to_pylist()):
        try:
            label = Label(**fields)
            if label.episode >= episodes:
                raise ValueError(f"episode {label.episode} came, but the source has {episodes}")
            if label.episode in labels:
                raise ValueError(f"episode {label.episode} has a label in an earlier row already")
        except ValueError as error:
            raise ValueError(
                f"{path}, row {row}: {error}; restore the file or name the labels of this source"
            ) from error
        labels[label.episode] = label
    return labels


def _read_table(path: Path, *, episodes: int) -> pa.Table:
    """The columns of `SCHEMA`, no more rows than there are episodes and no text beyond reason."""

    def damaged(reason: object) -> ValueError:
        told = str(reason).split("\n")[0]
        return ValueError(
            f"expected a table of labels at {path}, but {told}; restore the file, or name another "
            "with --labels"
        )

    if not path.is_file():
        raise damaged("that is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise damaged("it is larger than labels ever are")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for wanted in SCHEMA:
                if names.count(wanted.name) != 1:
                    raise damaged(f"it has not one column {wanted.name!r}")
                kind = file.schema_arrow.field(wanted.name).type
                if not _passes_for(kind, wanted.type):
                    raise damaged(f"its column {wanted.name!r} holds {kind}, not {wanted.type}")
            if file.metadata.num_rows > episodes:
                raise damaged(
                    f"it has {file.metadata.num_rows} rows and the source {episodes} episodes"
                )
            groups = range(file.metadata.num_row_groups)
            if sum(file.metadata.row_group(n).total_byte_size for n in groups) > LARGEST_FILE:
                raise damaged("it is larger than labels ever are")
        # Text stays in dictionaries until its length is known: a small file can claim any amount.
        with pq.ParquetFile(path, read_dictionary=_TEXTS) as file:
            table = file.read(columns=SCHEMA.names).select(SCHEMA.names)
        for name in _TEXTS:
            for chunk in table.column(name).chunks:
                texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
                if (pc.max(pc.binary_length(texts)).as_py() or 0) > 4 * _LONGEST_TEXT:
                    raise damaged(f"its column {name!r} holds text longer than labels ever are")
        table = table.cast(SCHEMA)
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise damaged(f"it cannot be read ({error})") from error


def _passes_for(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of `kind` can be read as text or whole numbers, as `wanted` says."""
    if pa.types.is_string(wanted):
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(text) or pa.types.is_large_string(text))
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} should be text, but {text!r} came")
    if len(text) > _LONGEST_TEXT or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"{name} should be at most {_LONGEST_TEXT} characters of Unicode, but {text[:50]!r} "
            "came"
        )


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> ValueError:
    """What to say of labels that cannot be written."""
    return ValueError(
        f"{path} cannot be written ({error.strerror or error}); free some space, or choose "
        "another place for the labels"
    )
