from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets import vector_facts
from robot_qsft.datasets.features import ACTION, STATE
from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.labels import Label
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.source import Column, Recording, SourceInfo
from robot_qsft.datasets.source_facts import SourceFacts, gather_facts
from robot_qsft.datasets.suggest_map import suggest
from robot_qsft.datasets.vector_facts import BINS, VectorTally, bin_counts


@dataclass
class MadeUpSource:
    """Episodes that are given; a text in place of one is what reading it says."""

    episodes: list[Recording | str]
    info: SourceInfo = field(
        default_factory=lambda: SourceInfo(
            "made up", {"a": Column("float64", (2,), ("x", "y")), "rewards": Column("float64")}
        )
    )
    path: Path = Path("made_up")

    def __len__(self) -> int:
        return len(self.episodes)

    def recording(self, index: int) -> Recording:
        one = self.episodes[index]
        if isinstance(one, str):
            raise ValueError(one)
        return one

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        raise AssertionError("no frame is looked at")

    def files(self) -> tuple[Path, ...]:
        return ()


MAP = FieldMap(action=(Part("a"),))


def recorded(
    actions: list[list[float]],
    *,
    name: str = "one",
    rewards: list[float] | None = None,
    evidence: Evidence = NO_EVIDENCE,
    instruction: str = "",
) -> Recording:
    columns = {
        "a": np.array(actions, np.float64),
        "rewards": np.array(rewards or [0.0] * len(actions)),
    }
    return Recording(name, columns, instruction, evidence)


def label(episode: int, outcome: str, *, name: str = "one", frame: int | None = None) -> Label:
    return Label(episode, name, outcome, frame, "person", "me", "2025-06-01T12:00:00+00:00")


def tally(values: np.ndarray, *, cuts: tuple[int, ...] = ()) -> VectorTally:
    """Rows of which each has the same key however they are cut into episodes."""
    keys = np.random.default_rng(0).random(len(values))
    counted = VectorTally(values.shape[1])
    for rows, drawn in zip(np.split(values, cuts), np.split(keys, cuts), strict=True):
        if len(rows):
            counted.add(rows, drawn)
    return counted


def test_dimension_by_hand() -> None:
    values = np.array([[0.0], [1.0], [1.0], [np.nan], [4.0]])
    (one,) = tally(values).facts(["x"]).dimensions
    assert (one.name, one.minimum, one.maximum, one.mean) == ("x", 0, 4, 1.5)
    # Deviations −1.5, −0.5, −0.5, 2.5: their squares are 9 in all, 2.25 on average.
    assert one.std == pytest.approx(1.5)
    assert (one.at_minimum, one.at_maximum, one.at_bounds) == (0.25, 0.25, 0.5)
    assert (one.distinct, one.not_finite) == (3, 1)
    # Of 0, 1, 1, 4 the 1% quantile is 3% of the way from 0 to 1, the 99% one 97% from 1 to 4.
    assert (one.q01, one.q50, one.q99) == pytest.approx((0.03, 1.0, 3.91))
    assert one.discrete
    assert not one.constant
    # 1 lies 0.97 of 3.88 above the lower quantile: exactly a quarter of the way.
    assert one.bins.nonzero()[0].tolist() == [0, BINS // 4, BINS - 1]
    assert one.bins_used == 3


def test_constant_and_missing_numbers() -> None:
    values = np.array([[2.0, np.nan], [2.0, np.inf]])
    constant, missing = tally(values).facts(["c", "m"]).dimensions
    assert (constant.constant, constant.at_bounds, constant.std) == (True, 1.0, 0.0)
    assert constant.bins_used == 1
    assert missing.not_finite == 2
    assert missing.distinct == 0
    assert np.isnan([missing.minimum, missing.maximum, missing.mean, missing.q50]).all()
    assert missing.bins_used == 0


def test_whole_numbers_and_booleans_are_counted() -> None:
    whole, flag = (
        tally(values).facts(["v"]).dimensions[0]
        for values in (np.array([[2**62], [-1]]), np.array([[True], [False]]))
    )
    assert (whole.minimum, whole.maximum) == (-1, 2.0**62)
    assert (flag.mean, flag.distinct) == (0.5, 2)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 3, 70), tuple(range(1, 100))])
def test_cutting_does_not_matter(cuts: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=(100, 3)).round(1)
    values[5, 0] = np.nan
    found = tally(values, cuts=cuts).facts("xyz")
    assert found.rows == 100
    for one, column in zip(found.dimensions, values.T, strict=True):
        finite = column[np.isfinite(column)]
        assert (one.minimum, one.maximum) == (finite.min(), finite.max())
        assert (one.mean, one.std) == pytest.approx((finite.mean(), finite.std()))
        assert one.at_maximum == pytest.approx((finite == finite.max()).mean())
        assert one.at_minimum == pytest.approx((finite == finite.min()).mean())
        assert one.distinct == len(np.unique(finite))
        expected = np.quantile(finite, (0.01, 0.5, 0.99))
        assert (one.q01, one.q50, one.q99) == pytest.approx(tuple(expected))


def test_sample_is_bounded_even_and_the_same_however_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_facts, "_SAMPLE_ROWS", 400)
    values = np.arange(10_000.0)[:, None]
    whole = tally(values).facts("x")
    cut = tally(values, cuts=tuple(range(7, 10_000, 7))).facts("x")
    assert whole.sample.shape == (400, 1)
    assert np.array_equal(whole.sample, cut.sample)
    (one,) = whole.dimensions
    assert (one.minimum, one.maximum, one.mean) == (0, 9999, pytest.approx(4999.5))
    # Six standard errors of a median of 400.
    assert one.q50 == pytest.approx(5000, abs=6 * 10_000 / 2 / 20)
    assert one.distinct == vector_facts.MANY_VALUES


def test_no_more_than_twice_the_sample_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_facts, "_SAMPLE_ROWS", 100)
    counted, random = VectorTally(1), np.random.default_rng(0)
    for _ in range(50):
        counted.add(random.normal(size=(30, 1)), random.random(30))
        assert sum(map(len, counted._sample)) <= 200


def test_wide_vectors_have_a_smaller_sample() -> None:
    wide = 100_000
    counted = VectorTally(wide)
    assert counted._room * wide * 8 <= 100e6


def test_huge_numbers_raise_nothing() -> None:
    values = np.array([[1e308], [-1e308], [1e308], [0.0], [1.0]])
    (one,) = tally(values, cuts=(2,)).facts("x").dimensions
    assert (one.minimum, one.maximum) == (-1e308, 1e308)
    assert one.bins.sum() == 5


def test_bins_by_hand() -> None:
    # Each bin is 1 wide; what lies beyond falls into the outermost ones.
    counts = bin_counts(np.array([-9.0, 0.0, 0.9, 1.0, 255.9, 256.0, 999.0]), 0.0, 256.0)
    assert counts[[0, 1, 255]].tolist() == [3, 1, 3]
    assert counts.sum() == 7
    # Without a width all are in one bin.
    assert bin_counts(np.array([1.0, 2.0]), 1.0, 1.0)[0] == 2


def test_facts_of_episodes() -> None:
    source = MadeUpSource(
        [
            recorded(
                [[1, 2], [3, np.nan], [0, 5]],
                rewards=[0, 0.25, 0.5],
                evidence=Evidence("flag", True, 1),
                instruction="lift",
            ),
            recorded([[7, 8]], evidence=Evidence("flag", False), instruction="lift"),
            recorded([[7, 8]], instruction="drop"),
        ]
    )
    seen: list[tuple[int, int]] = []
    found = gather_facts(source, MAP, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]
    assert [one.steps for one in found.episodes] == [3, 1, 1]
    assert found.steps == 5
    assert [one.recorded_return for one in found.episodes] == [0.75, 0, 0]
    assert found.reward_column == "rewards"
    # The flag is true of one episode, so that its False of the other means failure.
    assert [one.outcome for one in found.episodes] == ["success", "failure", "unknown"]
    assert [one.success_frame for one in found.episodes] == [1, None, None]
    assert found.outcomes == {"success": 1, "failure": 1, "unknown": 1}
    assert found.outcome_sources == {"flag": 2}
    assert found.instructions == {"lift": 2, "drop": 1}
    first = found.episodes[0]
    assert (first.action_minimum.tolist(), first.action_maximum.tolist()) == ([0, 2], [3, 5])
    assert [one.name for one in found.vectors[ACTION].dimensions] == ["x", "y"]
    # What came after the success at step 1 is counted all the same.
    assert found.vectors[ACTION].rows == 5
    assert found.fps is None


def test_an_unreadable_episode_is_listed() -> None:
    source = MadeUpSource([recorded([[1, 2]]), "demo 1 is damaged; restore it", recorded([[3, 4]])])
    found = gather_facts(source, MAP, labels={1: label(1, "success"), 2: label(2, "failure")})
    assert [(one.index, one.reason) for one in found.unreadable] == [
        (1, "demo 1 is damaged; restore it")
    ]
    assert [(one.index, one.outcome) for one in found.episodes] == [(0, "unknown"), (2, "failure")]


def test_a_conversion_that_fails_makes_an_episode_unreadable() -> None:
    info = SourceInfo("made up", {"q": Column("float64", (4,)), "a": Column("float64", (1,))})
    columns = {"q": np.zeros((1, 4)), "a": np.zeros((1, 1))}
    good = columns | {"q": np.array([[0.0, 0, 0, 1]])}
    source = MadeUpSource(
        [Recording("bad", columns, "", NO_EVIDENCE), Recording("good", good, "", NO_EVIDENCE)], info
    )
    part = Part("q", rotation="quaternion_xyzw", to_rotation="axis_angle")
    found = gather_facts(source, FieldMap(action=(Part("a"),), state=(part,)))
    (one,) = found.unreadable
    assert "no rotation at step 0" in one.reason
    assert [one.maximum for one in found.vectors[STATE].dimensions] == [0, 0, 0]


def test_labels_come_first_and_what_is_unknown_may_be_assumed() -> None:
    flag = Evidence("flag", True, 0)
    source = MadeUpSource([recorded([[1, 2]] * 2, evidence=flag), recorded([[1, 2]])])
    assumed = FieldMap(action=(Part("a"),), assume="failure")
    found = gather_facts(source, assumed, labels={0: label(0, "success", frame=1)})
    told = [(one.outcome, one.outcome_source, one.success_frame) for one in found.episodes]
    assert told == [("success", "label", 1), ("failure", "assumed", None)]


def test_rate_and_instruction_of_the_map_count() -> None:
    fast = FieldMap(action=(Part("a"),), fps=30, resample_fps=5, instruction="wave", reward="a")
    info = SourceInfo("made up", {"a": Column("float64")}, fps=10.0)
    one = Recording("one", {"a": np.ones(4)}, "drop", NO_EVIDENCE)
    found = gather_facts(MadeUpSource([one], info), fast)
    assert (found.fps, found.steps, found.instructions) == (30, 4, {"wave": 1})
    assert (found.reward_column, found.episodes[0].recorded_return) == ("a", 4)


def test_without_a_reward_column_there_is_no_return() -> None:
    info = SourceInfo("made up", {"a": Column("float64"), "reward": Column("string")})
    one = Recording("one", {"a": np.ones(4)}, "", NO_EVIDENCE)
    found = gather_facts(MadeUpSource([one], info), MAP)
    assert found.reward_column is None
    assert found.returns.tolist() == []


def test_what_cannot_be_surveyed_is_refused() -> None:
    one = recorded([[1, 2]])
    with pytest.raises(ValueError, match="no episode of made_up can be read; the first says: lost"):
        gather_facts(MadeUpSource(["lost", "lost too"]), MAP)
    with pytest.raises(ValueError, match="no episode of made_up can be read; it has none"):
        gather_facts(MadeUpSource([]), MAP)
    with pytest.raises(ValueError, match="asks for the column 'b'"):
        gather_facts(MadeUpSource([one]), FieldMap(action=(Part("b"),)))
    with pytest.raises(ValueError, match="a label is for episode 7, but there are 1"):
        gather_facts(MadeUpSource([one]), MAP, labels={7: label(7, "failure")})
    with pytest.raises(ValueError, match="is for 'other'"):
        gather_facts(MadeUpSource([one]), MAP, labels={0: label(0, "failure", name="other")})


def same(first: SourceFacts, second: SourceFacts) -> bool:
    def told(found: SourceFacts) -> list[object]:
        return [
            (one.index, one.name, one.steps, one.outcome, one.action_maximum.tolist())
            for one in found.episodes
        ]

    return (
        told(first) == told(second)
        and first.vectors.keys() == second.vectors.keys()
        and all(
            np.array_equal(first.vectors[name].sample, second.vectors[name].sample)
            and [one.mean for one in first.vectors[name].dimensions]
            == [one.mean for one in second.vectors[name].dimensions]
            for name in first.vectors
        )
    )


def test_processes_find_the_same(demonstrations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robot_qsft.datasets.source_facts._TOGETHER", 7)
    source = open_source(demonstrations)
    alone = gather_facts(source, suggest(source))
    assert len(alone.episodes) == 24
    assert alone.steps == sum(len(source.recording(index)) for index in range(24))
    assert same(alone, gather_facts(source, suggest(source), workers=2))
