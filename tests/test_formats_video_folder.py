"""Folders of videos with a table per episode, made as people make them."""

import csv
import json
import pickle
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats import video_folder
from robot_qsft.datasets.formats.video_folder import VideoFolderSource
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.source import Column
from robot_qsft.datasets.video import VideoWriter, choose_encoder

MAPPING: dict[str, Any] = {
    "fps": 10,
    "table": "{episode}/steps.csv",
    "cameras": {"front": "{episode}/front.mp4"},
    "instruction": "put the cup away",
}


def write_video(file: Path, greys: Sequence[int], *, fps: int = 10, size: int = 64) -> None:
    """One constant grey per frame."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(file, fps=fps, height=size, width=64, encoder=choose_encoder())
    for grey in greys:
        writer.write(np.full((1, size, 64, 3), grey, np.uint8))
    writer.close()


def write_uneven_video(file: Path, greys: Sequence[int], *, times_ms: Sequence[int]) -> None:
    """Frames at times of their own."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"bf": "0"})
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for grey, at in zip(greys, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_csv(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_mapping(folder: Path, **changes: Any) -> None:
    merged = {key: value for key, value in (MAPPING | changes).items() if value is not None}
    (folder / "episodes.yaml").write_text(yaml.safe_dump(merged))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`take_1`, `take_2` and `take_10` of 3, 4 and 5 steps; frame i of take n has grey 20i + n."""
    for take, steps in ((1, 3), (2, 4), (10, 5)):
        at = np.arange(steps)
        columns = {"x": at / 2, "y": -at, "solved": at == 3, "said": [f"cup {take}"] * steps}
        write_csv(tmp_path / f"take_{take}/steps.csv", columns)
        write_video(tmp_path / f"take_{take}/front.mp4", (20 * at + take).tolist())
    write_mapping(tmp_path)
    return tmp_path


def greys(source: VideoFolderSource, index: int, camera: str = "front") -> list[int]:
    return [int(frame[30, 30, 1]) for frame in source.frames(index, camera)]


def assert_close(found: list[int], wanted: list[int]) -> None:
    assert len(found) == len(wanted)
    assert np.abs(np.subtract(found, wanted)).max() <= 1


def read_all(path: Path) -> list[Any]:
    source = VideoFolderSource(path)
    for camera in source.info.cameras:
        for index in range(len(source)):
            list(source.frames(index, camera))
    return [source.recording(index) for index in range(len(source))]


def test_a_folder_per_episode(folder: Path) -> None:
    assert video_folder.matches(folder)
    source = VideoFolderSource(folder)
    assert source.info.fps == 10 and source.info.cameras == {"front": Camera(64, 64, "video")}
    numbers = dict.fromkeys(("x", "y", "solved"), Column("float64"))
    assert source.info.columns == numbers | {"said": Column("string")}
    assert [source.recording(index).name for index in range(3)] == ["take_1", "take_2", "take_10"]
    one = source.recording(1)
    assert one.columns["x"].tolist() == [0, 0.5, 1, 1.5]
    assert one.columns["y"].tolist() == [0, -1, -2, -3] and one.columns["y"].dtype == np.float64
    assert one.columns["solved"].tolist() == [0, 0, 0, 1]
    assert one.columns["said"].tolist() == ["cup 2"] * 4
    assert one.instruction == "put the cup away" and one.evidence == NO_EVIDENCE
    for index, (take, steps) in enumerate(((1, 3), (2, 4), (10, 5))):
        assert_close(greys(source, index), [20 * at + take for at in range(steps)])
    takes = ("take_1", "take_10", "take_2")
    expected = [f"{take}/{file}" for take in takes for file in ("front.mp4", "steps.csv")]
    assert source.files() == (
        folder / "episodes.yaml",
        *(folder / file for file in expected),
    )
    assert len(pickle.loads(pickle.dumps(source)).recording(2)) == 5


def test_a_file_stem_per_episode(tmp_path: Path) -> None:
    for name in ("a", "b.c"):
        rows = [{"q": [1, 2], "pose": [[1, 0], [0, 1]], "ok": True, "note": "x"}] * 2
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        write_video(tmp_path / f"{name}_wrist.mp4", [50, 60])
    write_mapping(tmp_path, table="{episode}.json", cameras={"wrist": "{episode}_wrist.mp4"})
    source = VideoFolderSource(tmp_path)
    assert source.info.columns == {
        "q": Column("float64", (2,)),
        "pose": Column("float64", (2, 2)),
        "ok": Column("float64"),
        "note": Column("string"),
    }
    assert [source.recording(index).name for index in range(2)] == ["a", "b.c"]
    assert source.recording(1).columns["pose"].tolist() == [[[1, 0], [0, 1]]] * 2
    assert_close(greys(source, 1, "wrist"), [50, 60])


def test_json_of_columns_or_steps_with_success(folder: Path) -> None:
    write_mapping(folder, table="{episode}/steps.json")
    contents: list[Any] = [
        {"x": [1, 2, 3], "success": True},
        {"steps": [{"x": 1}, {"x": None}, {"x": 3}, {"x": 4}], "success": 0, "by": {"who": "me"}},
        {"x": [1, 2, 3, 4, 5], "success": None},
    ]
    for take, content in zip((1, 2, 10), contents, strict=True):
        (folder / f"take_{take}/steps.json").write_text(json.dumps(content))
    recordings = read_all(folder)
    np.testing.assert_array_equal(recordings[1].columns["x"], [1, np.nan, 3, 4])
    assert [one.evidence for one in recordings] == [
        Evidence("success", True, certain=True),
        Evidence("success", False, certain=True),
        NO_EVIDENCE,
    ]


def test_success_and_instruction_from_columns(folder: Path) -> None:
    write_mapping(folder, success="solved", instruction={"column": "said"})
    recordings = read_all(folder)
    assert [one.instruction for one in recordings] == ["cup 1", "cup 2", "cup 10"]
    assert [one.evidence for one in recordings] == [
        Evidence("solved", False),
        Evidence("solved", True, 3),
        Evidence("solved", True, 3),
    ]


def test_outcomes_in_a_file_come_first(folder: Path) -> None:
    write_mapping(folder, success="solved")
    (folder / "outcomes.csv").write_text("success, episode\nSuccess,take_1\nfalse,take_2\n,take_10")
    recordings = read_all(folder)
    assert [one.evidence for one in recordings] == [
        Evidence("outcomes.csv", True, certain=True),
        Evidence("outcomes.csv", False, certain=True),
        Evidence("solved", True, 3),
    ]
    assert folder / "outcomes.csv" in VideoFolderSource(folder).files()


def test_nearest_frame_by_time(folder: Path) -> None:
    # Frame i is at 0.1 i seconds.
    times = [0.0, 0.04, 0.06, 0.149, 0.151, 0.3]
    write_csv(folder / "take_1/steps.csv", {"t": times})
    write_video(folder / "take_1/front.mp4", [0, 30, 60, 90])
    write_mapping(folder, timestamp="t", table="{episode}/steps.csv")
    for take in (2, 10):
        (folder / f"take_{take}/steps.csv").unlink()
    assert_close(greys(VideoFolderSource(folder), 0), [0, 0, 30, 30, 60, 90])
    # A clock counts from the first row on.
    write_csv(folder / "take_1/steps.csv", {"t": [1.7e9 + time_s for time_s in times]})
    assert_close(greys(VideoFolderSource(folder), 0), [0, 0, 30, 30, 60, 90])


def test_video_of_uneven_rate(folder: Path) -> None:
    times_ms, shades = [0, 100, 130, 700, 720, 1000], [0, 40, 80, 120, 160, 200]
    write_uneven_video(folder / "take_1/front.mp4", shades, times_ms=times_ms)
    times_s = [0.0, 0.114, 0.116, 0.41, 0.42, 0.709, 0.711, 0.9, 1.0]
    write_csv(folder / "take_1/steps.csv", {"t": times_s})
    for take in (2, 10):
        (folder / f"take_{take}/steps.csv").unlink()
    write_mapping(folder, timestamp="t")
    found = greys(VideoFolderSource(folder), 0)
    assert_close(found, [0, 40, 80, 80, 120, 120, 160, 200, 200])


def test_video_that_a_phone_turned(folder: Path) -> None:
    """The head of the track says that players should turn it by a quarter."""
    half = np.zeros((64, 96, 3), np.uint8)
    half[:, :48] = 200  # the left half is bright
    file = folder / "take_1/front.mp4"
    writer = VideoWriter(file, fps=10, height=64, width=96, encoder=choose_encoder())
    writer.write(np.stack([half] * 3))
    writer.close()
    content = bytearray(file.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    # As a phone held upright has it: x' = height - y, y' = x, a quarter clockwise.
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    content[at : at + len(turned)] = turned
    file.write_bytes(content)
    source = VideoFolderSource(folder)
    assert source.info.cameras == {"front": Camera(96, 64, "video")}
    frame = next(source.frames(0, "front"))
    assert frame.shape == (96, 64, 3)
    assert frame[:40].min() > 190 and frame[56:].max() < 10, "the left half is on top now"


def test_mapping_that_is_missing_is_told(folder: Path) -> None:
    (folder / "episodes.yaml").unlink()
    (folder / "take_1/notes.json").write_text("{}")
    assert video_folder.matches(folder)
    with pytest.raises(ValueError, match=r"expected .*episodes.yaml, .* missing; write it") as told:
        VideoFolderSource(folder)
    assert "\n" not in str(told.value)
    (folder / "episodes.yaml").write_text(str(told.value).split("such as ")[1])
    source = VideoFolderSource(folder)
    assert len(source) == 3 and source.info.fps == 10
    assert_close(greys(source, 0), [1, 21, 41])


def test_mapping_that_is_missing_is_told_of_stems(tmp_path: Path) -> None:
    (tmp_path / "outcomes.csv").write_text("episode,success\n")
    for name in ("run1", "run2"):
        write_csv(tmp_path / f"{name}.csv", {"x": [1, 2]})
        write_video(tmp_path / f"{name}.mp4", [10, 20], fps=15)
        write_video(tmp_path / f"{name}-wrist.mp4", [30, 40], fps=15)
    assert video_folder.matches(tmp_path)
    with pytest.raises(ValueError, match=r"write it, such as") as told:
        VideoFolderSource(tmp_path)
    suggested = str(told.value).split("such as ")[1]
    assert yaml.safe_load(suggested) == {
        "fps": 15,
        "table": "{episode}.csv",
        "cameras": {"wrist": "{episode}-wrist.mp4", "front": "{episode}.mp4"},
        "instruction": "what was asked for",
    }
    (tmp_path / "episodes.yaml").write_text(suggested)
    source = VideoFolderSource(tmp_path)
    assert_close(greys(source, 1, "wrist"), [30, 40])


def test_what_is_no_folder_of_videos(tmp_path: Path) -> None:
    assert not video_folder.matches(tmp_path) and not video_folder.matches(tmp_path / "nothing")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/steps.csv").touch()
    assert not video_folder.matches(tmp_path), "a video without a table beside it"
    with pytest.raises(
        ValueError, match=r"write it, such as \{fps: 30.0, table: '\{episode\}/steps"
    ):
        VideoFolderSource(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder at"):
        VideoFolderSource(tmp_path / "a.mp4")


def test_ten_thousand_episodes_open_at_once(folder: Path) -> None:
    table = (folder / "take_1/steps.csv").read_text()
    for take in range(100, 10_097):
        (folder / f"take_{take}").mkdir()
        (folder / f"take_{take}/steps.csv").write_text(table if take == 10_096 else "damaged, but")
    began = time.process_time()
    assert video_folder.matches(folder)
    source = VideoFolderSource(folder)
    assert time.process_time() - began < 2 and len(source) == 10_000
    assert len(source.recording(9_999)) == 3


def test_no_such_episode_or_camera(folder: Path) -> None:
    source = VideoFolderSource(folder)
    with pytest.raises(IndexError, match=r"episode 3 asked for, but .* has 3"):
        source.recording(3)
    with pytest.raises(ValueError, match=r"camera 'left' asked for, but .* has front"):
        source.frames(0, "left")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": None}, r"expected fps, .* but None came"),
        ({"fps": 0}, r"expected fps, .* but 0 came"),
        ({"fps": True}, r"expected fps, .* but True came"),
        ({"fps": "fast"}, r"expected fps, .* but 'fast' came"),
        ({"fps": float("nan")}, r"expected fps, .* but nan came"),
        ({"table": None}, r"pattern with \{episode\} for 'table' .* but None came"),
        ({"table": "steps.csv"}, r"pattern with \{episode\} for 'table' .* but 'steps.csv' came"),
        ({"table": "../{episode}.csv"}, r"pattern within the folder for 'table' .* leads out"),
        ({"table": "/tmp/{episode}.csv"}, r"pattern within the folder for 'table' .* leads out"),
        ({"table": "C:/{episode}.csv"}, r"pattern within the folder for 'table' .* leads out"),
        ({"table": "{episode}\\..\\x.csv"}, r"pattern within the folder for 'table' .* leads out"),
        ({"table": "{episode}/a\0.csv"}, r"pattern within the folder for 'table' .* leads out"),
        ({"table": "{episode}.xlsx"}, r"to end in .csv or .json, but '\{episode\}.xlsx' does not"),
        ({"table": "tables/{episode}.csv"}, r"expected a folder for the tables"),
        ({"table": "{episode}/other.csv"}, r"expected tables '\{episode\}/other.csv' .* none"),
        ({"cameras": ["front"]}, r"cameras in .* to map names to patterns"),
        (
            {"cameras": {"front": "{episode}/../../x.mp4"}},
            r"within the folder for 'front' .* leads",
        ),
        ({"cameras": {"front": 3}}, r"pattern with \{episode\} for 'front' .* but 3 came"),
        ({"cameras": {"front": "{episode}/no.mp4"}}, r"a readable MP4 at .*take_1/no.mp4"),
        ({"instruction": 5}, r"expected text for instruction .* but 5 came; put it in quotes"),
        ({"instruction": {"col": "x"}}, r"expected text for instruction .* but a dict came"),
        ({"instruction": {"column": "no"}}, r"string in the column 'no', .* no such column came"),
        ({"instruction": {"column": "x"}}, r"string in the column 'x', .* but float64 came"),
        ({"success": "said"}, r"float64 in the column 'said', .* for success, .* but string came"),
        ({"timestamp": "no"}, r"float64 in the column 'no', .* for timestamp, .* no such column"),
        ({"rate": 3}, r"expected no keys but fps, .* but 'rate' came"),
    ],
)
def test_mappings_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_mapping(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5_000, r"expected YAML in"),
        ("fps: !!timestamp x", r"expected YAML in"),
        ("fps: !!python/object/apply:os.getcwd []", r"expected YAML in"),
        ("fps: 2001-99-99", r"expected YAML in"),
        ("- 3", r"but it has no keys; add them"),
        ("", r"but it has no keys; add them"),
        ("fps: &a [*a]", r"expected fps, .* but a list came"),
        ("x" * 70_000, r"expected at most 65536 bytes"),
        ("\x00", r"expected YAML in"),
    ],
)
def test_mappings_that_are_damaged(folder: Path, text: str, message: str) -> None:
    (folder / "episodes.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "take_1/steps.csv").write_text(""), r"a line of names in .* is empty"),
        (lambda f: (f / "take_1/steps.csv").write_text("x\n"), r"at least 1, in .* 'x' has 0 came"),
        (lambda f: (f / "take_1/steps.csv").write_text("x,x\n1,2"), r"every name once in"),
        (lambda f: (f / "take_1/steps.csv").write_text("x,y\n1"), r"expected 2 cells in row 0"),
        (lambda f: (f / "take_1/steps.csv").write_text('x\n"1'), r"expected a CSV in"),
        (lambda f: (f / "take_1/steps.csv").write_bytes(b"x\n\xff"), r"expected text in UTF-8"),
        (
            lambda f: replace(f / "take_2/steps.csv", "1.5,", "much,"),
            r"a number in column 'x' of .*take_2/steps.csv at step 3, as in the first episode",
        ),
        (
            lambda f: replace(f / "take_2/steps.csv", "x,y", "x,z"),
            r"a column 'y' in .*take_2/steps.csv, as in the first episode",
        ),
        (
            lambda f: write_video(f / "take_2/front.mp4", [0] * 5),
            r"one frame per row in .*take_2/front.mp4, but it has 5 frames and the table 4",
        ),
        (
            lambda f: write_video(f / "take_2/front.mp4", [0] * 3),
            r"one frame per row in .*take_2/front.mp4, but it has 3 frames and the table 4",
        ),
        (
            lambda f: write_video(f / "take_2/front.mp4", [0] * 4, size=96),
            r"frames of 64x64 in .*take_2/front.mp4, as in the first episode, but 96x64 came",
        ),
        (lambda f: (f / "take_2/front.mp4").unlink(), r"a readable MP4 at .*take_2/front.mp4"),
        (lambda f: (f / "take_2/front.mp4").write_bytes(b"x"), r"a readable MP4 at .*take_2"),
        (
            lambda f: (f / "take_2/front.mp4").write_text(
                "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n../take_1/front.mp4\n#EXT-X-ENDLIST\n"
            ),
            r"a readable MP4 at .*take_2/front.mp4",
        ),
        (
            lambda f: (f / "outcomes.csv").write_text("name,success\ntake_1,1"),
            r"the columns 'episode' and 'success' in .*outcomes.csv, but it has 'name', 'success'",
        ),
        (
            lambda f: (f / "outcomes.csv").write_text("episode,success\ntake_1,maybe"),
            r"true or false for 'success' in .*outcomes.csv, but 'maybe' came",
        ),
    ],
)
def test_damage_is_told_in_one_sentence(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected JSON in"),
        ("[" * 99_999, r"expected JSON in"),
        ("3", r"a list of steps or an object of columns"),
        ("[]", r"at least 1, in .* but no column came"),
        ("[3]", r"a list of steps or an object of columns"),
        ('[{"x": 1}, {"y": 1}]', r"the same names in every step of .* but step 1 has others"),
        ('{"x": [1, 2, 3], "y": [1]}', r"one length, .* 'x' has 3, 'y' has 1 came"),
        (
            '{"x": [[1], [1, 2], [1]]}',
            r"vectors of one length in column 'x' .* \(1,\), \(2,\) came",
        ),
        ('{"x": [1, {"a": 1}, 2]}', r"text or numbers in column 'x' .* lists or objects came"),
        ('{"x": [1, 2, 3], "success": {"a": 1}}', r"'success' .* but a list or an object came"),
        ('{"x": [1, 2, 3], "success": "maybe"}', r"'success' .* but 'maybe' came"),
    ],
)
def test_json_that_is_damaged(folder: Path, content: str, message: str) -> None:
    write_mapping(folder, table="{episode}/steps.json")
    (folder / "take_1/steps.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 0.1, 0.6], r"has no frame at 0.600 s, its last being at 0.200 s"),
        ([-0.2, 0, 0.1], r"has no frame at -0.200 s"),
        ([0, 0.2, 0.1], r"times that do not descend"),
        ([0, "", 0.1], r"times that do not descend"),
        ([0, "inf", 0.1], r"times that do not descend"),
    ],
)
def test_times_that_do_not_fit(folder: Path, times: list[Any], message: str) -> None:
    write_csv(folder / "take_1/steps.csv", {"t": times})
    write_mapping(folder, timestamp="t")
    with pytest.raises(ValueError, match=message):
        list(VideoFolderSource(folder).frames(0, "front"))


def test_flipped_and_missing_bytes(folder: Path) -> None:
    """Videos and tables have no checksum; but nothing crashes, and no frame or row goes missing."""
    rng = np.random.default_rng(0)
    refused = 0
    files = ["episodes.yaml", "take_2/steps.csv", "take_2/front.mp4"]
    for case in range(240):
        file = folder / files[case % 3]
        sound = file.read_bytes()
        at = int(rng.integers(len(sound)))
        changed = bytearray(sound)
        changed[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(sound[:at] if case % 4 == 0 else changed)
        video_folder.matches(folder)
        try:
            source = VideoFolderSource(folder)
            index = next(
                index for index in range(len(source)) if source.recording(index).name == "take_2"
            )
            for camera in source.info.cameras:
                assert len(list(source.frames(index, camera))) == len(source.recording(index))
        except ValueError as error:
            assert not re.search(r"[\n\r]", str(error))
            refused += 1
        file.write_bytes(sound)
    assert refused > 80
