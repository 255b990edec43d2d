import io

import av
import cv2
import numpy as np
import pytest

from robot_qsft.film import encode_mp4, film_strip, jpeg, write_mp4


def shades(count, height=32, width=48):
    """A film whose frame t has the grey level 20·t."""
    levels = 20 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def decode(content):
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.average_rate, stream.codec_context.name


def test_video_holds_every_frame_in_order():
    frames, rate, codec = decode(encode_mp4(shades(12), fps=10))
    assert frames.shape == (12, 32, 48, 3)
    assert (rate, codec) == (10, "h264")
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 20 * np.arange(12), atol=3)


def test_odd_sizes_are_made_even():
    frames, _, _ = decode(encode_mp4(shades(3, 31, 33), fps=7.5))
    assert frames.shape == (3, 32, 34, 3)
    np.testing.assert_allclose(frames[2], 40, atol=3)


def test_index_stands_before_the_pictures():
    content = encode_mp4(shades(3), fps=10)
    assert content.index(b"moov") < content.index(b"mdat")


def test_write_leaves_nothing_but_the_video(tmp_path):
    path = tmp_path / "videos" / "film.mp4"
    write_mp4(path, shades(4), fps=10)
    assert [found.name for found in path.parent.iterdir()] == ["film.mp4"]
    assert decode(path.read_bytes())[0].shape[0] == 4


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (shades(0), 10),
        (shades(3), 0),
        (shades(3), float("nan")),
        (shades(3)[..., :1], 10),
        (shades(3).astype(np.float32), 10),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, frames, fps):
    with pytest.raises(ValueError, match=r"(fps|frames) must be"):
        write_mp4(tmp_path / "film.mp4", frames, fps=fps)
    assert not list(tmp_path.iterdir())


def test_strip_of_four_stills_of_seven_frames():
    strip = film_strip(shades(7), count=4)
    assert strip.shape == (32, 4 * 48, 3)
    # Frames 0, 2, 4 and 6.
    assert strip[0, ::48, 0].tolist() == [0, 40, 80, 120]
    with pytest.raises(ValueError, match="count"):
        film_strip(shades(7), count=0)


def test_jpeg_keeps_red_red():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    read_bgr = cv2.imdecode(np.frombuffer(jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(read_bgr[8, 8], [0, 0, 200], atol=4)
