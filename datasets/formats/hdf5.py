"""HDF5 files of other people, read with suspicion: nothing outside the file is ever opened.

Only hard links are followed. Every error of the library ends in a `ValueError` of one sentence.
"""

import json
import math
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from robot_qsft.datasets.formats.hdf5_dataset import (
    Hdf5Dataset,
    first_line,
    h5py_module,
    reading,
)
from robot_qsft.datasets.formats.hdf5_heap import REFERENCE_BYTES, read_attribute, read_values

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_MAX_ATTRIBUTE_BYTES = 1 << 26
_MAX_DEPTH = 8
_MAX_FIELDS = 10_000


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def has_h5py() -> bool:
    """Whether HDF5 files can be read here."""
    try:
        h5py_module()
    except ValueError:
        return False
    return True


class Hdf5Group:
    """A group of datasets and groups, with attributes.

    Attributes:
        path: of the file.
        name: within the file, such as "/data/demo_0".
    """

    def __init__(self, path: Path, node: Any) -> None:
        """Use `open_hdf5`, or `group` of another group."""
        self.path = path
        self._node = node
        with reading(path, "a group"):
            self.name = str(node.name)

    def __enter__(self) -> "Hdf5Group":
        """Nothing more to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Let go of the whole file."""
        with reading(self.path, "the file"):
            self._node.file.close()

    def names(self) -> list[str]:
        """What it holds."""
        with reading(self.path, repr(self.name)):
            names = [str(name) for name in self._node]
            for name in names:
                name.encode()  # a damaged name cannot be
        return names

    def __contains__(self, name: str) -> bool:
        """Whether it holds something of that name."""
        with reading(self.path, repr(self.name)):
            return bool(self._node.id.links.exists(name.encode()))

    def child(self, name: str) -> "Hdf5Group | Hdf5Dataset":
        """A group or dataset of its own.

        Raises:
            ValueError: when there is none, it is linked from elsewhere, or it is damaged.
        """
        if name not in self:
            raise ValueError(
                f"expected {name!r} in {self.name!r} of {self.path}, but it is missing; restore "
                "the file or drop the episode"
            )
        h5py = h5py_module()
        with reading(self.path, f"{name!r} in {self.name!r}"):
            linked = self._node.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD
        if linked:
            raise ValueError(
                f"{name!r} in {self.name!r} of {self.path} is a link to another place, which is "
                "not followed; repack it into one file (h5py's Group.copy with expand_external)"
            )
        with reading(self.path, f"{name!r} in {self.name!r}"):
            node = self._node[name]
        if isinstance(node, h5py.Group):
            return Hdf5Group(self.path, node)
        if isinstance(node, h5py.Dataset):
            return Hdf5Dataset(self.path, node)
        raise ValueError(
            f"expected a group or dataset at {name!r} in {self.name!r} of {self.path}, but a named "
            "type came; restore the file"
        )

    def group(self, name: str) -> "Hdf5Group":
        """A group of its own, or of one below it ("obs/robot").

        Raises:
            ValueError: when there is none, it is no group, or it is damaged.
        """
        found = self
        for part in name.split("/"):
            below = found.child(part)
            if not isinstance(below, Hdf5Group):
                raise ValueError(
                    f"expected a group {part!r} in {found.name!r} of {self.path}, but a dataset "
                    "came; restore the file or record again"
                )
            found = below
        return found

    def dataset(self, name: str) -> Hdf5Dataset:
        """A dataset of its own, or of a group below it ("obs/object").

        Raises:
            ValueError: when there is none, it is no dataset, or it is damaged.
        """
        above, _, last = name.rpartition("/")
        found = (self.group(above) if above else self).child(last)
        if not isinstance(found, Hdf5Dataset):
            raise ValueError(
                f"expected a dataset {name!r} in {self.name!r} of {self.path}, but a group came; "
                "restore the file or record again"
            )
        return found

    def datasets(self, *, depth: int = _MAX_DEPTH) -> dict[str, Hdf5Dataset]:
        """All datasets of it and of the groups below it, by name ("robot/joints").

        Raises:
            ValueError: when they nest too deep, are too many, or one is damaged.
        """
        found: dict[str, Hdf5Dataset] = {}
        for name in self.names():
            below = self.child(name)
            if isinstance(below, Hdf5Dataset):
                found[name] = below
            elif depth == 0:
                raise ValueError(
                    f"expected groups at most {_MAX_DEPTH} deep in {self.path}, but {below.name!r} "
                    "is deeper; restore the file or record again"
                )
            else:
                for inner, dataset in below.datasets(depth=depth - 1).items():
                    found[f"{name}/{inner}"] = dataset
            if len(found) > _MAX_FIELDS:
                raise ValueError(
                    f"expected at most {_MAX_FIELDS} datasets in {self.name!r} of {self.path}, but "
                    "there are more; name the file that holds one data set"
                )
        return found

    def attribute(self, name: str) -> Any:
        """A small attribute: text as str, numbers as numpy has them; None where there is none.

        Raises:
            ValueError: when it is damaged, large, or neither number nor text.
        """
        about = f"attribute {name!r} of {self.name!r}"
        h5py = h5py_module()
        with reading(self.path, about):
            if not h5py.h5a.exists(self._node.id, name.encode()):
                return None
            stored = self._node.attrs.get_id(name)
            kind, shape = stored.dtype, stored.shape
            text = h5py.check_string_dtype(kind)
            address = h5py.h5o.get_info(self._node.id).addr
        if (text is None and kind.kind not in "biuf") or (text is not None and shape != ()):
            raise ValueError(
                f"expected numbers or a text in {about} in {self.path}, but {kind} came in shape "
                f"{shape}; restore it"
            )
        if math.prod(shape) * kind.itemsize > min(_MAX_ATTRIBUTE_BYTES, self.path.stat().st_size):
            raise ValueError(f"{about} in {self.path} claims to be too large; restore the file")
        if text is not None and text.length is None:
            reference = read_attribute(self.path, address, name)[:REFERENCE_BYTES]
            (content,) = read_values(self.path, reference, about=about) or (b"",)
            with reading(self.path, about):
                return content.split(b"\0")[0].decode()
        with reading(self.path, about):
            value = self._node.attrs[name]
            return bytes(value).decode() if text is not None else value

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object in an attribute; None where there is none.

        Raises:
            ValueError: when it is no JSON object.
        """
        value = self.attribute(name)
        if value is None:
            return None
        about = f"{name!r} of {self.name!r} in {self.path}"
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"expected JSON in attribute {about}, but it cannot be parsed "
                f"({first_line(error)}); restore the file or mend the attribute"
            ) from error
        if not isinstance(parsed, dict):
            raise ValueError(
                f"expected a JSON object in attribute {about}, but {type(parsed).__name__} came; "
                "restore the file or mend the attribute"
            )
        return parsed


def open_hdf5(path: Path) -> Hdf5Group:
    """Open a file for reading.

    Raises:
        ValueError: when there is none, it is damaged or cut off, or h5py is not installed.
    """
    h5py = h5py_module()
    if not path.is_file():
        raise ValueError(f"expected an HDF5 file at {path}, but there is none; restore it")
    with reading(path, "the file"):
        node = h5py.File(path, "r", locking="best-effort")
    return Hdf5Group(path, node)


def natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorting key by which "demo_10" comes after "demo_9"."""
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def positive_number(value: Any) -> float | None:
    """A finite number above zero, such as a frequency; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number > 0 else None
