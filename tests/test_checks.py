"""Checks of single episodes, cameras and whole sets, on arrays."""

import numpy as np
import pytest

from robot_qsft.datasets.action_checks import ActionRanges, Alignment, matching_entries
from robot_qsft.datasets.checks import (
    Finding,
    check_finite,
    check_instructions,
    check_length,
    check_outcomes,
    check_rewards,
    check_timestamps,
)
from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.frame_checks import Motion, check_frames


def summary(findings: list[Finding]) -> list[tuple[str, str, int | None]]:
    return [(one.severity, one.code, one.step) for one in findings]


@pytest.mark.parametrize(("steps", "short"), [(1, True), (2, True), (3, False)])
def test_one_or_two_steps_are_short(steps, short):
    assert bool(check_length(steps, episode=7)) == short


def test_nan_is_found_in_every_column_of_numbers():
    text = np.array(["nan", "b", "c"], object)
    one, two = np.zeros(3), np.ones((3, 2, 2), np.float32)
    clean = {"text": text, "flag": np.array([True] * 3), "one": one, "two": two}
    assert check_finite(clean, episode=0) == []
    one[2], two[1, 1, 0] = np.inf, np.nan
    found = check_finite(clean, episode=4)
    assert summary(found) == [("error", "not-finite", 2), ("error", "not-finite", 1)]
    assert "'two' holds NaN or infinity in 1 of 3 rows" in found[1].message
    assert {one.episode for one in found} == {4}


@pytest.mark.parametrize(
    ("times", "fps", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], 10, []),
        ([5, 5.11, 5.19, 5.3], 10, []),  # some jitter, and a start that is not 0
        ([0, 100, 200, 300], 10, []),  # milliseconds
        ([0, 0.1, 0.2, 0.3], None, []),
        ([0, 0.1, 0.4, 0.5], 10, [("warning", "timestamp-gap", 2)]),
        ([0, 0.1, 0.2, 0.3, 0.6], None, [("warning", "timestamp-gap", 4)]),
        ([0, 0.1, 0.1, 0.2], 10, [("error", "timestamp-repeated", 2)]),
        ([0, 0.1, 0.101, 0.2, 0.3], 10, [("error", "timestamp-repeated", 2)]),
        ([0, 0.1, 0.2, 0.0], 10, [("error", "timestamp-backwards", 3)]),
        ([0, 0, 0, 0], 10, [("error", "timestamp-repeated", 1)]),
        ([0, 0.05, 0.1, 0.15], 10, [("error", "timestamp-rate", None)]),
        ([0.3], 10, []),
        ([0, np.nan, 1], 10, []),  # told by check_finite
        ([-1e308, 1e308, 0], 10, []),
    ],
)
def test_timestamps(times, fps, expected):
    assert summary(check_timestamps(np.array(times), fps=fps, episode=0)) == expected


def test_a_gap_tells_how_many_frames_are_missing():
    times = np.array([0, 0.1, 0.4, 0.5, 0.7, 0.8], np.float32)
    (found,) = check_timestamps(times, fps=10, episode=0)
    assert "2 gaps, of up to 3 steps: about 3 frames are missing" in found.message


@pytest.mark.parametrize(
    ("rewards", "success_frame", "expected"),
    [
        ([0, 0, 1], 2, []),
        ([0, 0, 0], None, []),
        ([0.25, 0.25, 0.5], None, []),
        ([0, 0, 1], 0, []),  # paid once, though late
        ([0, 1, 1], None, [("warning", "reward-repeated", 2)]),
        ([0, 0.5, 0.5], 1, [("warning", "reward-repeated", 2)]),
        ([0.5, 0.75, 0.5], None, [("warning", "return-above-one", None)]),
        ([0, -0.5, 1], None, [("warning", "reward-negative", 1)]),
        ([np.nan, 0, 9], None, []),  # told by check_finite
        ([1e308, 1e308, 0], None, []),
    ],
)
def test_rewards(rewards, success_frame, expected):
    found = check_rewards(np.array(rewards), success_frame=success_frame, episode=0, name="r")
    assert summary(found) == expected


def test_outcomes():
    assert check_outcomes({0: "success", 1: "failure"}) == []
    assert check_outcomes({}) == []
    assert check_outcomes({0: "success"}) == []  # one episode cannot have two outcomes
    (found,) = check_outcomes({3: "failure", 5: "failure"})
    assert (found.code, "end in failure" in found.message) == ("one-outcome", True)
    unknown = check_outcomes({0: "success", 4: "unknown", 7: "failure", 8: "unknown"})
    assert summary(unknown) == [("warning", "outcome-unknown", None)]
    assert "2 of 4 episodes" in unknown[0].message
    assert "the first is 4" in unknown[0].mend


def test_instructions():
    assert check_instructions({0: "pick the cube", 1: "place the cube"}) == []
    nothing = check_instructions({0: "", 1: " "})
    assert [(one.severity, one.episode) for one in nothing] == [("note", None)]
    missing = check_instructions({0: "pick", 1: "", 2: "pick"})
    assert [(one.severity, one.code, one.episode) for one in missing] == [
        ("warning", "instruction-empty", 1)
    ]
    (spelt,) = check_instructions({0: "Pick cube.", 1: "pick  cube", 2: "Pick cube.", 3: "place"})
    assert (spelt.severity, spelt.code, spelt.episode) == ("note", "instruction-variants", 1)
    assert "'Pick cube.' (2×), 'pick  cube' (1×)" in spelt.message


def ranges(*episodes: np.ndarray, names=("a", "b")) -> list[str]:
    gathered = ActionRanges(names)
    for actions in episodes:
        gathered.add(actions)
    return [f"{one.code} {one.message}" for one in gathered.findings()]


def test_a_dimension_that_never_changes_is_constant(rng):
    varied = rng.normal(size=(30, 1))
    still = np.full((30, 1), 0.5)
    (found,) = ranges(np.hstack([still[:15], varied[:15]]), np.hstack([still[15:], varied[15:]]))
    assert found == "action-constant action dimension 'a' is 0.5 in all 30 rows"
    # Constant in each episode, but not over the set.
    assert ranges(np.hstack([still, varied]), np.hstack([still + 1, varied])) == []
    assert ranges(np.zeros((9, 2))) == []  # too little to tell


def test_a_dimension_that_is_cut_off_is_saturated(rng):
    free, wide = rng.normal(size=(2, 100))
    cut = np.clip(wide, -1, 0.5)  # 16% and 31% of a normal distribution lie beyond
    low, high = (cut == -1).mean(), (cut == 0.5).mean()
    (found,) = ranges(*np.stack([free, cut], axis=1).reshape(4, 25, 2))
    assert found == (
        "action-saturated action dimension 'b' is exactly at its least value -1 in "
        f"{low:.0%} of the rows and at its greatest 0.5 in {high:.0%}"
    )
    # The same of a gripper, or where few values are all there is.
    assert ranges(np.stack([free, cut], axis=1), names=("a", "gripper")) == []
    assert ranges(np.stack([free, np.sign(wide)], axis=1)) == []


def test_extremes_met_before_a_greater_one_do_not_count():
    gathered = ActionRanges(("a",))
    gathered.add(np.ones((20, 1)))
    gathered.add(np.arange(20.0)[:, None])  # 1 is no extreme any more
    assert gathered.findings() == []


def test_entries_match_by_name_or_else_by_order():
    assert matching_entries(("y", "z"), ("x", "y", "q")) == (("y", 0, 1),)
    assert matching_entries(("a", "b", "c"), ("x", "y")) == (("a", 0, 0), ("b", 1, 1))


def aligned(kind: str, shift: int, rng: np.random.Generator, *, follow: float = 1.0) -> Alignment:
    """Ten episodes of 60 rows whose states are read `shift` rows after the right moment."""
    gathered = Alignment((("x", 0, 0), ("y", 1, 1)))
    for _ in range(10):
        moves = rng.normal(size=(66, 2))
        for row in range(1, len(moves)):  # neighbouring moves are alike, as a hand's are
            moves[row] += 0.7 * moves[row - 1]
        if kind == "delta":
            actions, states = moves[:-1], 0.05 * np.cumsum(moves, axis=0)[:-1]
            states = np.vstack([np.zeros((1, 2)), states[:-1]])
        else:
            actions, states = np.cumsum(moves, axis=0), np.zeros((66, 2))
            for row in range(65):
                states[row + 1] = states[row] + follow * (actions[row] - states[row])
        first, last = 3, 60
        gathered.add(actions[first:last], states[first + shift : last + shift])
    return gathered


@pytest.mark.parametrize("kind", ["delta", "absolute"])
@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_the_shift_of_actions_is_found(kind, shift, rng):
    gathered = aligned(kind, shift, rng)
    # States read late show what their action did already: its effect comes early.
    assert [one.rows for one in gathered.shifts()] == [-shift, -shift]
    assert all(one.correlation > 0.99 for one in gathered.shifts())
    found = gathered.findings()
    if shift == 0:
        assert found == []
        return
    assert summary(found) == [("warning", "action-shifted", None)]
    place = "before" if shift > 0 else "after"
    assert f"{abs(shift)} row{'s' if abs(shift) > 1 else ''} {place} them" in found[0].message


def test_a_slow_robot_is_a_note_and_no_fault(rng):
    found = aligned("absolute", 0, rng, follow=0.35).findings()
    assert [one.severity for one in found] in ([], ["note"])
    # Read two rows before the right moment, its answer is spread over the rows around these.
    late = aligned("absolute", -1, rng, follow=0.6).findings()
    assert summary(late) == [("note", "action-delayed", None)]


@pytest.mark.parametrize("seed", range(20))
def test_unrelated_actions_and_states_are_never_shifted(seed):
    rng = np.random.default_rng(seed)
    gathered = Alignment(tuple((str(entry), entry, entry) for entry in range(7)))
    for _ in range(8):
        walks = rng.normal(size=(2, 100, 7)).cumsum(axis=1)
        smooth = np.stack([np.convolve(one, np.ones(15) / 15, "same") for one in walks[0].T], 1)
        gathered.add(smooth if seed % 2 else walks[0], walks[1])
    assert gathered.shifts() == []


def test_too_few_rows_show_no_shift(rng):
    gathered = Alignment((("x", 0, 0),))
    moves = rng.normal(size=(150, 1))
    gathered.add(moves, np.cumsum(moves, axis=0))
    assert gathered.shifts() == []
    gathered.add(moves, np.full((150, 1), 1e300))
    assert gathered.shifts() == []


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


CAMERA = Camera(32, 56, "image")
STEPS = 40


def pictures(steps: int = STEPS) -> np.ndarray:
    """A bright square that goes right by a pixel per step."""
    images = np.full((steps, 32, 56, 3), 90, np.uint8)
    for step in range(steps):
        images[step, 12:20, step : step + 6] = (220, 40, 40)
    return images


def motion(steps: int = STEPS) -> Motion:
    values = np.linspace(0, 1, steps)[:, None] * [1.0, -2.0]
    return Motion(values, np.array([1.0, 2.0]))


def look(images, moving: Motion | None, *, stored: Camera = CAMERA) -> list[Finding]:
    return check_frames(
        iter(images), steps=STEPS, camera="front", stored=stored, motion=moving, fps=10, episode=2
    )


def test_a_camera_that_sees_the_robot_move_is_alive():
    assert look(pictures(), motion()) == []


def test_a_camera_that_stands_still_while_the_robot_moves_is_frozen():
    images = pictures()
    images[20:] = images[20]
    found = look(images, motion())
    assert summary(found) == [("warning", "camera-frozen", 20)]
    assert "20 of 40 frames" in found[0].message
    still = motion()
    still.values[20:] = still.values[20]
    assert look(images, still) == []
    # Four frames, and not half a second: too short.
    images = pictures()
    images[20:24] = images[20]
    assert "camera-frozen" not in {one.code for one in look(images, motion())}


def test_noise_of_a_still_robot_is_no_motion(rng):
    noise = Motion(rng.normal(size=(STEPS, 2)) * 1e-3, np.array([1.0, 1.0]))
    assert look(np.repeat(pictures(1), STEPS, axis=0), noise) == []
    gripper = Motion(np.linspace(0, 1, STEPS)[:, None] * [0.0, 1.0], np.array([1.0, 1.0]))
    assert look(np.repeat(pictures(1), STEPS, axis=0), gripper) == []


def test_a_frame_recorded_twice_is_found():
    images = pictures()
    images[7] = images[6]
    assert summary(look(images, motion())) == [("note", "frames-repeated", 7)]
    # A camera at half the rate.
    images = pictures()
    images[1::2] = images[::2]
    found = look(images, motion())
    assert summary(found) == [("warning", "frames-repeated", 3)]  # the robot starts in row 1
    assert "repeats the frame before in 19 of 40 steps" in found[0].message


def test_video_repeats_within_the_noise_of_its_codec(rng):
    video = Camera(32, 56, "video")
    frozen = np.repeat(pictures(1), STEPS, axis=0).astype(int)
    frozen[::2] += 5  # key frames are drawn a little brighter
    frozen += rng.integers(-1, 2, frozen.shape)
    images = frozen.astype(np.uint8)
    assert summary(look(images, motion(), stored=video)) == [("warning", "camera-frozen", 0)]
    assert look(images, motion()) == []  # stored whole, they do differ
    # A step that the encoder put off is no fault, but every second one is.
    images = np.repeat(pictures()[::2], 2, axis=0)
    images[:, :8] = 90 + 80 * (np.arange(STEPS) // 2 % 2)[:, None, None, None]
    assert summary(look(images, motion(), stored=video)) == [("warning", "frames-repeated", 3)]
    single = pictures()[:, :, ::-1].copy()
    single[:, :8] = (np.arange(STEPS) * 37 % 200)[:, None, None, None]
    single[9] = single[8]
    assert look(single, motion(), stored=video) == []


def test_frames_that_are_too_few_or_of_another_size_or_damaged():
    assert summary(look(pictures(30), None)) == [("error", "frames-missing", 30)]
    assert summary(look(pictures(41), None)) == [("error", "frames-missing", 40)]
    wrong = list(pictures())
    wrong[5] = np.zeros((16, 24, 3), np.uint8)
    found = look(wrong, motion())
    assert summary(found) == [("error", "frame-size", 5)]
    assert "should be 32x56, but 16x24 came" in found[0].message

    def damaged():
        yield from pictures(12)
        raise ValueError("x.mp4 is cut\n off; restore it")

    found = look(damaged(), motion())
    assert summary(found) == [("error", "frames-unreadable", 12)]
    assert found[0].message == "camera 'front' cannot be read: x.mp4 is cut off; restore it"
