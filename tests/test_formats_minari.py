"""Minari data sets that Minari itself wrote, in each of its three storages."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.minari import MinariSource, matches
from robot_qsft.datasets.formats.minari_spaces import flatten_space
from robot_qsft.datasets.outcomes import Evidence, judge
from robot_qsft.datasets.source import Column

h5py = pytest.importorskip("h5py")
STORAGES = ("hdf5", "arrow", "parquet")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a data set by Minari's own function; gives its folder."""
    minari = pytest.importorskip("minari")
    buffer = pytest.importorskip("minari.data_collector").EpisodeBuffer
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def write(storage: str, episodes: list[dict[str, Any]], **spaces: Any) -> Path:
        buffers = []
        for episode in episodes:
            steps = len(episode["rewards"])
            flags = {
                "terminations": [False] * (steps - 1) + [episode["rewards"][-1] == 1],
                "truncations": [False] * (steps - 1) + [episode["rewards"][-1] != 1],
            }
            buffers.append(buffer(**flags, **episode))
        name = f"tiny/{storage}-v0"
        with pytest.warns(UserWarning):
            minari.create_dataset_from_buffers(name, buffers, data_format=storage, **spaces)
        return tmp_path / name

    return write


@pytest.fixture
def nested(write: Write) -> Callable[[str], Path]:
    """Two episodes of 3 and 4 steps with Dict, Tuple, Text and image spaces; the second succeeds.

    Number k is observed before action k, and info k came with the observation.
    """
    spaces = pytest.importorskip("gymnasium").spaces

    def write_nested(storage: str) -> Path:
        episodes = []
        for index, steps in enumerate((3, 4)):
            seen = np.arange(steps + 1)
            frames = np.zeros((steps + 1, 32, 48, 3), np.uint8)
            frames[:] = (40 * seen + index)[:, None, None, None]
            episodes.append(
                {
                    "observations": {
                        "agent": (np.outer(seen, [1, 2]).astype(np.float32), seen),
                        "image": frames,
                        "mission": [f"fetch {index}"] * (steps + 1),
                        "tiny": frames[:, :4, :5],
                    },
                    "actions": {
                        "arm": np.outer(seen[:-1], np.ones(3)).astype(np.float32),
                        "grip": seen[:-1] % 2,
                    },
                    "rewards": [0.0] * (steps - 1) + [float(index)],
                    "infos": {
                        "success": (seen == steps) & (index == 1),
                        "deep": {"pose": np.outer(seen, np.ones(6)).reshape(-1, 2, 3)},
                    },
                }
            )
        pixels = {"low": 0, "high": 255, "dtype": np.uint8}
        return write(
            storage,
            episodes,
            observation_space=spaces.Dict(
                {
                    "agent": spaces.Tuple((spaces.Box(-9, 9, (2,)), spaces.Discrete(9))),
                    "image": spaces.Box(shape=(32, 48, 3), **pixels),
                    "mission": spaces.Text(30),
                    "tiny": spaces.Box(shape=(4, 5, 3), **pixels),
                }
            ),
            action_space=spaces.Dict({"arm": spaces.Box(-9, 9, (3,)), "grip": spaces.Discrete(2)}),
        )

    return write_nested


@pytest.mark.parametrize("storage", STORAGES)
def test_nested_spaces_images_and_infos(nested: Callable[[str], Path], storage: str) -> None:
    path = nested(storage)
    assert matches(path) and matches(path / "data") and not matches(path.parent)
    source = MinariSource(path)
    assert source.info.format == f"Minari ({storage})" and len(source) == 2
    assert source.info.cameras == {
        "image": Camera(32, 48, "video"),
        "tiny": Camera(4, 5, "image"),
    }
    assert source.info.columns == {
        "observations/agent/0": Column("float32", (2,)),
        "observations/agent/1": Column("int64"),
        "observations/mission": Column("string"),
        "actions/arm": Column("float32", (3,)),
        "actions/grip": Column("int64"),
        "rewards": Column("float64"),
        "terminations": Column("bool"),
        "truncations": Column("bool"),
        "infos/success": Column("bool"),
        "infos/deep/pose": Column("float64", (2, 3)),
    }
    recording = source.recording(1)
    assert (recording.name, recording.instruction, len(recording)) == ("episode 1", "fetch 1", 4)
    columns = recording.columns
    # Observation k stands beside action k; the one after the last action is left out.
    np.testing.assert_array_equal(columns["observations/agent/0"], np.outer(range(4), [1, 2]))
    assert columns["observations/agent/1"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(columns["actions/arm"][:, 2], [0, 1, 2, 3])
    assert columns["actions/grip"].tolist() == [0, 1, 0, 1]
    assert columns["rewards"].tolist() == [0, 0, 0, 1]
    assert columns["terminations"].tolist() == [False, False, False, True]
    # Infos stand beside the action that they came after, as rewards do.
    assert columns["infos/success"].tolist() == [False, False, False, True]
    np.testing.assert_array_equal(columns["infos/deep/pose"][:, 1, 2], [1, 2, 3, 4])
    assert source.info.notes == (
        "infos are what the environment said after the action beside them",
    )
    assert recording.evidence == Evidence("infos/success", True, 3)
    assert judge([source.recording(0).evidence, recording.evidence]) == ("failure", "success")
    for name, column in source.info.columns.items():
        if column.dtype != "string":
            assert columns[name].dtype == column.dtype and columns[name].shape == (4, *column.shape)
    frames = list(source.frames(1, "image"))
    assert len(frames) == 4
    for step, frame in enumerate(frames):
        assert frame.shape == (32, 48, 3) and frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - (40 * step + 1)).max() <= 2  # JPEG of one grey
    small = list(source.frames(1, "tiny"))
    assert [frame[0, 0, 0] for frame in small] == [1, 41, 81, 121]
    assert all(file.is_file() for file in source.files())
    assert {file.name for file in source.files()} >= {"metadata.json"}


@pytest.mark.parametrize("storage", STORAGES)
def test_plain_images_and_sparse_rewards(write: Write, storage: str) -> None:
    spaces = pytest.importorskip("gymnasium").spaces
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 32, 3), np.uint8)
    episode = {"observations": noise, "actions": np.zeros((3, 2), np.float32)}
    path = write(
        storage,
        [{**episode, "rewards": [0.0, 0.0, 1.0]}, {**episode, "rewards": [0.0, 0.0, 0.0]}],
        observation_space=spaces.Box(0, 255, (40, 32, 3), np.uint8),
        action_space=spaces.Box(-1, 1, (2,)),
        jpeg_encoding=False,
    )
    source = MinariSource(path)
    assert source.info.cameras == {"observations": Camera(40, 32, "image")}
    assert list(source.info.columns) == ["actions", "rewards", "terminations", "truncations"]
    np.testing.assert_array_equal(list(source.frames(1, "observations")), noise[:3])
    assert source.recording(0).instruction == ""
    assert judge([source.recording(index).evidence for index in (0, 1)]) == ("success", "failure")


def test_jpegs_of_different_and_of_equal_size_are_read_alike(write: Write) -> None:
    spaces = pytest.importorskip("gymnasium").spaces
    rng = np.random.default_rng(0)
    frames = np.full((4, 32, 32, 3), 90, np.uint8)
    mixed = frames.copy()
    mixed[1] = rng.integers(0, 256, (32, 32, 3))
    episode = {"actions": np.zeros((3, 2), np.float32), "rewards": [0.0, 0.0, 0.5]}
    path = write(
        "hdf5",
        [{**episode, "observations": frames}, {**episode, "observations": mixed}],
        observation_space=spaces.Box(0, 255, (32, 32, 3), np.uint8),
        action_space=spaces.Box(-1, 1, (2,)),
    )
    with h5py.File(path / "data/main_data.hdf5") as file:
        assert file["episode_0/observations"].ndim == 2  # one length
        assert file["episode_1/observations"].dtype == object  # any length
    source = MinariSource(path)
    for index in (0, 1):
        first, _, last = source.frames(index, "observations")
        assert np.abs(first.astype(int) - 90).max() <= 2 and (first == last).all()
    assert judge([source.recording(0).evidence]) == ("unknown",)


def edit_metadata(path: Path, **changes: Any) -> None:
    file = path / "data/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"total_episodes": 3}, "expected 3 episodes in .* but episode_2 is missing"),
        ({"total_episodes": "2"}, "expected total_episodes of 1 to .* but 2 came"),
        ({"total_episodes": 0}, "expected total_episodes of 1"),
        ({"total_episodes": 1e999}, "expected total_episodes of 1"),
        ({"data_format": "zip"}, "expected data_format hdf5, arrow, parquet .* but 'zip' came"),
        ({"observation_space": "{"}, "expected a space of gymnasium in 'observation_space'"),
        ({"observation_space": {"type": "Box"}}, "expected a space of gymnasium"),
        ({"action_space": '{"type": "Discrete", "n": 3}'}, "expected a dataset 'actions'"),
    ],
)
def test_metadata_that_does_not_fit_is_named(
    nested: Callable[[str], Path], changes: dict[str, Any], sentence: str
) -> None:
    path = nested("hdf5")
    edit_metadata(path, **changes)
    with pytest.raises(ValueError, match=sentence) as caught:
        MinariSource(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_episodes_that_are_cut_off_or_missing_are_named(
    nested: Callable[[str], Path], storage: str
) -> None:
    path = nested(storage)
    file = path / f"data/1/part-0.{storage}"
    whole = file.read_bytes()
    table = feather.read_table(file) if storage == "arrow" else pq.read_table(file)

    def refused(sentence: str) -> None:
        source = MinariSource(path)
        assert len(source.recording(0)) == 3
        with pytest.raises(ValueError, match=sentence) as caught:
            source.recording(1)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    file.write_bytes(whole[: len(whole) // 2])
    refused(f"expected a complete {storage} file at .*part-0")
    short = table.slice(0, 3)
    if storage == "arrow":
        with pa.ipc.new_file(str(file), short.schema) as writer:
            writer.write_table(short)
    else:
        pq.write_table(short, file)
    refused("expected 4 steps, as its metadata.json says, and one row more .* but 3 rows came")
    file.unlink()
    refused(rf"expected files \*.{storage} of episode 1")
    shutil.rmtree(path / "data/1")
    refused(rf"expected files \*.{storage} of episode 1")


def test_steps_that_are_missing_in_hdf5_are_named(nested: Callable[[str], Path]) -> None:
    path = nested("hdf5")
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file["episode_1/observations/agent/_index_1"].resize((3,))
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = np.zeros(5)
    with pytest.raises(ValueError, match=r"4 steps in '/episode_1'.* but it has 5 rewards"):
        MinariSource(path).recording(1)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file["episode_1"].attrs["total_steps"] = 5
    with pytest.raises(ValueError, match="expected 5 or 6 rows of 'observations/agent/1'"):
        MinariSource(path).recording(1)


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_damaged_files_are_read_or_refused_in_a_sentence(
    nested: Callable[[str], Path], storage: str
) -> None:
    path = nested(storage)
    file = path / f"data/1/part-0.{storage}"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(200):
        content = bytearray(whole)
        if case % 8 == 0:
            del content[rng.integers(len(content)) :]
        for _ in range(1 + case % 3):
            if content:
                content[rng.integers(len(content))] = rng.integers(256)
        file.write_bytes(content)
        try:
            source = MinariSource(path)
            assert len(source.recording(1)) == 4
            for camera in source.info.cameras:
                assert len(list(source.frames(1, camera))) == 4
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 200 // 8


def test_spaces_are_flattened_with_their_names() -> None:
    def flat(space: Any) -> list[tuple[str, str, tuple[int, ...]]]:
        leaves = flatten_space(json.dumps(space), root="x", jpeg_encoding=True, about="here")
        return [(leaf.name, leaf.kind, leaf.shape) for leaf in leaves]

    box = {"type": "Box", "dtype": "float32", "shape": [2, 3], "low": 0, "high": 1}
    several = {"type": "MultiDiscrete", "nvec": [3, 3], "dtype": "int64", "start": [0, 0]}
    bits = [{"type": "MultiBinary", "n": 4}, {"type": "MultiBinary", "n": [2, 2]}]
    tree = {"type": "Dict", "subspaces": {"a": box, "b": {"type": "Tuple", "subspaces": bits}}}
    assert flat(box) == [("x", "number", (2, 3))]
    assert flat(several) == [("x", "number", (2,))]
    assert flat({"type": "Graph"}) == [("x", "Graph", ())]
    assert flat(tree) == [
        ("x/a", "number", (2, 3)),
        ("x/b/0", "number", (4,)),
        ("x/b/1", "number", (2, 2)),
    ]
    deep: Any = box
    for _ in range(40):
        deep = {"type": "Tuple", "subspaces": [deep]}
    for bad in (deep, {"type": "Box"}, [], 3, {**box, "shape": [1 << 40]}, {**box, "shape": [-1]}):
        with pytest.raises(ValueError, match="expected a space of gymnasium in here"):
            flat(bad)
    with pytest.raises(ValueError, match="expected a space of gymnasium in here"):
        flatten_space("[" * 100_000, root="x", jpeg_encoding=True, about="here")
