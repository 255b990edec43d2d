"""Replay buffers of diffusion policy, written by the zarr library in folders and zips."""

import json
import pickle
import shutil
import stat
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numcodecs
import numpy as np
import pytest
import zarr
import zarr.storage

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats import diffusion_policy
from robot_qsft.datasets.formats.diffusion_policy import DiffusionPolicySource
from robot_qsft.datasets.outcomes import NO_EVIDENCE
from robot_qsft.datasets.source import Column
from robot_qsft.datasets.video import VideoWriter, choose_encoder

ENDS = (3, 8, 10)
ROWS = np.arange(10, dtype=np.float32)
Write = Callable[..., Path]


def arrays() -> dict[str, np.ndarray]:
    """Row i holds numbers that follow from i, and grey 20 * i in the picture."""
    pictures = np.broadcast_to(20 * ROWS[:, None, None, None], (10, 16, 20, 3))
    return {
        "action": np.stack([ROWS, -ROWS], axis=1),
        "state": ROWS[:, None] + np.arange(5, dtype=np.float64),
        "keypoint": np.arange(10 * 9 * 2, dtype=np.float32).reshape(10, 9, 2),
        "n_contacts": np.arange(1, 11, dtype=np.int32)[:, None],
        "img": pictures.astype(np.uint8),
    }


def write(
    path: Path,
    data: Mapping[str, np.ndarray] | None = None,
    *,
    ends: Any = ENDS,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    compressors: Any = "auto",
    order: str = "C",
    **more: Any,
) -> Path:
    """A hierarchy of zarr format 2 at a path, which is a zip where it ends in .zip."""
    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr writes some members of a zip twice
        root = zarr.open_group(store, mode="w", zarr_format=2)
        every = {f"data/{name}": array for name, array in (data or arrays()).items()}
        for name, array in ({"meta/episode_ends": np.array(ends, np.int64)} | every).items():
            made = root.create_array(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=(chunks or {}).get(name.split("/")[1], array.shape),
                compressors=compressors,
                order=order,
                config={"write_empty_chunks": True},
                **more,
            )
            made[...] = array
        if path.suffix == ".zip":
            root.store.close()
    return path


@pytest.fixture(params=["set.zarr", "set.zarr.zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / request.param, chunks={"img": (1, 16, 20, 3), "action": (4, 1)})


def read_all(path: Path) -> list[Any]:
    source = DiffusionPolicySource(path)
    read = []
    for index in range(len(source)):
        columns = source.recording(index).columns
        frames = {name: list(source.frames(index, name)) for name in source.info.cameras}
        read.append((columns, frames))
    return read


def check_content(path: Path) -> None:
    starts = (0, *ENDS)
    every = arrays()
    for index, (columns, frames) in enumerate(read_all(path)):
        rows = slice(starts[index], ENDS[index])
        for name, column in columns.items():
            np.testing.assert_array_equal(column, every[name][rows])
            assert column.dtype == every[name].dtype
        np.testing.assert_array_equal(frames["img"], every["img"][rows])


def test_columns_cameras_and_episodes(path: Path) -> None:
    assert diffusion_policy.matches(path)
    source = DiffusionPolicySource(path)
    assert source.info.columns == {
        "action": Column("float32", (2,)),
        "state": Column("float64", (5,)),
        "keypoint": Column("float32", (9, 2)),
        "n_contacts": Column("int32", (1,)),
    }
    assert source.info.cameras == {"img": Camera(16, 20, "image")}
    assert source.info.fps is None and source.info.notes == ()
    assert [len(source.recording(index)) for index in range(3)] == [3, 5, 2]
    one = source.recording(1)
    assert one.columns["action"].tolist() == [[3, -3], [4, -4], [5, -5], [6, -6], [7, -7]]
    assert one.name == "episode 1" and one.instruction == "" and one.evidence == NO_EVIDENCE
    assert [frame[0, 0].tolist() for frame in source.frames(2, "img")] == [[160] * 3, [180] * 3]
    check_content(path)
    assert path in source.files() or path / "data/action/0.1" in source.files()
    assert len(pickle.loads(pickle.dumps(source)).recording(0)) == 3


def test_no_such_episode_or_camera(path: Path) -> None:
    source = DiffusionPolicySource(path)
    with pytest.raises(IndexError, match=r"episode 3 asked for, but .* has 3"):
        source.recording(3)
    with pytest.raises(ValueError, match=r"camera 'left' asked for, but .* has img"):
        source.frames(0, "left")


@pytest.mark.parametrize(
    "compressor",
    [
        None,
        numcodecs.Blosc("zstd", shuffle=2),
        numcodecs.Blosc("lz4"),
        numcodecs.Zstd(),
        numcodecs.LZ4(),
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.BZ2(),
    ],
)
@pytest.mark.parametrize("ending", ["zarr", "zip"])
def test_codecs(tmp_path: Path, compressor: Any, ending: str) -> None:
    chunks = {"img": (4, 10, 7, 3), "state": (3, 2), "keypoint": (10, 5, 2)}
    check_content(write(tmp_path / f"a.{ending}", compressors=compressor, chunks=chunks))


def test_fortran_order_other_separator_and_byte_order(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zarr", order="F", chunks={"state": (3, 2)})
    check_content(path)
    path = write(
        tmp_path / "nested.zarr",
        chunk_key_encoding={"name": "v2", "separator": "/"},
        chunks={"state": (3, 2)},
    )
    assert (path / "data/state/0/0").is_file()
    check_content(path)
    big = {"action": ROWS[:, None].astype(">f4"), "flag": ROWS % 2 == 1}
    columns = read_all(write(tmp_path / "big.zarr", big))[0][0]
    assert columns["action"].tolist() == [[0], [1], [2]] and columns["action"].dtype == "float32"
    assert columns["flag"].tolist() == [False, True, False] and columns["flag"].dtype == bool


def test_pictures_of_floats(tmp_path: Path) -> None:
    grey = np.broadcast_to(ROWS[:, None, None, None] * 25, (10, 16, 16, 3)).copy()
    grey[0] = 7.6
    data = {"action": ROWS[:, None], "img": grey, "unit": (grey / 255).astype(np.float32)}
    source = DiffusionPolicySource(write(tmp_path / "set.zarr", data))
    for camera in ("img", "unit"):
        assert source.info.cameras[camera] == Camera(16, 16, "image")
        frames = [frame for index in range(3) for frame in source.frames(index, camera)]
        assert all(frame.dtype == np.uint8 for frame in frames)
        assert [int(frame[0, 0, 0]) for frame in frames] == [8, *range(25, 226, 25)]
    data["unit"][4, 3, 3, 0] = 200
    data["img"][5, 3, 3, 0] = np.nan
    source = DiffusionPolicySource(write(tmp_path / "odd.zarr", data))
    with pytest.raises(ValueError, match=r"pixels from 0 to 1 in data/unit, .* to 200 came"):
        list(source.frames(1, "unit"))
    with pytest.raises(ValueError, match=r"pixels from 0 to 255 in data/img, .* nan to nan came"):
        list(source.frames(1, "img"))


def test_what_is_neither_vector_nor_colour_camera_is_left_out(tmp_path: Path) -> None:
    data = {"action": ROWS[:, None], "depth": np.zeros((10, 300, 300, 1), np.uint16)}
    source = DiffusionPolicySource(write(tmp_path / "set.zarr", data))
    assert set(source.info.columns) == {"action"} and not source.info.cameras
    assert source.info.notes == ("data/depth is neither a colour camera nor a vector: left out",)


def test_pictures_in_jpeg_2000(tmp_path: Path) -> None:
    """Laid out as the codec of diffusion policy does: one picture a chunk, lossy."""
    data = {"action": ROWS[:, None], "img": np.zeros((10, 64, 80, 3), np.uint8)}
    path = write(tmp_path / "set.zarr", data, compressors=None, chunks={"img": (1, 64, 80, 3)})
    edit(path, "data/img", compressor={"id": "imagecodecs_jpeg2k", "level": 50})
    colour = np.zeros((64, 80, 3), np.uint8)
    for row in range(10):
        colour[:] = (200, 100, 20 * row)  # blue first
        (path / f"data/img/{row}.0.0.0").write_bytes(cv2.imencode(".jp2", colour)[1].tobytes())
    source = DiffusionPolicySource(path)
    assert source.info.cameras == {"img": Camera(64, 80, "video")}
    frames = list(source.frames(1, "img"))
    assert len(frames) == 5
    for step, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - [20 * (3 + step), 100, 200]).max() <= 2
    sound = (path / "data/img/3.0.0.0").read_bytes()
    big = cv2.imencode(".jp2", np.zeros((96, 80, 3), np.uint8))[1].tobytes()
    for damaged in (b"", sound[:40], big):
        (path / "data/img/3.0.0.0").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a JPEG 2000 of shape \(64, 80, 3\) in the chunk"):
            list(source.frames(1, "img"))
    edit(path, "data/img", dtype="<u2")
    with pytest.raises(ValueError, match=r"data/img .* to fit together"):
        DiffusionPolicySource(path)


def write_video(file: Path, greys: list[int], *, fps: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(file, fps=fps, height=64, width=64, encoder=choose_encoder())
    for grey in greys:
        writer.write(np.full((1, 64, 64, 3), grey, np.uint8))
    writer.close()


@pytest.fixture
def real_robot(tmp_path: Path) -> Path:
    """Steps at 5 Hz by a clock, videos at 20 Hz whose frame i has grey 10 * i + episode."""
    times_s = 1.7e9 + np.concatenate([np.arange(3) * 0.2, 60 + np.arange(7) * 0.2])
    data = {"action": ROWS[:, None], "timestamp": times_s}
    write(tmp_path / "set/replay_buffer.zarr", data, ends=(3, 10))
    for episode, frames in enumerate((10, 25)):
        greys = [10 * frame + episode for frame in range(frames)]
        write_video(tmp_path / f"set/videos/{episode}/0.mp4", greys, fps=20)
    return tmp_path / "set"


def test_videos_beside_the_zarr(real_robot: Path) -> None:
    assert diffusion_policy.matches(real_robot)
    for path in (real_robot, real_robot / "replay_buffer.zarr"):
        source = DiffusionPolicySource(path)
        assert source.info.fps == 5
        assert source.info.cameras == {"videos/0": Camera(64, 64, "video")}
        # Step t is at 0.2 t seconds, which is frame 4 t.
        for index, steps in enumerate((3, 7)):
            greys = [int(frame[9, 9, 1]) for frame in source.frames(index, "videos/0")]
            wanted = [40 * step + index for step in range(steps)]
            assert len(greys) == steps and np.abs(np.subtract(greys, wanted)).max() <= 1
        assert real_robot / "videos/1/0.mp4" in source.files()


def test_video_that_is_too_short_or_missing(real_robot: Path) -> None:
    write_video(real_robot / "videos/1/0.mp4", [0] * 20, fps=20)
    source = DiffusionPolicySource(real_robot)
    # The last step is at 1.2 s, the last frame at 0.95 s: more than a step between them.
    with pytest.raises(ValueError, match=r"videos/1/0.mp4 has no frame at 1.200 s, .* 0.950 s"):
        list(source.frames(1, "videos/0"))
    (real_robot / "videos/1/0.mp4").unlink()
    with pytest.raises(ValueError, match=r"expected a readable MP4 at .*videos/1/0.mp4"):
        list(source.frames(1, "videos/0"))
    assert len(source.recording(1)) == 7


def test_videos_without_timestamp_are_told_of(real_robot: Path) -> None:
    shutil.rmtree(real_robot / "replay_buffer.zarr/data/timestamp")
    source = DiffusionPolicySource(real_robot)
    assert not source.info.cameras and source.info.fps is None
    assert source.info.notes == ("data/timestamp is missing: the videos are left out",)


def test_ten_thousand_episodes_open_at_once(tmp_path: Path) -> None:
    rows = np.arange(20_000, dtype=np.float32)
    path = write(
        tmp_path / "set.zarr",
        {"action": rows[:, None]},
        ends=np.arange(2, 20_001, 2),
        chunks={"action": (500, 1)},
    )
    (path / "data/action/3.0").write_bytes(b"damaged, but not opened")
    began = time.process_time()
    source = DiffusionPolicySource(path)
    assert time.process_time() - began < 2 and len(source) == 10_000
    assert source.recording(9_999).columns["action"].tolist() == [[19_998], [19_999]]
    with pytest.raises(ValueError, match=r"chunk data/action/3.0 in"):
        source.recording(800)


def edit(path: Path, array: str, **changes: Any) -> None:
    file = path / array / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((3, 8, 9), r"expected 9 rows of data/action .* but 10 came"),
        ((3, 8, 12), r"expected 12 rows of data/action .* but 10 came"),
        ((3, 3, 10), r"to rise with every episode, but that of episode 1 is 3"),
        ((8, 3, 10), r"to rise with every episode, but that of episode 1 is 3"),
        ((0, 3, 10), r"to rise with every episode, but that of episode 0 is 0"),
        ((-2, 3, 10), r"to rise with every episode, but that of episode 0 is -2"),
        ([[3, 10]], r"one per episode, but shape \(1, 2\)"),
    ],
)
def test_ends_that_do_not_fit(tmp_path: Path, ends: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPolicySource(write(tmp_path / "set.zarr", ends=ends))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: edit(p, "data/img", compressor={"id": "imagecodecs_jpegxl"}),
            r"data/img .* but 'imagecodecs_jpegxl' came, .* write the array again with numcodecs",
        ),
        (lambda p: edit(p, "data/img", compressor={"id": "pickle"}), r"but 'pickle' came"),
        (lambda p: edit(p, "data/img", compressor={"id": ["x"]}), r"but one without a name came"),
        (lambda p: edit(p, "data/img", compressor=3), r"but one without a name came"),
        (
            lambda p: edit(p, "data/action", dtype="|O", filters=[{"id": "pickle"}]),
            r"expected numbers in data/action .* dtype is '\|O'; objects .* may hide programs",
        ),
        (lambda p: edit(p, "data/action", filters=[{"id": "pickle"}]), r"no filters .* 'pickle'"),
        (lambda p: edit(p, "data/action", filters=[{"id": "json2"}]), r"no filters .* 'json2'"),
        (lambda p: edit(p, "data/action", filters={"a": 1}), r"no filters .* without a name"),
        (lambda p: edit(p, "data/action", dtype=[["a", "<f4"]]), r"dtype is a structure"),
        (lambda p: edit(p, "data/action", dtype="<U4"), r"dtype is '<U4'"),
        (lambda p: edit(p, "data/action", shape=[10**30, 2]), r"whole numbers below 1099511627776"),
        (lambda p: edit(p, "data/action", shape=[10.0, 2]), r"whole numbers below"),
        (lambda p: edit(p, "data/action", chunks=[0, 2]), r"whole numbers below"),
        (lambda p: edit(p, "data/action", chunks=[1 << 35, 2]), r"at most 1073741824 bytes"),
        (lambda p: edit(p, "data/action", shape=[10, 1 << 39]), r"at most 1073741824 bytes"),
        (
            lambda p: edit(p, "data/img", shape=[10, 1000, 1000, 3], chunks=[1, 1, 1, 3]),
            r"at most 1073741824 bytes",
        ),
        (lambda p: edit(p, "data/action", chunks=[10]), r"to fit together"),
        (lambda p: edit(p, "data/action", order="K"), r"to fit together"),
        (lambda p: edit(p, "data/action", dimension_separator="../"), r"to fit together"),
        (lambda p: edit(p, "data/action", zarr_format=3), r"zarr array of format 2 in data/action"),
        (lambda p: (p / "data/action/.zarray").write_text("{"), r"zarr array of format 2"),
        (lambda p: (p / "data/action/.zarray").write_text("[" * 99_999), r"zarr array of format 2"),
        (lambda p: (p / "data/action/.zarray").write_bytes(bytes(2 << 20)), r"at most 1048576 byt"),
        (lambda p: (p / "data/action/0.0").unlink(), r"chunk data/action/0.0 .* is missing"),
        (lambda p: (p / "data/action/0.0").write_bytes(b""), r"as blosc packed it, .* cut off"),
        (
            lambda p: (p / "data/action/0.0").write_bytes(
                numcodecs.Blosc().encode(np.zeros(1 << 20, np.uint8))
            ),
            r"it claims 1048576 bytes, not 80",
        ),
        (lambda p: (p / "meta/episode_ends/0").unlink(), r"chunk meta/episode_ends/0 .* missing"),
        (lambda p: edit(p, "meta/episode_ends", shape=[0]), r"one per episode, but shape \(0,\)"),
        (lambda p: edit(p, "meta/episode_ends", shape=[1 << 30]), r"one per episode, but shape"),
        (lambda p: edit(p, "meta/episode_ends", dtype="<f8"), r"one per episode, but .* float64"),
        (lambda p: shutil.rmtree(p / "data"), r"expected arrays of numbers below data/"),
        (lambda p: (p / "data/state/.zarray").unlink(), r"'state' below .* to have a file .zarray"),
        (lambda p: shutil.rmtree(p / "meta"), r"expected meta/episode_ends in"),
        (lambda p: edit(p, "data/n_contacts", shape=[10, 0]), r"to fit together"),
    ],
)
def test_damage_is_told_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = write(tmp_path / "set.zarr", compressors=numcodecs.Blosc())
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "codec",
    [numcodecs.Zlib(), numcodecs.GZip(), numcodecs.BZ2(), numcodecs.Zstd(), numcodecs.LZ4()],
)
def test_chunks_that_unpack_to_too_much_or_too_little(tmp_path: Path, codec: Any) -> None:
    path = write(tmp_path / "set.zarr", compressors=codec)
    chunk = path / "data/action/0.0"
    sound = chunk.read_bytes()
    bomb = codec.encode(np.zeros(1 << 20, np.uint8))
    small = codec.encode(np.zeros(79, np.uint8))
    for damaged in (bomb, small, sound[: len(sound) // 2], sound[:3], b""):
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"chunk data/action/0.0 in .* restore"):
            read_all(path)


def test_zarr_format_3_is_refused(tmp_path: Path) -> None:
    for name in ("set.zarr", "set.zip"):
        store = zarr.storage.ZipStore(tmp_path / name, mode="w") if "zip" in name else None
        root = zarr.open_group(store or tmp_path / name, mode="w", zarr_format=3)
        root["meta/episode_ends"] = np.array(ENDS)
        root.store.close()
        assert diffusion_policy.matches(tmp_path / name)
        with pytest.raises(ValueError, match=r"expected zarr format 2 at .* but format 3 came"):
            DiffusionPolicySource(tmp_path / name)


def repacked(path: Path, edit: Callable[[zipfile.ZipFile], object], **how: Any) -> Path:
    """A copy of a zip, every member once, with more in it."""
    copy = path.with_name("copy.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w", **how) as new:
        for name in sorted(set(old.namelist())):
            new.writestr(name, old.read(name))
        edit(new)
    return copy


def link(new: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("data/img/10.0.0.0")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    new.writestr(info, "/etc/passwd")


@pytest.mark.parametrize(
    "climb",
    [
        lambda new: new.writestr("../evil", b"x"),
        lambda new: new.writestr("data/../../evil", b"x"),
        lambda new: new.writestr("/etc/evil", b"x"),
        lambda new: new.writestr("data\\..\\evil", b"x"),
        lambda new: new.writestr("C:/evil", b"x"),
        link,
    ],
)
def test_members_that_climb_out_are_refused(
    tmp_path: Path, climb: Callable[[zipfile.ZipFile], object]
) -> None:
    path = repacked(write(tmp_path / "set.zip", chunks={"img": (1, 16, 20, 3)}), lambda new: None)
    check_content(path)
    with pytest.raises(ValueError, match=r"members within .* leads out of it or is a link"):
        DiffusionPolicySource(repacked(tmp_path / "set.zip", climb))


def test_zip_in_a_folder_of_its_own_and_deflated(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zarr")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                new.write(file, Path("replay_buffer.zarr") / file.relative_to(path))
    check_content(packed)
    with zipfile.ZipFile(packed, "a") as new:
        new.write(path / "meta/episode_ends/.zarray", "other/meta/episode_ends/.zarray")
    with pytest.raises(ValueError, match=r"once in .* but it is there 2 times"):
        DiffusionPolicySource(packed)


def test_zip_bombs_and_other_packings(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zip")
    bomb = bytes(1 << 24)
    packed = repacked(
        path,
        lambda new: new.writestr("data/bomb/.zarray", bomb),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert packed.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"at most 1048576 bytes for data/bomb/.zarray"):
        DiffusionPolicySource(packed)
    packed = repacked(path, lambda new: None, compression=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match=r"stored or deflated and not encrypted"):
        DiffusionPolicySource(packed)


def test_damaged_zips(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zip")
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    assert diffusion_policy.matches(path), "so that opening it tells what is wrong"
    with pytest.raises(ValueError, match=r"expected a whole zip at .* restore it"):
        DiffusionPolicySource(path)
    for content in (b"", b"PK", b"no zip"):
        path.write_bytes(content)
        assert not diffusion_policy.matches(path)
        with pytest.raises(ValueError, match=r"expected a whole zip at"):
            DiffusionPolicySource(path)
    at = sound.index(b"data/action/0.0") + len("data/action/0.0") + 20
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    with pytest.raises(ValueError, match=r"data/action/0.0 in .* it is damaged; restore the zip"):
        read_all(path)


def test_what_is_no_replay_buffer(tmp_path: Path) -> None:
    assert not diffusion_policy.matches(tmp_path)
    assert not diffusion_policy.matches(tmp_path / "nothing")
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=2)
    assert not diffusion_policy.matches(tmp_path / "other.zarr")
    np.savez(tmp_path / "arrays.npz", a=ROWS)
    assert not diffusion_policy.matches(tmp_path / "arrays.npz")


def test_flipped_and_missing_bytes_of_a_zip(tmp_path: Path) -> None:
    """A zip has a checksum for every member: what comes out is as it was, or a sentence comes."""
    path = write(tmp_path / "set.zip", chunks={"img": (2, 16, 20, 3)})
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(300):
        at = int(rng.integers(len(sound)))
        changed = bytearray(sound)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(sound[:at] if case % 5 == 0 else changed)
        diffusion_policy.matches(path)
        try:
            names = set(DiffusionPolicySource(path).info.columns)
            if names == {"action", "state", "keypoint", "n_contacts"}:
                check_content(path)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150


def test_flipped_and_missing_bytes_of_a_folder(tmp_path: Path) -> None:
    """Chunks have no checksum: numbers may change, but never their count, and nothing crashes."""
    codecs = [None, *map(numcodecs.registry.get_codec, [{"id": "blosc"}, {"id": "zstd"}])]
    codecs += [numcodecs.LZ4(), numcodecs.BZ2()]
    rng = np.random.default_rng(0)
    refused = 0
    for codec in codecs:
        path = write(tmp_path / "set.zarr", compressors=codec, chunks={"img": (2, 16, 20, 3)})
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for case in range(80):
            file = files[int(rng.integers(len(files)))]
            sound = file.read_bytes()
            at = int(rng.integers(len(sound)))
            changed = bytearray(sound)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(sound[:at] if case % 5 == 0 else changed)
            diffusion_policy.matches(path)
            try:
                for columns, frames in read_all(path):
                    lengths = {len(values) for values in (*columns.values(), *frames.values())}
                    assert len(lengths) == 1
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
            file.write_bytes(sound)
    assert refused > 100
