import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.recipes import attempts
from robot_qsft.sim.rollouts import rollouts

CONFIG = PyBulletConfig("Stitch")


def count(images, colour):
    """Pixels of a saturated colour in each image: red cube, green goal, yellow hand."""
    red, green, blue = (images[..., channel].astype(int) for channel in range(3))
    return {
        "red": (red > 2 * green) & (red > 2 * blue) & (red > 90),
        "green": (green > 2 * red) & (green > 2 * blue) & (green > 60),
        "yellow": (red > 3 * blue) & (green > 2 * blue) & (green > 60),
    }[colour].sum((-2, -1))


def test_cube_goal_and_hand_are_seen_all_the_way():
    """Approach, grasp, lift, carry and release; at the end the cube hides part of the goal."""
    for rollout in rollouts(attempts("expert", CONFIG, episodes=8, seed=1), workers=1):
        frames = rollout.episode.images["front"]
        assert rollout.episode.success
        assert frames.shape[1:] == (64, 64, 3)
        assert (count(frames, "red") >= 9).all()
        assert (count(frames, "green") >= 12).all()
        assert (count(frames, "yellow") >= 60).all()


def test_cube_in_picture_moves_with_the_cube():
    environment = make_environment(CONFIG)
    places = []
    for seed in range(12):
        observation, _ = environment.reset(seed=seed)
        image = observation["images"]["front"].astype(int)
        red = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 90)
        rows, columns = np.nonzero(red)
        places.append([*observation["environment_state"][:2], rows.mean(), columns.mean()])
    x, y, row, column = np.array(places).T
    # The camera faces the robot: nearer to it is further down, robot's left is right.
    assert np.corrcoef(x, row)[0, 1] > 0.9
    assert np.corrcoef(y, column)[0, 1] > 0.9


def test_wrist_camera_sees_the_cube_in_the_gripper():
    config = PyBulletConfig("Stitch", cameras=("wrist",), start="gripper")
    observation, _ = make_environment(config).reset(seed=0)
    assert count(observation["images"]["wrist"], "red") >= 100


def test_low_poly_arm_stands_where_the_stock_one_does():
    images = [
        make_environment(replace(CONFIG, low_poly=low_poly)).reset(seed=2)[0]["images"]["front"]
        for low_poly in (True, False)
    ]
    for colour in ("red", "green"):
        assert count(images[0], colour) == count(images[1], colour)
    backgrounds = [(image == image[-1, 0]).all(-1) | (image.min(-1) == 255) for image in images]
    assert (backgrounds[0] == backgrounds[1]).mean() > 0.97


def test_pictures_are_read_from_builds_without_numpy(monkeypatch):
    environment = make_environment(CONFIG)
    expected = environment.reset(seed=0)[0]["images"]["front"]
    client = environment._scene._client
    draw = client.getCameraImage

    def as_tuples(*arguments, **options):
        width, height, pixels, *rest = draw(*arguments, **options)
        return width, height, tuple(np.ravel(pixels).tolist()), *rest

    monkeypatch.setattr(client, "getCameraImage", as_tuples)
    np.testing.assert_array_equal(environment.render(), expected)


def test_no_camera_means_no_images():
    observation, _ = make_environment(replace(CONFIG, cameras=())).reset(seed=0)
    assert "images" not in observation


EGL = """
from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.pybullet.config import PyBulletConfig
import numpy as np
try:
    environment = make_environment(PyBulletConfig("Stitch", renderer="egl"))
except ValueError as error:
    print("absent:", error)
else:
    image = environment.reset(seed=2)[0]["images"]["front"]
    np.save(__import__("sys").argv[1], image)
"""


def test_egl_draws_the_same_things_or_says_what_is_missing(tmp_path):
    # In a process of its own: a broken driver may end the process, and drivers print.
    target = tmp_path / "image.npy"
    result = subprocess.run(
        [sys.executable, "-c", EGL, str(target)], capture_output=True, text=True, timeout=60
    )
    if not target.exists():
        assert "install libegl1" in result.stdout, result.stderr
        pytest.skip("no EGL driver on this machine")
    image = np.load(target)
    tiny = make_environment(replace(CONFIG, renderer="tiny")).reset(seed=2)[0]["images"]["front"]
    for colour in ("red", "green", "yellow"):
        assert count(image, colour) == pytest.approx(count(tiny, colour), rel=0.4)
