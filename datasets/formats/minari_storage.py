"""The two ways in which Minari stores episodes: one HDF5 file, or a folder of Arrow files for each.

Shape legend: T steps.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robot_qsft.datasets.formats.hdf5 import Hdf5Group, natural_order, open_hdf5
from robot_qsft.datasets.formats.hdf5_dataset import MAX_BYTES, Hdf5Dataset, first_line
from robot_qsft.datasets.formats.minari_spaces import Key, name_of
from robot_qsft.datasets.parquet import to_numpy
from robot_qsft.datasets.plain_yaml import shown
from robot_qsft.datasets.source import Column, string_column

MAIN_FILE = "main_data.hdf5"
_INFOS = "infos"
_EPISODE_METADATA = "metadata.json"
_MAX_METADATA_BYTES = 1 << 28


class Storage(Protocol):
    """Fields of episodes by their keys, such as ("observations", "agent", 0)."""

    def steps(self, episode: int) -> int:
        """Number of actions, T."""

    def field(self, episode: int, keys: tuple[Key, ...]) -> tuple[int, Column]:
        """How many rows a field has, and what a row holds (vectors may be flattened)."""

    def infos(self, episode: int) -> Mapping[tuple[Key, ...], Column | None]:
        """The fields below "infos"; None for what is neither number nor text per row."""

    def read(
        self, episode: int, keys: tuple[Key, ...], *, column: Column, first: int, count: int
    ) -> NDArray[Any]:
        """Rows `first` to `first + count`, (count, *column.shape), in the type that is stored."""

    def encoded(self, episode: int, keys: tuple[Key, ...], *, count: int) -> Iterator[bytes]:
        """Yield the first `count` rows of a field of JPEG files."""

    def files(self) -> tuple[Path, ...]:
        """All files, sorted."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: when there is none, or it is damaged or very large.
    """
    if not path.is_file():
        raise ValueError(f"expected Minari's {path.name} at {path}, but there is none; restore it")
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too large")
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"expected a JSON object in {path}, but it cannot be read ({str(error)[:100]}); "
            "restore it"
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a JSON object in {path}, but another value came; restore it")
    return parsed


class Hdf5Storage:
    """Groups `episode_0` and so on in one file."""

    def __init__(self, folder: Path, *, episodes: int) -> None:
        """Open the file.

        Raises:
            ValueError: when it is missing or damaged, or holds not as many episodes.
        """
        self._path = folder / MAIN_FILE
        self._root = open_hdf5(self._path)
        missing = {f"episode_{index}" for index in range(episodes)} - set(self._root.names())
        if missing:
            raise ValueError(
                f"expected {episodes} episodes in {self._path} as metadata.json says, but "
                f"{min(missing, key=natural_order)} is missing; restore the file"
            )

    def steps(self, episode: int) -> int:
        """Number of actions, T."""
        group = self._group(episode)
        steps = len(group.dataset("rewards"))
        claimed = group.attribute("total_steps")
        if claimed is not None and not np.array_equal(claimed, steps):
            raise ValueError(
                f"expected {claimed!s:.40} steps in {group.name!r} of {self._path} as total_steps "
                f"says, but it has {steps} rewards; restore the file"
            )
        return steps

    def field(self, episode: int, keys: tuple[Key, ...]) -> tuple[int, Column]:
        """How many rows a field has, and what a row holds."""
        dataset = self._dataset(episode, keys)
        column = dataset.column
        if column is None:
            raise ValueError(
                f"expected numbers or text in {dataset.name!r} of {self._path}, but "
                f"{dataset.dtype} in shape {dataset.shape} came; restore the file"
            )
        return len(dataset), column

    def infos(self, episode: int) -> Mapping[tuple[Key, ...], Column | None]:
        """The fields below "infos"."""
        group = self._group(episode)
        if _INFOS not in group:
            return {}
        return {
            (_INFOS, *name.split("/")): dataset.column
            for name, dataset in group.group(_INFOS).datasets().items()
        }

    def read(
        self, episode: int, keys: tuple[Key, ...], *, column: Column, first: int, count: int
    ) -> NDArray[Any]:
        """Rows `first` to `first + count`."""
        dataset = self._dataset(episode, keys)
        if column.dtype == "string":
            return string_column(dataset.text(first=first, count=count))
        if dataset.shape[1:] != column.shape:
            raise ValueError(
                f"expected rows of shape {column.shape} in {dataset.name!r} of {self._path}, but "
                f"{dataset.shape[1:]} came; restore the file"
            )
        return dataset.numbers(first=first, count=count)

    def encoded(self, episode: int, keys: tuple[Key, ...], *, count: int) -> Iterator[bytes]:
        """Yield the first `count` rows of a field of JPEG files."""
        return self._dataset(episode, keys).byte_rows(count=count)

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def _group(self, episode: int) -> Hdf5Group:
        return self._root.group(f"episode_{episode}")

    def _dataset(self, episode: int, keys: tuple[Key, ...]) -> Hdf5Dataset:
        above = self._group(episode)
        *inner, last = (key if isinstance(key, str) else f"_index_{key}" for key in keys)
        for key in inner:
            above = above.group(key)
        return above.dataset(last)


class ArrowStorage:
    """Folders `0`, `1` and so on, of Arrow or Parquet files and a `metadata.json` each."""

    def __init__(self, folder: Path, *, suffix: str) -> None:
        """Nothing is read yet.

        Args:
            folder: of the data set.
            suffix: of the files, "arrow" or "parquet".
        """
        self._folder = folder
        self._suffix = suffix
        self._kept: tuple[int, pa.Table, int] | None = None

    def steps(self, episode: int) -> int:
        """Number of actions, T."""
        return self._table(episode)[1]

    def field(self, episode: int, keys: tuple[Key, ...]) -> tuple[int, Column]:
        """How many rows a field has, and what a row holds; vectors are flattened."""
        values = self._column(episode, keys)
        column = _column_of(values.type, None)
        if column is None:
            raise ValueError(
                f"expected numbers or text in {self._about(episode, keys)}, but {values.type} "
                "came; restore the files"
            )
        return len(values), column

    def infos(self, episode: int) -> Mapping[tuple[Key, ...], Column | None]:
        """The fields below "infos"."""
        table = self._table(episode)[0]
        if _INFOS not in table.column_names:
            return {}
        return dict(_info_fields(table.schema.field(_INFOS).type, (_INFOS,)))

    def read(
        self, episode: int, keys: tuple[Key, ...], *, column: Column, first: int, count: int
    ) -> NDArray[Any]:
        """Rows `first` to `first + count`."""
        about = self._about(episode, keys)
        values = self._column(episode, keys).slice(first, count)
        if len(values) != count:
            raise ValueError(f"expected {first + count} rows of {about}, but there are fewer")
        if column.dtype == "string":
            if not _is_text(values.type) or values.null_count:
                raise ValueError(
                    f"expected text in each row of {about}, but {values.type} or nothing came; "
                    "restore the files"
                )
            return string_column([str(text) for text in values.to_pylist()])
        numbers = to_numpy(values, width=math.prod(column.shape), about=about)
        if numbers.dtype.kind not in "biuf":
            raise ValueError(f"expected numbers in {about}, but {numbers.dtype} came")
        return numbers.reshape(count, *column.shape)

    def encoded(self, episode: int, keys: tuple[Key, ...], *, count: int) -> Iterator[bytes]:
        """Yield the first `count` rows of a field of JPEG files."""
        values = self._column(episode, keys)
        about = self._about(episode, keys)
        if not pa.types.is_binary(values.type) or len(values) < count:
            raise ValueError(
                f"expected {count} encoded images in {about}, but {len(values)} rows of "
                f"{values.type} came; restore the files"
            )
        for value in values.slice(0, count):
            content = value.as_py()
            if content is None:
                raise ValueError(f"expected an encoded image in each row of {about}, but none came")
            yield content

    def files(self) -> tuple[Path, ...]:
        """All files, sorted."""
        return tuple(
            sorted(
                file
                for folder in self._folder.iterdir()
                if folder.name.isdecimal() and folder.is_dir()
                for file in folder.iterdir()
                if file.is_file()
                and (file.name == _EPISODE_METADATA or file.suffix == f".{self._suffix}")
            )
        )

    def _about(self, episode: int, keys: tuple[Key, ...]) -> str:
        return f"{name_of(keys)!r} of episode {episode} in {self._folder}"

    def _column(self, episode: int, keys: tuple[Key, ...]) -> pa.ChunkedArray:
        table = self._table(episode)[0]
        names = [str(key) for key in keys]
        about = self._about(episode, keys)
        if names[0] not in table.column_names:
            raise ValueError(f"expected {about}, but it is missing; restore the files")
        try:
            values = table.column(names[0])
            for name in names[1:]:
                values = pc.struct_field(values, [name])
            values.validate(full=True)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected {about}, but it is missing or damaged ({first_line(error)}); restore "
                "the files"
            ) from error
        return values

    def _table(self, episode: int) -> tuple[pa.Table, int]:
        if self._kept is None or self._kept[0] != episode:
            folder = self._folder / str(episode)
            files = sorted(
                folder.glob(f"*.{self._suffix}"), key=lambda file: natural_order(file.name)
            )
            if not files:
                raise ValueError(
                    f"expected files *.{self._suffix} of episode {episode} in {folder}, but there "
                    "are none; restore them"
                )
            self._kept = None
            tables = [_read_table(file) for file in files]
            if any(table.schema != tables[0].schema for table in tables):
                raise ValueError(f"expected the same columns in all files of {folder}; restore it")
            table = pa.concat_tables(tables)
            steps = read_json(folder / _EPISODE_METADATA).get("total_steps")
            if type(steps) is not int or not len(table) - 1 <= steps <= len(table):
                raise ValueError(
                    f"expected {shown(steps)} steps, as its metadata.json says, and one row more "
                    f"in {folder}, but {len(table)} rows came; restore it"
                )
            self._kept = (episode, table, steps)
        return self._kept[1], self._kept[2]


def _read_table(path: Path) -> pa.Table:
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                groups = range(file.metadata.num_row_groups)
                size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
                if size > MAX_BYTES:
                    raise ValueError(f"it claims {size} bytes")
                table = file.read()
        else:
            with pa.memory_map(str(path)) as mapped:
                table = pa.ipc.open_file(mapped).read_all()
        table.validate(full=False)
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a complete {path.suffix[1:]} file at {path}, but it cannot be read "
            f"({first_line(error)}); restore it or record again"
        ) from error


def _info_fields(
    kind: pa.DataType, keys: tuple[Key, ...]
) -> Iterator[tuple[tuple[Key, ...], Column | None]]:
    if not pa.types.is_struct(kind):
        return
    for below in kind:
        if pa.types.is_struct(below.type):
            yield from _info_fields(below.type, (*keys, below.name))
        else:
            yield (*keys, below.name), _column_of(below.type, below.metadata)


def _column_of(kind: pa.DataType, metadata: Mapping[bytes, bytes] | None) -> Column | None:
    """What a row of an Arrow column holds; its shape as Minari notes it, else flattened."""
    if _is_text(kind):
        return Column("string")
    shape: tuple[int, ...] = ()
    if pa.types.is_fixed_size_list(kind):
        shape = (kind.list_size,)
        noted = (metadata or {}).get(b"shape")
        if noted is not None:
            lengths = noted.split(b",") if noted else []
            if not all(length.isdigit() and len(length) < 10 for length in lengths):
                return None
            if math.prod(map(int, lengths)) != kind.list_size:
                return None
            shape = tuple(map(int, lengths))
        kind = kind.value_type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Column(np.dtype(kind.to_pandas_dtype()).name, shape) if 0 not in shape else None
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
