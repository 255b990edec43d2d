"""Sources seen through a field map: cuts, resampling, outcomes and rewards; by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.field_map import FieldMap, Part, SuccessRule
from robot_qsft.datasets.labels import Label, apply_labels
from robot_qsft.datasets.mapped import MappedEpisode, MappedSource, settle, to_episode
from robot_qsft.datasets.outcomes import (
    NO_EVIDENCE,
    Evidence,
    flag_evidence,
    reward_evidence,
)
from robot_qsft.datasets.source import (
    Column,
    EncodedFrames,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
    string_column,
)

ACTION = (Part("act", kind="delta"),)


class FakeSource:
    """Episodes in memory; frame t of its camera is of grey t."""

    path = Path("/somewhere/fake")

    def __init__(self, *episodes: dict[str, Any], fps: float | None = 10, **evidence: Any) -> None:
        arrays = [
            {
                name: string_column(column) if isinstance(column[0], str) else np.asarray(column)
                for name, column in episode.items()
            }
            for episode in episodes
        ]
        self.recordings = [
            Recording(f"demo_{i}", columns, "lift", evidence.get("evidence", NO_EVIDENCE))
            for i, columns in enumerate(arrays)
        ]
        self.frames_there = len(self.recordings[0])
        self.info = SourceInfo(
            format="fake",
            columns={
                name: Column("string")
                if column.dtype == object
                else Column(column.dtype.name, column.shape[1:])
                for name, column in arrays[0].items()
            },
            cameras={"cam": Camera(2, 3, "image")},
            fps=fps,
        )

    def __len__(self) -> int:
        return len(self.recordings)

    def recording(self, index: int) -> Recording:
        check_index(self, index)
        return self.recordings[index]

    def frames(self, index: int, camera: str) -> Iterator[np.ndarray]:
        check_index(self, index)
        check_camera(self, camera)
        for grey in range(self.frames_there):
            yield np.full((2, 3, 3), grey, np.uint8)

    def files(self) -> tuple[Path, ...]:
        return ()


class FakeEncoded(FakeSource):
    """The same with frames that are stored one by one."""

    def encoded_frames(self, index: int, camera: str) -> Iterator[tuple[np.ndarray, bytes]] | None:
        return ((image, b"png %d" % image[0, 0, 0]) for image in self.frames(index, camera))


def ramp(rows: int, **more: Any) -> dict[str, Any]:
    """Action t is 2**t, state t is t."""
    return {
        "act": 2.0 ** np.arange(rows)[:, None],
        "state": np.arange(rows, dtype=np.float64)[:, None],
        **more,
    }


def settled(source: FakeSource, field_map: FieldMap) -> list[MappedEpisode]:
    mapped = MappedSource(source, field_map)
    recordings = [source.recording(index) for index in range(len(source))]
    words = settle([mapped.evidence(one) for one in recordings], assume=field_map.assume)
    return [mapped.episode(one, word) for one, (word, _) in zip(recordings, words, strict=True)]


def only(source: FakeSource, field_map: FieldMap) -> MappedEpisode:
    (episode,) = settled(source, field_map)
    return episode


def flags(rows: int, *true: int) -> np.ndarray:
    values = np.zeros(rows, np.bool_)
    values[list(true)] = True
    return values


def test_what_a_mapped_source_tells() -> None:
    source = FakeSource(ramp(3, force=np.zeros((3, 2), np.int16), note=["a", "b", "c"]))
    mapped = MappedSource(
        source,
        FieldMap(
            action=(Part("act"),),
            state=(Part("state"), Part("force", entries=(1,), names=("push",))),
            environment_state=(Part("force"),),
            cameras={"front": "cam"},
            keep=("force", "note"),
            rename={"force": "observation.force"},
        ),
    )
    assert len(mapped) == 1
    assert mapped.fps == 10 and mapped.cameras == {"front": Camera(2, 3, "image")}
    assert mapped.columns == {
        "action": Column("float64", (1,), ("act",)),
        "observation.state": Column("float32", (2,), ("state", "push")),
        "observation.environment_state": Column("int16", (2,), ("force_0", "force_1")),
        "next.reward": Column("float32"),
        "next.done": Column("bool"),
        "next.success": Column("bool"),
        "next.truncated": Column("bool"),
        "observation.force": Column("int16", (2,)),
        "note": Column("string"),
    }
    episode = only(source, mapped.field_map)
    assert episode.columns.keys() == mapped.columns.keys()
    for name, column in mapped.columns.items():
        found = episode.columns[name]
        assert found.shape == (3, *column.shape)
        assert column.dtype == ("string" if found.dtype == object else found.dtype.name)
    assert episode.columns["note"].tolist() == ["a", "b", "c"]
    assert len(episode) == 3 and episode.name == "demo_0" and episode.instruction == "lift"


def test_instruction_of_the_map_takes_the_place_of_the_recorded() -> None:
    for instruction, expected in ((None, "lift"), ("", ""), ("push", "push")):
        assert only(FakeSource(ramp(2)), FieldMap(ACTION, instruction=instruction)).instruction == (
            expected
        )


@pytest.mark.parametrize(
    ("fps", "resample_fps", "rows", "expected"),
    [
        (30, 10, 10, [0, 3, 6, 9]),
        (30, 10, 9, [0, 3, 6]),
        (50, 20, 11, [0, 3, 5, 8, 10]),  # 0, 2.5, 5, 7.5, 10: halves count up
        (30, 20, 9, [0, 2, 3, 5, 6, 8]),  # 0, 1.5, 3, 4.5, 6, 7.5
        (10, 10, 4, [0, 1, 2, 3]),
        (10, 3, 1, [0]),
        (10, 0.001, 7, [0]),
    ],
)
def test_rows_that_resampling_keeps(
    fps: float, resample_fps: float, rows: int, expected: list[int]
) -> None:
    source = FakeSource(ramp(rows), fps=fps)
    mapped = MappedSource(source, FieldMap(ACTION, resample_fps=resample_fps))
    assert mapped.fps == resample_fps
    assert mapped.kept_steps(rows, NO_EVIDENCE).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(
    fps=st.floats(0.5, 200) | st.integers(1, 200),
    share=st.floats(0.01, 1) | st.sampled_from([1 / 3, 0.4, 0.5]),
    rows=st.integers(1, 200),
)
def test_resampling_is_even_and_loses_no_time(fps: float, share: float, rows: int) -> None:
    rate = fps * share
    mapped = MappedSource(FakeSource(ramp(1), fps=fps), FieldMap(ACTION, resample_fps=rate))
    steps = mapped.kept_steps(rows, NO_EVIDENCE)
    assert steps[0] == 0 and steps[-1] < rows and (np.diff(steps) > 0).all()
    wanted = np.arange(len(steps)) * fps / rate
    assert np.abs(steps - wanted).max() <= 0.5 + 1e-6
    # The next step would lie at the end or beyond it.
    assert len(steps) * fps / rate >= rows - 0.5 - 1e-6


def test_thirty_hertz_to_ten() -> None:
    """Ten rows become four: rows 0-2, 3-5, 6-8 and 9."""
    source = FakeSource(
        ramp(10, target=np.arange(10.0)[:, None], count=np.arange(10)),
        fps=30,
    )
    parts = (Part("act", kind="delta"), Part("target", kind="absolute"))
    field_map = FieldMap(
        parts, state=(Part("state"),), resample_fps=10, keep=("count",), cameras={"front": "cam"}
    )
    episode = only(source, field_map)
    assert episode.steps.tolist() == [0, 3, 6, 9]
    # 1 + 2 + 4, 8 + 16 + 32, 64 + 128 + 256, 512; targets of rows 2, 5, 8 and 9.
    assert episode.columns["action"].tolist() == [[7, 2], [56, 5], [448, 8], [512, 9]]
    assert episode.columns["observation.state"].tolist() == [[0], [3], [6], [9]]
    assert episode.columns["count"].tolist() == [0, 3, 6, 9]
    mapped = MappedSource(source, field_map)
    greys = [image[0, 0, 0] for image in mapped.frames(0, "front", episode.steps)]
    assert greys == [0, 3, 6, 9]


def test_fifty_hertz_to_twenty() -> None:
    """Rows 0-2, 3-4, 5-7, 8-9 and 10."""
    episode = only(FakeSource(ramp(11), fps=50), FieldMap(ACTION, resample_fps=20))
    assert episode.columns["action"][:, 0].tolist() == [7, 24, 224, 768, 1024]


def test_rate_of_the_map_takes_the_place_of_the_source() -> None:
    source = FakeSource(ramp(6), fps=30)
    assert MappedSource(source, FieldMap(ACTION, fps=20)).fps == 20
    assert only(source, FieldMap(ACTION, fps=20, resample_fps=10)).steps.tolist() == [0, 2, 4]


def test_success_is_resampled_with_its_reward() -> None:
    """Solved at row 4, which lies in the second of the kept steps (rows 3 to 5)."""
    rewards = np.zeros(10, np.float64)
    rewards[[1, 4, 5]] = (0.25, 0.5, 0.125)
    source = FakeSource(
        ramp(10, pay=rewards),
        fps=30,
        evidence=Evidence("flag", True, 4),
    )
    whole = FieldMap(ACTION, resample_fps=10, end_at_success=False)
    episode = only(source, whole)
    assert episode.columns["next.success"].tolist() == [False, True, True, True]
    assert episode.columns["next.reward"].tolist() == [0, 1, 0, 0]
    assert episode.columns["next.done"].tolist() == [False, False, False, True]
    # What came after the success was recorded, but the task did not end there.
    assert episode.columns["next.truncated"].tolist() == [False, False, False, True]
    assert episode.evidence == Evidence("flag", True, 1, certain=True)
    paid = only(source, replace(whole, reward="pay")).columns["next.reward"]
    assert paid.dtype == np.float64 and paid.tolist() == [0.25, 0.625, 0, 0]
    cut = only(source, replace(whole, end_at_success=True, reward="pay"))
    # Rows 0 to 4 are left: of the second step only rows 3 and 4.
    assert cut.steps.tolist() == [0, 3]
    assert cut.columns["action"][:, 0].tolist() == [7, 24]
    assert cut.columns["next.reward"].tolist() == [0.25, 0.5]
    assert cut.columns["next.success"].tolist() == [False, True]
    assert cut.columns["next.truncated"].tolist() == [False, False]
    assert cut.evidence.frame == 1


def test_resampling_without_a_kind_is_refused_before_anything_is_read() -> None:
    source = FakeSource(ramp(4), fps=30)
    parts = (Part("act", kind="delta"), Part("state"))
    with pytest.raises(ValueError, match="whether 'state' holds targets or differences; add 'kind"):
        MappedSource(source, FieldMap(parts, resample_fps=10))
    for field_map in (FieldMap(parts, resample_fps=30), FieldMap(parts)):
        assert len(only(source, field_map)) == 4


def test_the_end_at_success() -> None:
    source = FakeSource(ramp(6), evidence=Evidence("flag", True, 3))
    cut = only(source, FieldMap(ACTION))
    assert cut.steps.tolist() == [0, 1, 2, 3]
    assert cut.columns["next.reward"].tolist() == [0, 0, 0, 1]
    assert cut.columns["next.success"].tolist() == [False] * 3 + [True]
    assert cut.columns["next.done"].tolist() == [False] * 3 + [True]
    assert not cut.columns["next.truncated"].any()
    whole = only(source, FieldMap(ACTION, end_at_success=False))
    assert whole.columns["next.reward"].tolist() == [0, 0, 0, 1, 0, 0]
    assert whole.columns["next.success"].tolist() == [False] * 3 + [True] * 3
    assert whole.columns["next.truncated"].tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("end_at_success", [True, False])
def test_a_success_of_unknown_time_is_paid_at_the_end(end_at_success: bool) -> None:
    source = FakeSource(ramp(3), evidence=Evidence("path", True, certain=True))
    episode = only(source, FieldMap(ACTION, end_at_success=end_at_success))
    assert episode.columns["next.reward"].tolist() == [0, 0, 1]
    assert episode.columns["next.success"].tolist() == [False, False, True]
    assert not episode.columns["next.truncated"].any()
    assert episode.evidence == Evidence("path", True, 2, certain=True)


def test_failures_and_unknown_ends_are_truncated() -> None:
    for success in (False, None):
        source = FakeSource(ramp(2), evidence=Evidence("path", success, certain=True))
        columns = only(source, FieldMap(ACTION)).columns
        assert columns["next.reward"].tolist() == [0, 0]
        assert columns["next.done"].tolist() == columns["next.truncated"].tolist() == [False, True]


def test_terminated_column_tells_of_failures_that_end_the_task() -> None:
    fell, ran_out = flags(3, 2), flags(3)
    source = FakeSource(
        ramp(3, end=fell), ramp(3, end=ran_out), evidence=Evidence("path", False, certain=True)
    )
    first, second = settled(source, FieldMap(ACTION, terminated="end"))
    assert not first.columns["next.truncated"].any() and first.columns["next.done"][-1]
    assert second.columns["next.truncated"].tolist() == [False, False, True]
    one_each = FakeSource(ramp(3, end=np.array([[0], [0], [1]])))
    assert not only(one_each, FieldMap(ACTION, terminated="end")).columns["next.truncated"].any()


def test_success_rule() -> None:
    source = FakeSource(
        ramp(4, pay=np.array([0, 0.4, 0.5, 0.9])),
        ramp(4, pay=np.array([[0], [0.1], [0.2], [0.3]])),
        evidence=Evidence("wrong", True, 0),
    )
    first, second = settled(source, FieldMap(ACTION, success=SuccessRule("pay", 0.5)))
    assert first.evidence == Evidence("pay >= 0.5", True, 2, certain=True)
    assert first.columns["next.reward"].tolist() == [0, 0, 1]
    # The rule is certain: what never reaches it has failed, even if no episode succeeds.
    assert second.evidence == Evidence("pay >= 0.5", False, None, certain=True)
    assert settled(source, FieldMap(ACTION, success=SuccessRule("pay", 2)))[0].evidence.success is (
        False
    )
    flag = FakeSource(ramp(2, flag=flags(2, 1)))
    assert only(flag, FieldMap(ACTION, success=SuccessRule("flag"))).evidence.frame == 1
    nan = FakeSource(ramp(2, pay=np.array([np.nan, 1])))
    assert only(nan, FieldMap(ACTION, success=SuccessRule("pay"))).evidence.frame == 1


def test_a_success_rule_counts_more_than_the_recorded_flag() -> None:
    source = FakeSource(
        ramp(3, pay=np.array([0, 1.0, 0]), **{"next.success": flags(3)}),
        evidence=flag_evidence(flags(3), "next.success"),
    )
    field_map = FieldMap(ACTION, success=SuccessRule("pay"), end_at_success=False)
    episode = only(source, field_map)
    assert episode.columns["next.success"].tolist() == [False, True, True]
    assert episode.columns["next.reward"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("assume", ["success", "failure"])
def test_assume_speaks_only_of_what_is_unknown(assume: Any) -> None:
    rewards = [[0, 0, 1.0], [0, 0, 0.0]]
    known = [reward_evidence(np.array(one), "next.reward") for one in rewards]
    assert [outcome for _, outcome in settle(known, assume=assume)] == ["success", "failure"]
    unknown = [NO_EVIDENCE, reward_evidence(np.array([0, 0.5]), "next.reward"), known[1]]
    assert (
        settle(unknown, assume=assume)
        == ((Evidence("assumed", assume == "success", certain=True), assume),) * 3
    )
    assert [outcome for _, outcome in settle(unknown, assume=None)] == ["unknown"] * 3
    # A data set of ours that was written while nobody knew.
    assert settle([Evidence("none", None, certain=True)], assume=assume)[0][1] == assume


def test_an_assumed_success_counts_more_than_a_placeholder() -> None:
    source = FakeSource(
        ramp(2, **{"next.success": flags(2)}), evidence=flag_evidence(flags(2), "next.success")
    )
    columns = only(source, FieldMap(ACTION, assume="success")).columns
    assert columns["next.success"].tolist() == [False, True]
    assert columns["next.reward"].tolist() == [0, 1]
    assert not columns["next.truncated"].any()


def label(episode: int, outcome: Any, frame: int | None = None) -> Label:
    return Label(
        episode, f"demo_{episode}", outcome, frame, "person", "me", "2025-06-01T12:00:00+00:00"
    )


def test_labels_count_more_than_what_was_recorded() -> None:
    """Every one is recorded as solved at row 1 of 3, and paid there."""
    pay, solved = np.array([0, 1, 0], np.float64), flags(3, 1, 2)
    recorded = {
        "next.reward": pay,
        "next.success": solved,
        "next.done": flags(3, 2),
        "next.truncated": flags(3),
    }
    source = FakeSource(*[ramp(3, **recorded)] * 5, evidence=flag_evidence(solved, "next.success"))
    mapped = MappedSource(source, FieldMap(ACTION, reward="next.reward", end_at_success=False))
    evidences = apply_labels(
        [mapped.evidence(one) for one in source.recordings],
        {
            0: label(0, "failure"),
            1: label(1, "success", 2),
            2: label(2, "success"),
            3: label(3, "unclear"),
        },
        names=[one.name for one in source.recordings],
        lengths=[3] * 5,
    )
    words = settle(evidences, assume="success")
    assert [outcome for _, outcome in words] == [
        *("failure", "success", "success", "unknown", "success")
    ]
    episodes = [
        mapped.episode(one, word).columns
        for one, (word, _) in zip(source.recordings, words, strict=True)
    ]
    rewards = [columns["next.reward"] for columns in episodes]
    assert all(reward.dtype == np.float64 for reward in rewards)
    assert [reward.tolist() for reward in rewards] == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
        [0, 1, 0],
    ]
    assert [columns["next.success"].tolist() for columns in episodes] == [
        [False] * 3,
        [False, False, True],
        [False, False, True],
        [False] * 3,
        [False, True, True],
    ]
    # The fifth is as recorded, to the end marker: terminated, though solved before.
    assert [bool(columns["next.truncated"][-1]) for columns in episodes] == [
        *(True, False, False, True, False)
    ]
    cut = replace(mapped.field_map, end_at_success=True, reward="success")
    lengths = [len(MappedSource(source, cut).kept_steps(3, word)) for word, _ in words]
    assert lengths == [3, 3, 3, 3, 2]


def test_a_label_that_says_what_the_record_says_changes_nothing() -> None:
    """A data set that labels went into at its ingestion is read back as it is."""
    pay = np.array([0, 0.5, 0.25], np.float32)
    solved = flags(3, 1)
    source = FakeSource(
        ramp(3, **{"next.reward": pay, "next.success": solved}),
        evidence=Evidence("label", True, 1, certain=True),
    )
    columns = only(source, FieldMap(ACTION, reward="next.reward", end_at_success=False)).columns
    np.testing.assert_array_equal(columns["next.reward"], pay)
    np.testing.assert_array_equal(columns["next.success"], solved)


@pytest.mark.parametrize(
    "rewards",
    [
        np.array([0.25, 0, 0.75], np.float32),
        np.array([0, 0, 1], np.int64),
        np.array([False, True, False]),
        np.array([[0], [0.1], [0.1]]),
        np.zeros(3, np.float16),
        np.array([0.5, 0.5, 0.00009]),
    ],
)
def test_reward_as_recorded(rewards: np.ndarray) -> None:
    source = FakeSource(ramp(3, pay=rewards))
    found = only(source, FieldMap(ACTION, reward="pay")).columns["next.reward"]
    assert found.dtype == rewards.dtype and found.shape == (3,)
    np.testing.assert_array_equal(found, rewards.reshape(3))
    assert MappedSource(source, FieldMap(ACTION, reward="pay")).columns["next.reward"] == Column(
        rewards.dtype.name
    )


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        (np.array([0, -0.5, 1.0]), "-0.5 to 1, 0.5 in all"),
        (np.array([0.5, 0.5, 0.5], np.float32), "0.5 to 0.5, 1.5 in all"),
        (np.array([True, True, True]), "1 to 1, 3 in all"),
        (np.array([2**62, 2**62, 2**62], np.int64), "in all"),
        (np.array([200, 200, 0], np.uint8), "0 to 200, 400 in all"),
        (np.array([0, np.inf, 0]), "0 to inf, inf in all"),
    ],
)
def test_rewards_that_no_training_can_use(rewards: np.ndarray, told: str) -> None:
    source = FakeSource(ramp(3, pay=rewards), fps=30)
    for resample_fps in (None, 10):
        field_map = FieldMap(ACTION, reward="pay", resample_fps=resample_fps)
        with pytest.raises(ValueError, match=told) as caught:
            only(source, field_map)
        message = str(caught.value)
        assert message.startswith("demo_0 of /somewhere/fake: rewards should be 0 or more")
        assert "set 'reward: success'" in message and "\n" not in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["act", "state", "world", "pay"])
def test_nan_is_told_with_episode_and_step(name: str, bad: float) -> None:
    episode = ramp(7, world=np.zeros((7, 2), np.float32), pay=np.zeros(7))
    episode[name][3 if name == "pay" else (3, -1)] = bad
    source = FakeSource(ramp(7, world=np.zeros((7, 2), np.float32), pay=np.zeros(7)), episode)
    ours = {
        "act": "action",
        "state": "observation.state",
        "world": "observation.environment_state",
        "pay": "next.reward",
    }[name]
    field_map = FieldMap(
        ACTION,
        state=(Part("state"),),
        environment_state=(Part("world"),),
        reward="pay",
        keep=(name,),
    )
    message = rf"demo_1 of /somewhere/fake: '{ours}' holds NaN or infinity at step 3; drop or mend"
    if name == "pay" and np.isinf(bad):
        message = "demo_1 of /somewhere/fake: rewards should be 0 or more"
    for resample_fps in (None, 10 / 3):
        with pytest.raises(ValueError, match=message):
            settled(source, replace(field_map, resample_fps=resample_fps))
    # A column that is only kept may hold anything.
    kept = FieldMap((Part("act"),), keep=("world", "pay", "state"))
    if name != "act":
        columns = settled(source, kept)[1].columns
        assert not np.isfinite(columns[name]).all()


def test_nan_in_a_merged_action_and_in_a_rotation() -> None:
    episode = ramp(6, turn=np.tile([0.0, 0, 0, 1], (6, 1)))
    episode["act"][5] = np.nan
    source = FakeSource(episode, fps=30)
    with pytest.raises(ValueError, match="'action' holds NaN or infinity at step 3; drop"):
        only(source, FieldMap(ACTION, resample_fps=10))
    source.recordings[0].columns["turn"][4] = 0
    turn = Part("turn", rotation="quaternion_xyzw", to_rotation="matrix", kind="delta")
    for resample_fps in (None, 10):
        with pytest.raises(
            ValueError, match=r"demo_0 of /somewhere/fake: 'turn': .* no rotation at step 4"
        ):
            only(source, FieldMap((turn,), resample_fps=resample_fps))


def test_the_identity_keeps_every_value_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "action": rng.normal(size=(5, 3)),
        "observation.state": rng.normal(size=(5, 2)).astype(np.float32),
        "observation.force": rng.normal(size=(5, 2, 3)).astype(np.float32),
        "observation.counts": rng.integers(-(2**62), 2**62, (5, 4)),
        "half": np.array([np.nan, np.inf, -0.0, 6e-8, 1], np.float16),
        "wild": np.array([-np.nan, np.nan, -np.inf, 1e-45, -0.0], np.float32),
        "flag": flags(5, 0, 3),
        "flags": rng.random((5, 2)) > 0.5,
        "note": ["", "ä", "\n", "b", "c" * 100],
        "next.reward": np.array([0, 0.25, 0, 0.75, 0], np.float64),
        "next.success": flags(5, 1, 3),
        "next.done": flags(5),
        "next.truncated": flags(5, 2),
    }
    source = FakeSource(columns, evidence=flag_evidence(columns["next.success"], "next.success"))
    episode = only(
        source,
        FieldMap(
            (Part("action"),),
            state=(Part("observation.state"),),
            reward="next.reward",
            end_at_success=False,
            keep=tuple(columns)[2:],
        ),
    )
    assert episode.columns.keys() == columns.keys()
    for name, column in source.recordings[0].columns.items():
        found = episode.columns[name]
        assert found.dtype == column.dtype and found.shape == column.shape, name
        if column.dtype == object:
            assert found.tolist() == column.tolist()
        else:
            assert found.tobytes() == column.tobytes(), name


def test_recorded_ends_are_not_kept_where_rows_are_left_out() -> None:
    """Otherwise the cut episode would have no end."""
    source = FakeSource(
        ramp(6, **{"next.done": flags(6, 5), "next.success": flags(6, 2, 3, 4, 5)}),
        evidence=flag_evidence(flags(6, 2), "next.success"),
        fps=30,
    )
    columns = only(source, FieldMap(ACTION)).columns
    assert columns["next.done"].tolist() == [False, False, True]
    columns = only(source, FieldMap(ACTION, end_at_success=False, resample_fps=10)).columns
    assert columns["next.done"].tolist() == [False, True]
    columns = only(source, FieldMap(ACTION, end_at_success=False)).columns
    assert columns["next.done"].tolist() == [False] * 5 + [True]


def test_end_markers_of_other_kinds_are_made_anew() -> None:
    source = FakeSource(
        ramp(2, **{"next.done": np.array([0, 1.0]), "next.success": np.ones((2, 2), np.bool_)})
    )
    columns = only(source, FieldMap(ACTION, keep=("next.done", "next.success"))).columns
    assert columns["next.done"].dtype == np.bool_ and columns["next.done"].tolist() == [False, True]
    assert columns["next.success"].tolist() == [False, False]


@pytest.mark.parametrize(
    ("field_map", "message"),
    [
        (FieldMap((Part("acts"),)), "asks for the column 'acts', but there are only act, flags, "),
        (FieldMap((Part("text"),)), "the column 'text' is text"),
        (FieldMap(ACTION, state=(Part("act", entries=(1,)),)), "asks for entry 1 of 'act'"),
        (FieldMap(ACTION, environment_state=(Part("x"),)), "asks for the column 'x'"),
        (FieldMap((Part("act", names=("a", "b")),)), "'act' has 2 names for 1 entries"),
        (
            FieldMap((Part("act", convert="delta", reference=Part("pose")),)),
            "asks for the column 'pose'",
        ),
        (FieldMap(ACTION, cameras={"a": "front"}), "camera 'front', but /somewhere/fake has cam;"),
        (FieldMap(ACTION, keep=("x",)), "asks for the column 'x', but there are only"),
        (FieldMap(ACTION, rename={"state": "s"}), "renames 'state', but keeps only nothing"),
        (
            FieldMap(ACTION, keep=("state",), rename={"state": "action"}),
            "calls 'state' 'action', but another column is called so",
        ),
        (
            FieldMap(ACTION, keep=("state",), rename={"state": "frame_index"}),
            "calls 'state' 'frame_index', but another column is called so",
        ),
        (
            FieldMap(ACTION, keep=("state", "flags"), rename={"state": "flags"}),
            "calls 'state' 'flags', but another column is called so",
        ),
        (FieldMap(ACTION, reward="x"), "reward should be a column of one number a step, but 'x'"),
        (
            FieldMap(ACTION, reward="text"),
            "one number a step, but 'text' came, which is none of ac",
        ),
        (FieldMap(ACTION, reward="wide"), "one number a step, but 'wide' came"),
        (FieldMap(ACTION, terminated="x"), "terminated should be a column of one number a step"),
        (FieldMap(ACTION, terminated="text"), "terminated should be a column of one number"),
        (FieldMap(ACTION, terminated="wide"), "terminated should be a column of one number"),
        (FieldMap(ACTION, success=SuccessRule("x")), "success should be a column of one number"),
        (FieldMap(ACTION, success=SuccessRule("text")), "success should be a column of one"),
        (FieldMap(ACTION, resample_fps=20), "to a lower rate only, but 20 .* are asked of 10;"),
    ],
)
def test_maps_that_do_not_fit_are_refused_at_once(field_map: FieldMap, message: str) -> None:
    source = FakeSource(ramp(2, text=["a", "b"], wide=np.zeros((2, 2)), flags=flags(2)))
    with pytest.raises(ValueError, match=message) as caught:
        MappedSource(source, field_map)
    assert "\n" not in str(caught.value)


def test_a_rate_that_nobody_tells() -> None:
    source = FakeSource(ramp(2), fps=None)
    with pytest.raises(ValueError, match="does not tell its steps per second; add 'fps'"):
        MappedSource(source, FieldMap(ACTION))
    assert MappedSource(source, FieldMap(ACTION, fps=5)).fps == 5


def test_frames_of_kept_rows() -> None:
    field_map = FieldMap(ACTION, cameras={"front": "cam"})
    steps = np.array([1, 4])
    mapped = MappedSource(FakeSource(ramp(5)), field_map)
    images = list(mapped.frames(0, "front", steps))
    assert [int(image.max()) for image in images] == [1, 4]
    assert mapped.encoded_frames(0, "front", steps) is None
    encoded = FakeEncoded(ramp(5))
    assert isinstance(encoded, EncodedFrames)
    stored = MappedSource(encoded, field_map).encoded_frames(0, "front", steps)
    assert stored is not None and [content for _, content in stored] == [b"png 1", b"png 4"]
    encoded.frames_there = 4
    readers = MappedSource(encoded, field_map)
    for read in (readers.frames, readers.encoded_frames):
        with pytest.raises(ValueError, match="camera 'cam' asked for, but the field map has front"):
            list(read(0, "cam", steps) or ())
        with pytest.raises(ValueError, match="a frame 4 of camera 'front' of episode 0 of /somewh"):
            list(read(0, "front", steps) or ())


def test_frames_are_taken_one_by_one() -> None:
    """No more is decoded than the last row that is kept."""
    seen = []

    class Counting(FakeSource):
        def frames(self, index: int, camera: str) -> Iterator[np.ndarray]:
            for image in super().frames(index, camera):
                seen.append(int(image[0, 0, 0]))
                yield image

    mapped = MappedSource(Counting(ramp(9)), FieldMap(ACTION, cameras={"front": "cam"}))
    frames = mapped.frames(0, "front", np.array([0, 2, 5]))
    next(frames)
    assert seen == [0]
    assert len(list(frames)) == 2 and seen == [0, 1, 2, 3, 4, 5]


def test_an_episode_for_training() -> None:
    source = FakeSource(
        ramp(3, world=np.ones((3, 2))), evidence=Evidence("flag", True, 1, certain=True)
    )
    field_map = FieldMap(ACTION, state=(Part("state"),), environment_state=(Part("world"),))
    images = {"front": np.zeros((2, 2, 3, 3), np.uint8)}
    episode = to_episode(only(source, field_map), images)
    assert episode.terminated and not episode.truncated and episode.success
    assert episode.rewards.dtype == episode.actions.dtype == np.float32
    assert episode.actions.tolist() == [[1], [2]] and episode.states.tolist() == [[0], [1]]
    assert episode.environment_states.tolist() == [[1, 1], [1, 1]]
    assert episode.rewards.tolist() == [0, 1] and episode.images.keys() == {"front"}
    bare = to_episode(only(FakeSource(ramp(3)), FieldMap(ACTION)), {})
    assert bare.truncated and not bare.terminated
    assert bare.states.shape == bare.environment_states.shape == (3, 0)
