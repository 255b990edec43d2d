"""Every format: read, written, read again, and its outcomes, on a small real set of each.

`python tests/test_format_table.py` runs the tests and prints what they found as a table.
"""

import importlib
import json
import shutil
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.features import IMAGES
from robot_qsft.datasets.formats.detect import FORMATS, open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.mapped import MappedEpisode, MappedSource, settle
from robot_qsft.datasets.outcomes import judge
from robot_qsft.datasets.robomimic_export import export_robomimic
from robot_qsft.datasets.source import EpisodeSource, Recording
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.suggest_map import suggest

pytest.importorskip("h5py")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
small_sets: Any = importlib.import_module("small_sets")
collector: Any = importlib.import_module("robosuite_collector")

ROBOMIMIC = "robomimic HDF5"
LEROBOT = "LeRobotDataset v3.0, our writer"
COLLECTED = "LeRobotDataset v3.0, collect"
COLUMNS = ("read", "write", "round trip", "outcome")
FPS = 10


def write_by_robosuite(folder: Path) -> Path:
    """Three demonstrations of four steps."""
    return collector.collect_by_robosuite(
        folder,
        lambda environment: [np.full(environment.action_dim, 0.1 * step) for step in range(4)],
        demos=3,
    )


SETS: tuple[Any, ...] = (
    *small_sets.SMALL_SETS,
    small_sets.SmallSet(
        name="robosuite demo.hdf5, its own collector",
        write=write_by_robosuite,
        format="robosuite demo.hdf5",
        lengths=(4, 4, 4),
        outcomes=("unknown",) * 3,
        packages=("robosuite",),
    ),
    small_sets.SmallSet(COLLECTED, write=lambda folder: folder, format="LeRobotDataset v3.0"),
)


@dataclass(frozen=True)
class Small:
    """A set on disk, and what should be found in it."""

    told: Any
    path: Path

    def source(self) -> EpisodeSource:
        return open_source(self.path)

    def mapped(self, *, twice: bool) -> MappedSource:
        """By the suggested map, but all columns are kept; `twice` those in its vectors, too."""
        source = self.source()
        one = suggest(source)
        parts = (*one.action, *one.state, *one.environment_state)
        used = set() if twice else {part.column for part in parts}
        keep = tuple(name for name in source.info.columns if name not in used)
        fps = None if source.info.fps else float(FPS)
        return MappedSource(source, replace(one, keep=keep, fps=fps))


@pytest.fixture(scope="module", params=SETS, ids=[one.name for one in SETS])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    told = request.param
    for package in told.packages:
        pytest.importorskip(package)
    if told.name == COLLECTED:
        path = request.getfixturevalue("demonstrations")
        dataset = Dataset.open(path)
        solved = dataset.tables().episode_successes
        lengths = tuple(dataset.index.lengths.tolist())
        outcomes = tuple("success" if one else "failure" for one in solved)
        return Small(replace(told, lengths=lengths, outcomes=outcomes, green=None), path)
    try:
        return Small(told, told.write(tmp_path_factory.mktemp("small")))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def elsewhere(process_environment: dict[str, str]) -> Iterator[Callable[[Path], Any]]:
    """`digest` of a path in another process."""
    serve = (
        "import json, runpy, sys; from pathlib import Path; "
        "digest = runpy.run_path(sys.argv[1])['digest']\n"
        "for line in sys.stdin: print(json.dumps(digest(Path(line.strip()))), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", serve, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=process_environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(path: Path) -> Any:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def digest(path: Path) -> list[Any]:
    """Names and checksums of everything in a set."""
    source = open_source(path)
    found = []
    for index in range(len(source)):
        recording = source.recording(index)
        columns = {name: zlib.crc32(_bytes(column)) for name, column in recording.columns.items()}
        cameras = {
            camera: [zlib.crc32(frame.tobytes()) for frame in source.frames(index, camera)]
            for camera in source.info.cameras
        }
        found.append([recording.name, recording.instruction, columns, cameras])
    return found


def _bytes(column: np.ndarray) -> bytes:
    return "\0".join(column).encode() if column.dtype == object else column.tobytes()


def test_read_only_its_own_format_takes_it_for_its_own(small: Small) -> None:
    matching = [one for one in FORMATS if one.matches(small.path)]
    assert len(matching) == 1
    source = small.source()
    assert type(source) is matching[0].open
    assert source.info.format == small.told.format
    assert source.path == small.path and len(source) == len(small.told.lengths)
    files = source.files()
    assert files and list(files) == sorted(files) and all(file.is_file() for file in files)


def test_read_recordings_are_as_the_source_tells(small: Small) -> None:
    source = small.source()
    for index, length in enumerate(small.told.lengths):
        recording = source.recording(index)
        assert len(recording) == length
        assert set(recording.columns) == set(source.info.columns)
        for name, column in source.info.columns.items():
            values = recording.columns[name]
            assert values.shape == (length, *column.shape), name
            if column.dtype == "string":
                assert values.dtype == object and all(type(text) is str for text in values)
            else:
                assert values.dtype.name == column.dtype, name
        again = source.recording(index)
        for name, values in recording.columns.items():
            assert _bytes(values) == _bytes(again.columns[name]), name
        assert again.evidence == recording.evidence and again.name == recording.name


def test_read_frames_are_upright_and_beside_their_step(small: Small) -> None:
    source = small.source()
    for camera, size in source.info.cameras.items():
        for index, length in enumerate(small.told.lengths):
            frames = list(source.frames(index, camera))
            assert len(frames) == length
            for step, frame in enumerate(frames):
                assert frame.shape == (size.height, size.width, 3) and frame.dtype == np.uint8
                if small.told.green is None:
                    continue
                above, below = frame[: size.height // 4], frame[-size.height // 4 :]
                level = small.told.green(index, length, step)
                for part in (above, below):
                    assert abs(float(part[..., 1].mean()) - level) < 4, (camera, index, step)
                if small.told.upright:
                    assert above[..., 0].mean() > 200 > 50 > above[..., 2].mean()
                    assert below[..., 2].mean() > 200 > 50 > below[..., 0].mean()


def test_read_what_is_not_there_is_refused(small: Small) -> None:
    source = small.source()
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match=f"episode {index} asked for"):
            source.recording(index)
        with pytest.raises(IndexError, match=f"episode {index} asked for"):
            source.frames(index, next(iter(source.info.cameras), "x"))
    with pytest.raises(ValueError, match="camera 'nowhere' asked for"):
        source.frames(0, "nowhere")


def test_read_in_another_process(small: Small, elsewhere: Callable[[Path], Any]) -> None:
    found = elsewhere(small.path)
    assert len(found) == len(small.told.lengths)
    assert found == json.loads(json.dumps(digest(small.path)))


def test_read_opening_leaves_the_episodes_on_disk(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(small.source())

    def read(*asked: Any) -> None:
        raise AssertionError(f"opening read {asked}")

    for name in ("recording", "frames"):
        monkeypatch.setattr(kind, name, read)
    assert len(small.source()) == len(small.told.lengths)


LAST_EPISODE = {
    "LeRobotDataset v2.0": "data/*/episode_000002.parquet",
    "LeRobotDataset v2.1": "data/*/episode_000002.parquet",
    "Minari, arrow": "data/2/*.arrow",
    "Minari, parquet": "data/2/*.parquet",
    "RLDS / TFDS": "1.0.0/*-val.tfrecord-*",
    "diffusion-policy zarr, folder": "data/img/14.0.0.0",
    "folder of MP4 + CSV": "take_3/front.mp4",
    "folder of MP4 + JSON": "take_3/front.mp4",
}
"""Files that hold nothing but the last episode, or frames of it."""


@pytest.mark.parametrize(
    "small",
    [one for one in SETS if one.name in LAST_EPISODE],
    ids=LAST_EPISODE,
    indirect=True,
    scope="module",
)
def test_read_damage_at_the_end_is_met_there_only(small: Small, tmp_path: Path) -> None:
    path = Path(shutil.copytree(small.path, tmp_path / "copy"))
    (damaged,) = path.glob(LAST_EPISODE[small.told.name])
    content = bytearray(damaged.read_bytes())
    content[20:-8] = bytes(len(content) - 28)
    damaged.write_bytes(content)
    source = open_source(path)
    last = len(source) - 1

    def everything(index: int) -> int:
        source.recording(index)
        return sum(len(list(source.frames(index, camera))) for camera in source.info.cameras)

    assert everything(0) == small.told.lengths[0] * len(source.info.cameras)
    with pytest.raises(ValueError, match=r"expected .*; (restore|record|drop|mend)"):
        everything(last)


def test_outcome_is_what_is_known_and_no_more(
    small: Small, record_property: Callable[[str, object], None]
) -> None:
    source = small.source()
    evidences = [source.recording(index).evidence for index in range(len(source))]
    assert judge(evidences) == small.told.outcomes
    by = sorted({one.source for one in evidences if one.success is not None})
    kinds = [kind for kind in ("success", "failure", "unknown") if kind in small.told.outcomes]
    record_property("outcome", ", ".join(kinds) + (f" by {' and '.join(by)}" if by else ""))


def assert_frames_agree(old: Iterator[Image], new: Iterator[Image], *, exact: bool) -> None:
    for before, after in zip(old, new, strict=True):
        if exact:
            np.testing.assert_array_equal(after, before)
        else:
            assert np.abs(after.astype(int) - before).mean() < 4


def by_ingest(mapped: MappedSource, folder: Path) -> Path:
    ingest(mapped, folder / "set", IngestConfig(workers=1))
    return folder / "set"


def by_export(mapped: MappedSource, folder: Path) -> Path:
    export_robomimic(mapped, folder / "set.hdf5")
    return folder / "set.hdf5"


WRITERS = {LEROBOT: by_ingest, ROBOMIMIC: by_export}
"""Row of the format that is written to how."""


@pytest.mark.parametrize("writer", WRITERS)
def test_round_trip(small: Small, writer: str, tmp_path: Path) -> None:
    in_lerobot = writer == LEROBOT
    mapped = small.mapped(twice=in_lerobot)
    written = open_source(WRITERS[writer](mapped, tmp_path))
    assert written.info.format == ("LeRobotDataset v3.0" if in_lerobot else ROBOMIMIC)
    assert written.info.fps == mapped.fps == (small.source().info.fps or FPS)
    recordings = [mapped.source.recording(index) for index in range(len(mapped))]
    settled = settle([mapped.evidence(one) for one in recordings], assume=None)
    assert tuple(outcome for _, outcome in settled) == small.told.outcomes
    copies = [written.recording(index) for index in range(len(written))]
    assert judge([copy.evidence for copy in copies]) == small.told.outcomes
    columns_of = in_lerobot_set if in_lerobot else in_robomimic_file
    for index, (recording, (evidence, _), copy) in enumerate(
        zip(recordings, settled, copies, strict=True)
    ):
        episode = mapped.episode(recording, evidence)
        assert copy.instruction == episode.instruction == recording.instruction
        assert len(copy) == len(episode)
        wanted = columns_of(mapped, recording, episode)
        assert set(wanted) - set(copy.columns) == set()
        for name, column in wanted.items():
            assert copy.columns[name].dtype == column.dtype, name
            assert _bytes(copy.columns[name]) == _bytes(column), name
        for camera, size in mapped.cameras.items():
            assert_frames_agree(
                mapped.frames(index, camera, episode.steps),
                written.frames(index, camera if in_lerobot else f"{camera}_image"),
                exact=not in_lerobot or size.storage == "image",
            )


def in_lerobot_set(
    mapped: MappedSource, recording: Recording, episode: MappedEpisode
) -> dict[str, np.ndarray]:
    """What a v3.0 set should hold: all that the source has, and our own columns."""
    kept = {name: recording.columns[name][episode.steps] for name in mapped.field_map.keep}
    # The time of a row is counted anew, from the first one on.
    kept.pop("timestamp", None)
    return kept | dict(episode.columns)


def in_robomimic_file(
    mapped: MappedSource, recording: Recording, episode: MappedEpisode
) -> dict[str, np.ndarray]:
    """What robomimic's file should hold: all numbers of the source, in their places."""
    one = mapped.field_map
    wanted = {"rewards": episode.columns["next.reward"]}
    for name in one.keep:
        at_home = name in ("states", "actions_abs") or name.startswith("obs/")
        if recording.columns[name].dtype != object and not name.startswith("next."):
            key = name if at_home else f"obs/{name}"
            wanted[key] = recording.columns[name][episode.steps]
    for vector, parts in (("state", one.state), ("environment_state", one.environment_state)):
        stored = {part.column: recording.columns[part.column][episode.steps] for part in parts}
        if all(name.startswith("obs/") for name in stored):
            wanted |= stored
        else:
            wanted[f"obs/{vector}"] = episode.columns[f"observation.{vector}"]
    if {part.column for part in one.action} == {"actions"}:
        wanted["actions"] = recording.columns["actions"][episode.steps]
    else:
        wanted["actions"] = episode.columns["action"]
    return wanted


def test_round_trip_of_what_we_wrote_is_the_same_to_the_bit(
    demonstrations: Path, tmp_path: Path
) -> None:
    source = open_source(demonstrations)
    first = by_ingest(MappedSource(source, suggest(source)), tmp_path / "first")
    again = open_source(first)
    second = by_ingest(MappedSource(again, suggest(again)), tmp_path / "second")
    before, after = Dataset.open(first), Dataset.open(second)
    assert before.stored_info["features"] == after.stored_info["features"]
    assert IMAGES + "front" in after.stored_info["features"]
    without_frames = [[name, said, columns] for name, said, columns, _ in digest(first)]
    assert [[name, said, columns] for name, said, columns, _ in digest(second)] == without_frames


class Table:
    """A pytest plugin that gathers what the tests of this file find, format by format."""

    def __init__(self) -> None:
        self._cells: dict[str, list[tuple[str, str]]] = {}
        self._found: dict[tuple[str, str], set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            if "small" in parameters:
                row = parameters["small"].name
                column = next(one for one in COLUMNS if item.name[5:].startswith(_slug(one)))
                self._cells[item.nodeid] = [(row, column)]
                if "writer" in parameters:
                    self._cells[item.nodeid].append((parameters["writer"], "write"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            told = dict(report.user_properties).get("outcome", report.outcome)
            for cell in self._cells.get(report.nodeid, []):
                self._found[cell].add(str(told))

    def markdown(self) -> str:
        """The table, a row per set."""
        lines = [f"| format | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
        for one in SETS:
            cells = [_cell(self._found[one.name, column]) for column in COLUMNS]
            lines.append(f"| {one.name} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _slug(column: str) -> str:
    return column.replace(" ", "_")


def _cell(found: set[str]) -> str:
    """What is told of several tests: failures first, then what passed, then what was skipped."""
    if "failed" in found:
        return "**fails**"
    told = found - {"skipped"}
    if not told:
        return "not tried here" if found else "–"
    return "✓" if told == {"passed"} else told.pop()


if __name__ == "__main__":
    table = Table()
    status = pytest.main([__file__, "-q"], plugins=[table])
    print(table.markdown())
    sys.exit(status)
