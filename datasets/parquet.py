"""Parquet files of a LeRobot data set: shards, tasks, and reading with clear errors."""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robot_qsft.datasets.wording import listed

_CHUNK_ROWS = 1 << 16
_ROW_GROUP_BYTES = 1 << 18
"""A row group is at least so large: whoever opens a file holds a kilobyte per group and column."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        ValueError: when it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(
            f"expected a parquet file at {path}, but there is none; restore it or record again"
        )
    try:
        # Files without checksums are read all the same; ours have them.
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(path, error)) from error


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a file, in the order asked for.

    Raises:
        ValueError: when the file is missing or damaged, or a column is not in it.
    """
    with open_parquet(path) as file:
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise ValueError(
                f"expected a column {missing[0]!r} in {path}, but it has only "
                f"{listed(file.schema_arrow.names)}; restore the file or record again"
            )
        try:
            return file.read(columns=list(columns)).select(list(columns))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(_damaged(path, error)) from error


def number_chunks(path: Path, column: str, *, width: int) -> Iterator[NDArray[Any]]:
    """Yield a column of numbers in pieces, (n, width).

    Raises:
        ValueError: when the file is missing or damaged, or the column does not fit.
    """
    with open_parquet(path) as file:
        try:
            for batch in file.iter_batches(_CHUNK_ROWS, columns=[column]):
                values = pa.chunked_array([batch.column(column)])
                yield to_numpy(values, width=width, about=f"{column!r} in {path}")
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(_damaged(path, error)) from error


class RowReader(threading.local):
    """Reads ranges of rows, keeping the file and the row groups of the last range at hand.

    Every thread that uses it has a file and rows of its own.
    """

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._path: Path | None = None
        self._file: pq.ParquetFile | None = None
        self._ends: NDArray[np.int64] = np.zeros(0, np.int64)
        self._kept: tuple[int, int, tuple[str, ...], pa.Table] | None = None

    def read(self, path: Path, columns: Sequence[str], *, first: int, count: int) -> pa.Table:
        """Rows `first` to `first + count` of some columns, in the order asked for.

        Raises:
            ValueError: when the file is missing, damaged or too short, or a column is not in it.
        """
        if path != self._path or self._file is None:
            self.close()
            self._file = open_parquet(path)
            self._path = path
            metadata = self._file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._ends = np.cumsum(np.array(sizes, np.int64))
        names = self._file.schema_arrow.names
        missing = sorted(set(columns) - set(names))
        if missing:
            raise ValueError(
                f"expected a column {missing[0]!r} in {path}, but it has only "
                f"{listed(names)}; restore the file or record again"
            )
        total = int(self._ends[-1]) if len(self._ends) else 0
        if first + count > total:
            raise ValueError(
                f"expected {first + count} rows in {path}, but it has {total}; restore data/ and "
                "meta/ from the same copy"
            )
        begin = int(np.searchsorted(self._ends, first, side="right"))
        end = int(np.searchsorted(self._ends, first + count, side="left")) + 1
        if self._kept is None or self._kept[:3] != (begin, end, tuple(columns)):
            try:
                groups = self._file.read_row_groups(range(begin, end), columns=list(columns))
                self._kept = (begin, end, tuple(columns), groups.select(list(columns)))
            except (pa.ArrowException, OSError, KeyError) as error:
                raise ValueError(_damaged(path, error)) from error
        start = int(self._ends[begin - 1]) if begin else 0
        return self._kept[3].slice(first - start, count)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._path = self._file = self._kept = None


def to_numpy(column: pa.ChunkedArray, *, width: int, about: str) -> NDArray[Any]:
    """A column of numbers or (nested) lists of numbers, rows x `width`.

    Args:
        column: as read.
        width: numbers per row.
        about: what it is, for the message.

    Raises:
        ValueError: when a row does not hold `width` numbers, or holds null.
    """
    values = column.combine_chunks()
    while isinstance(values, pa.ExtensionArray):
        values = values.storage
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    if pa.types.is_nested(values.type):
        raise ValueError(
            f"expected {width} numbers in each row of {about}, but {values.type} came; "
            "mend or record again"
        )
    if values.null_count or len(values) != len(column) * width:
        raise ValueError(
            f"expected {width} numbers in each of the {len(column)} rows of {about}, but "
            f"{len(values) - values.null_count} numbers came in all; mend or record again"
        )
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), width)


def column_of(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow column from rows, (T, ...), as `kind` says."""
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    if not pa.types.is_list(kind):
        return pa.array(values.reshape(-1), kind)
    scalar, sizes = kind, []
    for size in values.shape[1:]:
        scalar = scalar.value_type
        sizes.append(size)
    column = pa.array(np.ascontiguousarray(values).reshape(-1), scalar)
    for size in reversed(sizes):
        offsets = pa.array(np.arange(len(column) // size + 1, dtype=np.int32) * size)
        column = pa.ListArray.from_arrays(offsets, column)
    return column


class ShardWriter:
    """Row groups into `chunk-000/file-000.parquet` and so on, a new file when one is full."""

    def __init__(
        self, root: Path, *, template: str, position: tuple[int, int], chunk_size: int, limit: int
    ) -> None:
        """Prepare to write; files are opened when rows come.

        Args:
            root: folder that paths are relative to.
            template: of paths, with `chunk_index` and `file_index`.
            position: chunk and file to begin with.
            chunk_size: files per chunk.
            limit: bytes, beyond which the next file is begun.
        """
        self.position = position
        self._root = root
        self._template = template
        self._chunk_size = chunk_size
        self._limit = limit
        self._rows = 0
        self._gathered: list[pa.Table] = []
        self._gathered_bytes = 0
        self._sink: pa.OSFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def make_room(self, rows: int) -> tuple[int, int]:
        """Choose the chunk and file for so many rows, which `write` must bring next."""
        if self._sink is not None:
            size = self._sink.tell() + self._gathered_bytes
            if size * (1 + rows / self._rows) >= self._limit:
                self.close()
                self.position = next_position(self.position, chunk_size=self._chunk_size)
        return self.position

    def write(self, table: pa.Table) -> None:
        """Append rows, which follow in one row group with their neighbours if they are few."""
        if self._writer is None:
            chunk, file = self.position
            path = self._root / self._template.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = 0
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pq.ParquetWriter(
                self._sink, table.schema, version="2.6", write_page_checksum=True
            )
        self._gathered.append(table)
        self._gathered_bytes += table.nbytes
        self._rows += len(table)
        if self._gathered_bytes >= _ROW_GROUP_BYTES:
            self._write_gathered()

    def close(self) -> None:
        """Write the footer, without which the file cannot be read."""
        if self._writer is not None and self._sink is not None:
            self._write_gathered()
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None

    def _write_gathered(self) -> None:
        if self._writer is not None and self._gathered:
            group = pa.concat_tables(self._gathered)
            self._gathered, self._gathered_bytes = [], 0
            self._writer.write_table(group, row_group_size=len(group))


def next_position(position: tuple[int, int], *, chunk_size: int) -> tuple[int, int]:
    """Chunk and file after the given ones."""
    chunk, file = position
    return (chunk, file + 1) if file + 1 < chunk_size else (chunk + 1, 0)


def read_tasks(path: Path) -> tuple[str, ...]:
    """The instructions of `meta/tasks.parquet`, in the order of their index.

    Raises:
        ValueError: when the file is missing or damaged, or not a table of tasks.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
    text = next((name for name in ("task", "__index_level_0__") if name in names), None)
    if text is None:
        raise ValueError(
            f"expected a column 'task' in {path}, but it has {listed(names)}; "
            "restore the file or record again"
        )
    try:
        rows = read_columns(path, ["task_index", text]).to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(_damaged(path, error)) from error
    numbered = {row["task_index"]: str(row[text]) for row in rows}
    if len(numbered) != len(rows) or set(numbered) != set(range(len(rows))):
        raise ValueError(f"{path} should number its tasks from 0 without gaps; mend task_index")
    return tuple(numbered[index] for index in range(len(rows)))


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write `meta/tasks.parquet` such that pandas takes the text for the index."""

    def described(name: str, kind: str, numpy_type: str) -> dict[str, str | None]:
        return {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": numpy_type,
            "metadata": None,
        }

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            described("task_index", "int64", "int64"),
            described("task", "unicode", "object"),
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())],
        metadata={"pandas": json.dumps(pandas)},
    )
    columns = [pa.array(range(len(tasks)), pa.int64()), pa.array(tasks, pa.string())]
    table = pa.table(columns, schema=schema)
    pq.write_table(table, path, version="2.6", write_page_checksum=True)


def _damaged(path: Path, error: BaseException) -> str:
    reason = str(error).split("\n")[0]
    return (
        f"expected a complete parquet file at {path}, but it cannot be read ({reason}); "
        "restore it or record again"
    )
