"""Videos put end to end without coding them anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.datasets.video import VideoWriter, read_frames
from robot_qsft.datasets.video_copy import VideoSegment, copy_segments

FPS = 10


def film(path: Path, lengths: list[int], *, size: int = 64, encoder: str = "libsvtav1") -> Path:
    """Episodes of so many frames; frame i of the whole is the grey 5 i."""
    writer = VideoWriter(path, fps=FPS, height=size, width=size, encoder=encoder)
    first = 0
    for length in lengths:
        grey = (5 * np.arange(first, first + length) % 255).astype(np.uint8)
        writer.write(np.broadcast_to(grey[:, None, None, None], (length, size, size, 3)))
        first += length
    writer.close()
    return path


def frames(path: Path, first: int, count: int) -> np.ndarray:
    times_s = [(first + step) / FPS for step in range(count)]
    return np.stack(list(read_frames(path, times_s=times_s, fps=FPS)))


def test_stretches_of_several_files_come_out_as_they_were(tmp_path: Path) -> None:
    one, two = film(tmp_path / "1.mp4", [5, 3, 1]), film(tmp_path / "2.mp4", [4, 7])
    segments = [
        VideoSegment(one, 0.5, 3),
        VideoSegment(two, 0.4, 5),  # the last two are left out
        VideoSegment(one, 0.8, 1),
        VideoSegment(one, 0.0, 5),
    ]
    out = tmp_path / "new" / "out.mp4"
    assert copy_segments(out, segments, fps=FPS)
    wanted = [frames(one, 5, 3), frames(two, 4, 5), frames(one, 8, 1), frames(one, 0, 5)]
    np.testing.assert_array_equal(frames(out, 0, 14), np.concatenate(wanted))
    with pytest.raises(ValueError, match=r"no frame at 1\.400 s"):
        frames(out, 0, 15)


@pytest.mark.parametrize(
    ("other", "segment"),
    [
        ({"lengths": [4], "encoder": "libx264"}, (0.0, 4)),
        ({"lengths": [4], "size": 80}, (0.0, 4)),
        ({"lengths": [4]}, (0.1, 3)),  # begins with no key frame
        ({"lengths": [4]}, (0.0, 5)),  # has not so many frames
    ],
)
def test_what_cannot_be_copied_leaves_no_file(
    other: dict, segment: tuple[float, int], tmp_path: Path
) -> None:
    one, two = film(tmp_path / "1.mp4", [4]), film(tmp_path / "2.mp4", **other)
    segments = [VideoSegment(one, 0.0, 4), VideoSegment(two, *segment)]
    out = tmp_path / "out.mp4"
    assert not copy_segments(out, segments, fps=FPS)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"not a video at all"])
def test_what_is_no_video_cannot_be_copied(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(content)
    assert not copy_segments(
        tmp_path / "out.mp4", [VideoSegment(tmp_path / "1.mp4", 0.0, 1)], fps=FPS
    )


def test_edits_do_not_wear_videos_out(
    write_dataset: Callable[..., Path],
    command_line: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    path = write_dataset(
        tmp_path / "set",
        actions=[np.zeros((length, 1)) for length in (5, 3, 4)],
        successes=[True, False, True],
        camera=Camera(64, 64, "video"),
    )
    film(next(path.rglob("*.mp4")), [5, 3, 4])
    before = [np.stack(list(LeRobotSource(path).frames(index, "front"))) for index in range(3)]
    assert command_line("edit", path, "--in-place", "delete", "--episodes", 0)[0] == 0
    assert command_line("edit", path, "--in-place", "merge", "--others", path)[0] == 0
    after = LeRobotSource(path)
    for index, old in enumerate([1, 2, 1, 2]):
        np.testing.assert_array_equal(np.stack(list(after.frames(index, "front"))), before[old])
