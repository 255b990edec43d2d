"""RLDS data sets: the fixture of TFDS, and variants of it that the test writes by protobuf."""

import json
import pickle
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats import rlds
from robot_qsft.datasets.formats.encoded_image import decode_image, sniff_image
from robot_qsft.datasets.formats.rlds import RldsSource
from robot_qsft.datasets.formats.tf_example import example_class
from robot_qsft.datasets.formats.tfrecord import masked_crc32c
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence, judge
from robot_qsft.datasets.source import Column

FIXTURE = Path(__file__).parent.parent.parent / "shared" / "fixtures" / "rlds"
needs_fixture = pytest.mark.skipif(
    not FIXTURE.is_dir(), reason="the format fixtures lie outside the repository"
)
SHARD = "made_up-train.tfrecord-00000-of-00001"
Record = Mapping[str, Any]


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return b"".join(
        [
            length,
            struct.pack("<I", masked_crc32c(length)),
            payload,
            struct.pack("<I", masked_crc32c(payload)),
        ]
    )


def encoded(record: Record) -> bytes:
    """An example with bytes, floats or integers, as the values of each key are."""
    example = example_class()()
    for key, values in record.items():
        feature = example.features.feature[key]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif np.asarray(values).dtype.kind == "f":
            feature.float_list.value.extend(np.asarray(values).reshape(-1).tolist())
        else:
            feature.int64_list.value.extend(map(int, np.asarray(values).reshape(-1)))
    return example.SerializeToString()


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {"tensor": {"dtype": dtype, "encoding": encoding, "shape": dimensions}}


def tree(features: Mapping[str, Any]) -> dict[str, Any]:
    return {"featuresDict": {"features": dict(features)}}


def write_set(
    folder: Path,
    records: Sequence[Record],
    *,
    steps: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    name: str = "made_up",
    **info: Any,
) -> Path:
    """One version with one shard; no features.json where no steps are given."""
    folder.mkdir(parents=True)
    content = b"".join(framed(encoded(record)) for record in records)
    (folder / SHARD.replace("made_up", name)).write_bytes(content)
    split = {"name": "train", "shardLengths": [str(len(records))]}
    described = {"fileFormat": "tfrecord", "name": name, "splits": [split], **info}
    (folder / "dataset_info.json").write_text(json.dumps(described))
    if steps is not None:
        sequence = {"sequence": {"feature": tree(steps), "length": "-1"}}
        features = {"steps": sequence, "episode_metadata": tree(metadata or {})}
        (folder / "features.json").write_text(json.dumps(tree(features)))
    return folder


STEPS: dict[str, Any] = {
    "action": tensor("float32", 2),
    "observation": tree({"state": tensor("float64", 3), "count": tensor("int64")}),
    "reward": tensor("float32"),
    "discount": tensor("float32"),
    "is_first": tensor("bool"),
    "is_last": tensor("bool"),
    "is_terminal": tensor("bool"),
    "language_instruction": {"text": {}},
}


def episode(steps: int = 4, **more: Any) -> dict[str, Any]:
    """A record that fits `STEPS`; keys of `more` have `__` for `/`."""
    at = np.arange(steps)
    return {
        "steps/action": np.stack([at + 1.0, -at - 1.0], axis=1),
        "steps/observation/state": at[:, None] + np.array([0.0, 0.25, 0.5]),
        "steps/observation/count": -at,
        "steps/reward": (at == steps - 1).astype(float),
        "steps/discount": np.ones(steps),
        "steps/is_first": at == 0,
        "steps/is_last": at == steps - 1,
        "steps/is_terminal": at == steps - 1,
        "steps/language_instruction": ["stapeln bitte: Würfel".encode()] * steps,
    } | {key.replace("__", "/"): values for key, values in more.items()}


def picture(grey: int, *, ending: str = ".png", size: tuple[int, int] = (16, 24)) -> bytes:
    frame = np.full((*size, 3), grey, np.uint8)
    frame[..., 2] = 200  # red, in OpenCV's order
    return cv2.imencode(ending, frame)[1].tobytes()


def read_all(path: Path) -> list[Any]:
    source = RldsSource(path)
    for camera in source.info.cameras:
        for index in range(len(source)):
            list(source.frames(index, camera))
    return [source.recording(index) for index in range(len(source))]


@needs_fixture
@pytest.mark.parametrize("path", [FIXTURE, FIXTURE / "1.0.0"])
def test_fixture_of_tfds(path: Path) -> None:
    assert rlds.matches(path)
    source = RldsSource(path)
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), Column("bool"))
    assert source.info.columns == {
        "action": Column("float32", (7,)),
        "observation/state": Column("float32", (8,)),
        "language_instruction": Column("string"),
        "reward": Column("float32"),
        "discount": Column("float32"),
        **flags,
    }
    assert source.info.cameras == {"observation/image": Camera(32, 32, "image")}
    assert source.info.splits == {"train": (0, 1, 2), "val": (3,)}
    assert source.info.fps is None and source.info.notes == ()
    assert len(source) == 4
    names = ["train/0", "train/1", "train/2", "val/0"]
    for index, (name, number, steps) in enumerate(
        zip(names, (0, 1, 2, 0), (5, 6, 7, 5), strict=True)
    ):
        one = source.recording(index)
        at = np.arange(steps, dtype=np.float32)
        assert one.name == name and len(one) == steps and one.instruction == "pick"
        columns = one.columns
        np.testing.assert_array_equal(columns["observation/state"], at[:, None] + np.arange(8))
        tenths = np.float32(0.1) * np.arange(7, dtype=np.float32)
        np.testing.assert_allclose(columns["action"], at[:, None] + tenths, atol=1e-6)
        assert columns["is_first"].tolist() == [True] + [False] * (steps - 1)
        last = [False] * (steps - 1) + [True]
        assert columns["is_last"].tolist() == columns["is_terminal"].tolist() == last
        assert columns["reward"].tolist() == last and columns["discount"].tolist() == [1] * steps
        assert columns["language_instruction"].tolist() == ["pick"] * steps
        assert one.evidence == Evidence("episode_metadata/success", True, certain=True)
        for column, about in source.info.columns.items():
            expected = "object" if about.dtype == "string" else about.dtype
            assert columns[column].dtype == expected and columns[column].shape[1:] == about.shape
        frames = list(source.frames(index, "observation/image"))
        assert [frame.shape for frame in frames] == [(32, 32, 3)] * steps
        for step, frame in enumerate(frames):
            assert (frame == 20 * number + step).all()
    shards = [f"my_ds-{split}.tfrecord-00000-of-00001" for split in ("train", "val")]
    files = ["dataset_info.json", "features.json", *shards]
    assert source.files() == tuple(FIXTURE / "1.0.0" / file for file in files)


@needs_fixture
def test_fixture_without_features_json_reads_alike(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "1.0.0", tmp_path / "set")
    (tmp_path / "set").chmod(0o755)
    (tmp_path / "set/features.json").unlink()
    told, inferred = RldsSource(FIXTURE), RldsSource(tmp_path / "set")
    assert inferred.info.columns == told.info.columns
    assert inferred.info.cameras == told.info.cameras
    assert any("features.json is missing" in note for note in inferred.info.notes)
    for index in range(4):
        ours, theirs = inferred.recording(index), told.recording(index)
        assert ours.instruction == "pick" and ours.evidence == theirs.evidence
        for name, column in theirs.columns.items():
            np.testing.assert_array_equal(ours.columns[name], column)


def test_types_of_columns(tmp_path: Path) -> None:
    more = {
        "big": tensor("uint64"),
        "small": tensor("uint8", 2),
        "signed": tensor("int32"),
        "half": tensor("float16", 1),
        "brain": tensor("bfloat16"),
        "label": {"classLabel": {"numClasses": "3"}},
        "pose": tensor("float32", 2, 2),
        "raw": tensor("float64", 2, encoding="bytes"),
        "packed": tensor("int16", 3, encoding="zlib"),
        "flags": tensor("bool", 2, encoding="bytes"),
    }
    record = episode(
        2,
        steps__big=np.array([-1, 2]),
        steps__small=np.array([0, 255, 7, 8]),
        steps__signed=np.array([-5, 5]),
        steps__half=np.array([0.5, 2.0]),
        steps__brain=np.array([0.5, 2.0]),
        steps__label=np.array([2, 0]),
        steps__pose=np.arange(8.0),
        steps__raw=[struct.pack("<2d", 0.1, 1e300), struct.pack("<2d", -1, -2)],
        steps__packed=[zlib.compress(struct.pack("<3h", -1, 0, 1))] * 2,
        steps__flags=[b"\x00\x01", b"\x02\x00"],
    )
    source = RldsSource(write_set(tmp_path / "set", [record], steps=STEPS | more))
    columns = source.recording(0).columns
    assert columns["observation/state"].dtype == np.float64
    assert columns["observation/state"].tolist() == [[0, 0.25, 0.5], [1, 1.25, 1.5]]
    assert columns["observation/count"].tolist() == [0, -1]
    assert columns["big"].tolist() == [2**64 - 1, 2] and columns["big"].dtype == np.uint64
    assert columns["small"].tolist() == [[0, 255], [7, 8]] and columns["small"].dtype == np.uint8
    assert columns["signed"].tolist() == [-5, 5] and columns["signed"].dtype == np.int32
    assert columns["half"].tolist() == [[0.5], [2.0]] and columns["half"].dtype == np.float16
    assert columns["brain"].tolist() == [0.5, 2.0] and columns["brain"].dtype == np.float32
    assert columns["label"].tolist() == [2, 0]
    assert columns["pose"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert columns["raw"].tolist() == [[0.1, 1e300], [-1, -2]]
    assert columns["packed"].tolist() == [[-1, 0, 1]] * 2 and columns["packed"].dtype == np.int16
    assert columns["flags"].tolist() == [[False, True], [True, False]]
    assert source.recording(0).instruction == "stapeln bitte: Würfel"


def test_action_of_parts_and_other_instruction(tmp_path: Path) -> None:
    steps = {key: about for key, about in STEPS.items() if key != "language_instruction"}
    steps["action"] = tree({"arm": tensor("float32", 2), "gripper": tensor("float32")})
    observation = STEPS["observation"]["featuresDict"]["features"]
    steps["observation"] = tree({**observation, "natural_language_instruction": {"text": {}}})
    record = episode(
        3,
        steps__action__arm=np.ones((3, 2)),
        steps__action__gripper=np.array([0.0, 1.0, 0.0]),
        steps__observation__natural_language_instruction=[b"open it"] * 3,
    )
    source = RldsSource(write_set(tmp_path / "set", [record], steps=steps))
    one = source.recording(0)
    assert one.columns["action/arm"].shape == (3, 2)
    assert one.columns["action/gripper"].tolist() == [0, 1, 0]
    assert one.instruction == "open it" and "action" not in one.columns


def image_feature(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    return {"image": {"dtype": dtype, "shape": {"dimensions": [str(size) for size in shape]}}}


def test_cameras_by_what_the_pictures_are(tmp_path: Path) -> None:
    wrist = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), np.uint8)
    cameras = {
        "png": image_feature(16, 24, 3),
        "jpeg": image_feature(16, 24, 3),
        "unsized": image_feature(-1, -1, 3),
        "listed": tensor("uint8", 9, 8, 3),
        "packed": tensor("uint8", 9, 8, 3, encoding="zlib"),
        "depth": image_feature(16, 24, 1, dtype="uint16"),
        "sound": {"audio": {}},
    }
    observation = STEPS["observation"]["featuresDict"]["features"]
    pictures = [picture(grey) for grey in (10, 20)]
    record = episode(
        2,
        steps__observation__png=pictures,
        steps__observation__unsized=pictures,
        steps__observation__jpeg=[picture(grey, ending=".jpg") for grey in (10, 20)],
        steps__observation__listed=wrist,
        steps__observation__packed=[zlib.compress(frame.tobytes()) for frame in wrist],
        steps__observation__depth=pictures,
        steps__observation__sound=pictures,
    )
    steps = STEPS | {"observation": tree({**observation, **cameras})}
    source = RldsSource(write_set(tmp_path / "set", [record], steps=steps))
    assert source.info.cameras == {
        "observation/png": Camera(16, 24, "image"),
        "observation/unsized": Camera(16, 24, "image"),
        "observation/jpeg": Camera(16, 24, "video"),
        "observation/listed": Camera(9, 8, "image"),
        "observation/packed": Camera(9, 8, "image"),
    }
    for left_out in ("depth", "sound"):
        assert any(f"observation/{left_out} is neither" in note for note in source.info.notes)
    for name in ("png", "unsized"):
        frames = list(source.frames(0, f"observation/{name}"))
        assert [frame[3, 4].tolist() for frame in frames] == [[200, 10, 10], [200, 20, 20]]
    lossy = list(source.frames(0, "observation/jpeg"))
    assert np.abs(lossy[1][8, 8].astype(int) - [200, 20, 20]).max() <= 3
    for name in ("listed", "packed"):
        np.testing.assert_array_equal(list(source.frames(0, f"observation/{name}")), wrist)


@pytest.mark.parametrize(
    ("last", "kept"),
    [([0.0, 0.0], 3), ([np.nan, 1.0], 3), ([np.inf, 0.0], 3), ([0.0, 0.1], 4)],
)
def test_last_step_is_kept_where_its_action_is_valid(
    tmp_path: Path, last: list[float], kept: int
) -> None:
    record = episode(4, steps__observation__image=[picture(grey) for grey in range(4)])
    record["steps/action"][-1] = last
    observation = STEPS["observation"]["featuresDict"]["features"]
    steps = STEPS | {"observation": tree({**observation, "image": image_feature(16, 24, 3)})}
    source = RldsSource(write_set(tmp_path / "set", [record], steps=steps))
    one = source.recording(0)
    assert len(one) == kept and one.columns["action"].tolist()[:3] == [[1, -1], [2, -2], [3, -3]]
    ending = [False] * (kept - 1) + [True]
    assert one.columns["is_last"].tolist() == one.columns["is_terminal"].tolist() == ending
    assert one.columns["reward"].sum() == (kept == 4)
    frames = list(source.frames(0, "observation/image"))
    assert [int(frame[0, 0, 1]) for frame in frames] == list(range(kept))


def test_zeros_in_one_part_of_the_last_action_only(tmp_path: Path) -> None:
    steps = STEPS | {"action": tree({"arm": tensor("float32", 2), "stop": tensor("int64")})}
    record = episode(3, steps__action__arm=np.zeros((3, 2)), steps__action__stop=np.arange(3))
    assert len(read_all(write_set(tmp_path / "kept", [record], steps=steps))[0]) == 3
    record["steps/action/stop"] = np.array([0, 1, 0])
    assert len(read_all(write_set(tmp_path / "dropped", [record], steps=steps))[0]) == 2


def test_outcome_by_success(tmp_path: Path) -> None:
    records = [
        episode(2, episode_metadata__success=np.array([solved]), episode_metadata__file_path=[path])
        for solved, path in ((1, b"/a/failure/x"), (0, b"/a/success/x"))
    ]
    metadata = {"success": tensor("bool"), "file_path": {"text": {}}}
    recordings = read_all(write_set(tmp_path / "set", records, steps=STEPS, metadata=metadata))
    evidences = [one.evidence for one in recordings]
    assert evidences == [
        Evidence("episode_metadata/success", solved, certain=True) for solved in (True, False)
    ]
    assert judge(evidences) == ("success", "failure")


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/nfs/r2d2/success/2023-07-07/Fri/trajectory.h5", "success"),
        ("/nfs/r2d2/failure/2023-07-07/Fri/trajectory.h5", "failure"),
        (r"C:\r2d2\failure\trajectory.h5", "failure"),
        ("/nfs/successes/trajectory.h5", "unknown"),
        ("/nfs/r2d2/trajectory/success", "unknown"),
        ("/success/failure/trajectory.h5", "unknown"),
    ],
)
def test_outcome_by_the_path_of_droid(tmp_path: Path, path: str, outcome: str) -> None:
    record = episode(2, episode_metadata__file_path=[path.encode()])
    source = RldsSource(write_set(tmp_path / "set", [record], steps=STEPS, name="droid"))
    assert judge([source.recording(0).evidence]) == (outcome,)
    assert source.info.fps == 15 and "droid was published with" in source.info.notes[0]


def test_reward_and_terminal_are_no_evidence(tmp_path: Path) -> None:
    rewards = np.array([0.0, 0.0, 0.0, 0.5])
    records = [episode(4), episode(4, steps__reward=rewards)]
    source = RldsSource(write_set(tmp_path / "set", records, steps=STEPS))
    assert [source.recording(index).evidence for index in range(2)] == [NO_EVIDENCE] * 2
    assert [note for note in source.info.notes if "no evidence of success" in note]
    source = RldsSource(write_set(tmp_path / "dense", records[1:], steps=STEPS))
    assert source.info.notes == ()


def test_several_shards_in_order(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [episode(2)], steps=STEPS)
    for shard, lengths in enumerate(([3], [], [4, 5])):
        content = b"".join(framed(encoded(episode(steps))) for steps in lengths)
        (folder / f"made_up-{shard}.of.3.tfrecord").write_bytes(content)
    info = json.loads((folder / "dataset_info.json").read_text())
    template = "{DATASET}-{SHARD_INDEX}.of.{NUM_SHARDS}.{FILEFORMAT}"
    info["splits"].append(
        {"name": "val", "shardLengths": ["1", "0", "2"], "filepathTemplate": template}
    )
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for shard in range(3):
        (folder / f"made_up-{shard}.of.3.tfrecord").rename(
            folder / f"made_up-{shard:05d}.of.00003.tfrecord"
        )
    source = RldsSource(folder)
    assert source.info.splits == {"train": (0,), "val": (1, 2, 3)}
    assert [len(source.recording(index)) for index in range(4)] == [2, 3, 4, 5]
    assert [source.recording(index).name for index in (0, 1, 3)] == ["train/0", "val/0", "val/2"]


def test_ten_thousand_episodes_open_without_being_read(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [episode(3)], steps=STEPS)
    one = (folder / SHARD).read_bytes()
    damaged = bytearray(one)
    damaged[60] ^= 1
    (folder / SHARD).write_bytes(one + bytes(damaged) * 9_998 + one)
    info = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace('["1"]', '["10000"]'))
    began = time.process_time()
    source = RldsSource(folder)
    assert time.process_time() - began < 2
    assert len(source) == 10_000 and len(source.recording(9_999)) == 3
    with pytest.raises(ValueError, match=r"content of record 5000 of .* checksum"):
        source.recording(5_000)


def test_source_goes_to_other_processes(tmp_path: Path) -> None:
    source = RldsSource(write_set(tmp_path / "set", [episode(2), episode(3)], steps=STEPS))
    source.recording(0)
    assert len(pickle.loads(pickle.dumps(source)).recording(1)) == 3


def test_one_version_only(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        write_set(tmp_path / "set" / version, [episode(2)], steps=STEPS)
    assert rlds.matches(tmp_path / "set") and rlds.matches(tmp_path / "set" / "1.1.0")
    with pytest.raises(ValueError, match=r"it has 1.0.0, 1.1.0; name the folder of one"):
        RldsSource(tmp_path / "set")
    with pytest.raises(ValueError, match=r"expected dataset_info.json in .* name the folder"):
        RldsSource(tmp_path)
    assert not rlds.matches(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset_info.json").write_text('{"splits": {"train": {}}}')
    assert not rlds.matches(tmp_path / "other"), "of another library"


def test_no_such_episode_or_camera(tmp_path: Path) -> None:
    source = RldsSource(write_set(tmp_path / "set", [episode(2)], steps=STEPS))
    with pytest.raises(IndexError, match=r"episode 1 asked for, but .* has 1"):
        source.recording(1)
    with pytest.raises(ValueError, match=r"camera 'left' asked for, but .* has none"):
        source.frames(0, "left")


def edit_info(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    edit(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def edit_features(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    features = json.loads((folder / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    edit(steps["featuresDict"]["features"])
    (folder / "features.json").write_text(json.dumps(features))


def rewrite(folder: Path, **more: Any) -> None:
    (folder / SHARD).write_bytes(framed(encoded(episode(4, **more))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SHARD).unlink(), f"expected the shard .*{SHARD}, .* missing; restore"),
        (
            lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-9]),
            f"all of record 0 of .*{SHARD}, but the file ends within it",
        ),
        (
            lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes() * 2),
            "expected 1 records in .* but 2 came",
        ),
        (lambda f: edit_info(f, lambda i: i.update(fileFormat="array_record")), "'array_record'"),
        (lambda f: edit_info(f, lambda i: i.update(fileFormat="riegeli")), "'riegeli' came"),
        (lambda f: edit_info(f, lambda i: i.update(fileFormat=[[]])), "but a list came"),
        (lambda f: edit_info(f, lambda i: i.pop("name")), "expected a name and a list of splits"),
        (lambda f: edit_info(f, lambda i: i.update(name="../x")), "leads out of the data set"),
        (lambda f: edit_info(f, lambda i: i.update(name="a\ud800")), "leads out of the data set"),
        (
            lambda f: edit_info(f, lambda i: i["splits"][0].update(filepathTemplate="{X}.tf")),
            "asks for 'X', which is not known",
        ),
        (
            lambda f: edit_info(f, lambda i: i["splits"][0].update(shardLengths=["-1"])),
            "the number of records of each shard, but 'train' has not",
        ),
        (lambda f: edit_info(f, lambda i: i.update(splits=[3])), "the number of records of each"),
        (
            lambda f: edit_info(f, lambda i: i["splits"][0].update(shardLengths=[])),
            "expected episodes in .* but it has none",
        ),
        (lambda f: (f / "dataset_info.json").write_text("{"), "a JSON object in .*dataset_info"),
        (lambda f: (f / "features.json").write_text("[]"), "a JSON object in .*features.json"),
        (lambda f: (f / "features.json").write_text("[" * 100_000), "features.json, but it cannot"),
        (
            lambda f: (f / "features.json").write_text(json.dumps(tree({"image": {"image": {}}}))),
            "expected 'steps' in .* but it has 'image'; this is no RLDS",
        ),
        (
            lambda f: (f / "features.json").write_text('{"featuresDict": {"features": 3}}'),
            "expected features below '' in",
        ),
        (
            lambda f: edit_features(f, lambda s: s.update(extra=tensor("float32"))),
            "expected 'steps/extra' in record 0 of .* but it is missing",
        ),
        (
            lambda f: edit_features(f, lambda s: s.update(action=tensor("float32", 3))),
            "expected 3 numbers in each of the 4 steps of 'steps/action' .* but 8 came",
        ),
        (
            lambda f: edit_features(f, lambda s: s.update(action=tensor("int64", 2))),
            "expected numbers of int64 for 'steps/action' .* but numbers of float32 came",
        ),
        (
            lambda f: edit_features(f, lambda s: s.update(reward={"text": {}})),
            "expected bytes for each of the 4 steps of 'steps/reward' .* but 4 numbers of float32",
        ),
        (
            lambda f: rewrite(f, steps__is_last=np.array([0, 0, 0, 2])),
            "expected numbers of bool for 'steps/is_last' .* but 2 came",
        ),
        (lambda f: rewrite(f, steps__language_instruction=[b"a"]), "each of the 4 steps .* but 1"),
        (lambda f: rewrite(f, steps__reward=np.zeros(3)), "expected 1 numbers .* but 3 came"),
        (
            lambda f: (f / SHARD).write_bytes(framed(encoded(episode(0)))),
            "train/0 should have at least one step",
        ),
        (
            lambda f: (f / SHARD).write_bytes(framed(b"\xff\xff")),
            "expected a tf.train.Example in record 0 of",
        ),
        (
            lambda f: (f / "features.json").unlink() or (f / SHARD).write_bytes(framed(b"")),
            "expected one of the keys steps/is_first",
        ),
    ],
)
def test_damage_is_told_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write_set(tmp_path / "set", [episode(4)], steps=STEPS)
    damage(folder)
    assert rlds.matches(folder)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (image_feature(16, 24, 3), [picture(0), b"GIF89a"], "expected a PNG or JPEG for 'steps/c'"),
        (image_feature(16, 24, 3), [picture(0)] * 3, "each of the 2 steps .* but 3 bytes came"),
        (image_feature(16, 24, 3), [b"", b""], "expected PNGs or JPEGs for 'steps/c'"),
        (image_feature(16, 20, 3), [picture(0)] * 2, "expected frames of 16x20 .* but 16x24 came"),
        (
            image_feature(16, 24, 3),
            [picture(0), picture(0, size=(8, 8))],
            "expected frames of 16x24 for 'steps/c' in record 0 of .* but 8x8 came",
        ),
        (image_feature(16, 24, 3), [picture(0), picture(0)[:-20]], "expected a whole PNG for"),
        (
            image_feature(16, 24, 3),
            [picture(0, ending=".jpg"), picture(0, ending=".jpg")[:-20]],
            "expected a whole JPEG for",
        ),
        (
            image_feature(-1, -1, 3),
            [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"IEND"] * 2,
            "at most 67108864 pixels",
        ),
        (
            tensor("uint8", 9, 8, 3, encoding="zlib"),
            [zlib.compress(bytes(1 << 28))] * 2,
            "expected 216 bytes in every step of 'steps/c' .* but 217 came",
        ),
        (
            tensor("uint8", 9, 8, 3, encoding="zlib"),
            [zlib.compress(bytes(216))[:-2]] * 2,
            "expected all of 'steps/c' .* its end is missing",
        ),
        (tensor("uint8", 9, 8, 3, encoding="zlib"), [b"????"] * 2, "as zlib wrote it"),
        (tensor("float64", 2, encoding="bytes"), [b"12"] * 2, "expected 16 bytes .* but 2 came"),
    ],
)
def test_damaged_pictures_and_buffers(
    tmp_path: Path, feature: dict[str, Any], values: list[bytes], message: str
) -> None:
    record = episode(2, steps__c=values)
    folder = write_set(tmp_path / "set", [record], steps=STEPS | {"c": feature})
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def test_absurd_shapes_are_left_out(tmp_path: Path) -> None:
    absurd = {
        "wide": tensor("float32", 10**9, 10**9),
        "long": tensor("float32", 1 << 17),
        "many": tensor("float32", *[1] * 9),
        "negative": tensor("float32", -1),
    }
    source = RldsSource(write_set(tmp_path / "set", [episode(2)], steps=STEPS | absurd))
    left_out = [note.split(" ")[0] for note in source.info.notes if "left out" in note]
    assert left_out == list(absurd) and len(source.recording(0)) == 2


def test_sizes_of_pictures() -> None:
    for ending, kind in ((".png", "png"), (".jpg", "jpeg")):
        sniffed = sniff_image(picture(3, ending=ending, size=(5, 7)))
        assert sniffed is not None
        assert (sniffed.format, sniffed.height, sniffed.width) == (kind, 5, 7)
    assert sniff_image(b"\xff\xd8\xff\xe0\x00\x10") is None and sniff_image(b"") is None
    with pytest.raises(ValueError, match=r"expected a PNG or JPEG for it, but b'' came"):
        decode_image(b"", height=1, width=1, about="it")


def test_flipped_and_missing_bytes(tmp_path: Path) -> None:
    """Whatever happens to a file ends in a sentence; in a shard no change goes unseen."""
    image = {"image": image_feature(16, 24, 3)}
    pictures = [picture(grey) for grey in range(3)]
    records = [episode(3, steps__image=pictures), episode(3, steps__image=pictures)]
    folder = write_set(tmp_path / "set", records, steps=STEPS | image)

    def content() -> list[Any]:
        source = RldsSource(folder)
        return [
            [
                {name: column.tolist() for name, column in source.recording(index).columns.items()},
                [frame.tolist() for frame in source.frames(index, "image")],
            ]
            for index in range(2)
        ]

    assert len(content()) == 2
    rng = np.random.default_rng(0)
    damaged = 0
    for name in (SHARD, "dataset_info.json", "features.json"):
        sound = (folder / name).read_bytes()
        for case in range(120):
            at = int(rng.integers(len(sound)))
            changed = bytearray(sound)
            changed[at] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(sound[:at] if case % 4 == 0 else changed)
            rlds.matches(folder)
            try:
                found = content()
            except ValueError as error:
                assert "\n" not in str(error)
                damaged += 1
            else:
                # The JSON files have no checksum: what they say may become something that fits too.
                assert name != SHARD and len(found) == 2
        (folder / name).write_bytes(sound)
    assert damaged > 200
