"""Validation of data sets that have exactly one fault, of clean ones, and of other people's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_qsft.console import console
from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.datasets.labels import Label, Labels, labels_path
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.source import Column, Recording, SourceInfo
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.validate import Validation, validate, validate_path, validate_source

SHARED = Path(__file__).parent.parent.parent / "shared"
STEPS = 40


@dataclass
class Made:
    """An episode that tests may spoil before it is written."""

    actions: np.ndarray
    states: np.ndarray
    rewards: np.ndarray
    images: np.ndarray
    instruction: str = "push the block"


def make(index: int) -> Made:
    """States follow the actions at once, and a square in the picture follows the state."""
    rng = np.random.default_rng(index)
    actions = rng.normal(size=(STEPS, 2)).clip(-1.5, 1.5) * rng.uniform(0.9, 1.1)
    states = np.vstack([np.zeros((1, 2)), np.cumsum(actions, axis=0)[:-1]])
    rewards = np.zeros(STEPS)
    rewards[-1] = index % 2
    return Made(actions, states, rewards, draw(states))


def draw(states: np.ndarray) -> np.ndarray:
    images = np.full((STEPS, 64, 64, 3), 90, np.uint8)
    for step, (x, y) in enumerate(np.clip(states * 1.5 + 28, 0, 56).astype(int)):
        images[step, y : y + 8, x : x + 8] = (220, 40, 30)
    return images


def write(
    path: Path,
    *,
    spoil: Callable[[list[Made]], None] = lambda episodes: None,
    storage: Any = "image",
    names: tuple[str, ...] = ("x", "y"),
) -> Path:
    """Eight episodes, every second of which succeeds."""
    episodes = [make(index) for index in range(8)]
    spoil(episodes)
    info = DatasetInfo(
        fps=10,
        action_names=names,
        state_names=("x_m", "y_m"),
        cameras={"front": Camera(64, 64, storage)},
    )
    with DatasetWriter(path, info=info) as writer:
        for one in episodes:
            writer.add_episode(
                Episode(
                    states=one.states.astype(np.float32),
                    actions=one.actions.astype(np.float32),
                    rewards=one.rewards.astype(np.float32),
                    successes=np.cumsum(one.rewards) >= 1,
                    terminated=True,
                    truncated=False,
                    instruction=one.instruction,
                    images={"front": one.images},
                    environment_states=np.zeros((len(one.actions), 0), np.float32),
                )
            )
    return path


def edit(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the values of a column in the data file, all episodes laid end to end."""
    (file,) = (path / "data").rglob("*.parquet")
    table = pq.read_table(file)
    column = table.column(name)
    values = np.array(column.to_pylist(), np.float64)
    change(values)
    field = table.schema.field(name)
    changed = pa.array(values.tolist(), field.type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), field, changed), file)


def found(path: Path, **options: Any) -> list[tuple[str, str, int | None, int | None]]:
    options = {"frames": "all"} | options
    findings = validate(open_source(path), **options).findings
    return [(one.severity, one.code, one.episode, one.step) for one in findings]


@pytest.mark.parametrize("storage", ["image", "video"])
def test_nothing_is_said_of_a_clean_set(tmp_path, storage):
    path = write(tmp_path / "clean", storage=storage)
    validation = validate(open_source(path), frames="all")
    assert validation.findings == ()
    assert (validation.episodes, validation.frames_read) == (8, 8)
    assert validate_source(open_source(path), strict=True) == 0


def constant(episodes):
    for one in episodes:
        one.actions[:, 1] = 0.25


def saturated(episodes):
    for one in episodes:
        one.actions[:, 0] = np.clip(one.actions[:, 0], -0.5, 0.5)


def shifted(episodes):
    for one in episodes:  # what is observed is read after the action of its row
        one.states = one.states + one.actions
        one.images = draw(one.states)


def successes_only(episodes):
    for one in episodes:
        one.rewards[-1] = 1


def never_solved(episodes):
    for one in episodes:
        one.rewards[-1] = 0


def paid_twice(episodes):
    episodes[1].rewards[-3:] = 1


def paid_too_much(episodes):
    episodes[5].rewards[:] = 0
    episodes[5].rewards[-1] = 2


def negative(episodes):
    episodes[2].rewards[4] = -1


def short(episodes):
    for name in ("actions", "states", "rewards", "images"):
        setattr(episodes[6], name, getattr(episodes[6], name)[-2:])


def unasked(episodes):
    episodes[4].instruction = ""


def spelt_otherwise(episodes):
    episodes[7].instruction = "Push the block."


def frozen(episodes):
    episodes[2].images[15:35] = episodes[2].images[15]


def repeated(episodes):
    episodes[0].images[1::2] = episodes[0].images[::2]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (constant, [("warning", "action-constant", None, None)]),
        (saturated, [("warning", "action-saturated", None, None)]),
        (shifted, [("warning", "action-shifted", None, None)]),
        (successes_only, [("warning", "one-outcome", None, None)]),
        # A flag that is nowhere true may be a placeholder.
        (never_solved, [("warning", "outcome-unknown", None, None)]),
        (paid_twice, [("warning", "reward-repeated", 1, 38)]),
        (paid_too_much, [("warning", "return-above-one", 5, None)]),
        (negative, [("warning", "reward-negative", 2, 4)]),
        (short, [("warning", "short-episode", 6, None)]),
        (unasked, [("warning", "instruction-empty", 4, None)]),
        (spelt_otherwise, [("note", "instruction-variants", 7, None)]),
        (frozen, [("warning", "camera-frozen", 2, 15)]),
        (repeated, [("warning", "frames-repeated", 0, 5)]),
    ],
)
def test_one_fault_is_one_finding(tmp_path, spoil, expected):
    assert found(write(tmp_path / "data", spoil=spoil)) == expected


def test_a_frozen_camera_is_found_in_video_too(tmp_path):
    path = write(tmp_path / "data", spoil=frozen, storage="video")
    assert [(code, episode) for _, code, episode, _ in found(path)] == [("camera-frozen", 2)]


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("action", {(83, 1): np.nan}, ("error", "not-finite", 2, 3)),
        ("observation.state", {(40, 0): np.inf}, ("error", "not-finite", 1, 0)),
        ("next.reward", {(319,): np.nan}, ("error", "not-finite", 7, 39)),
        ("timestamp", {(45,): 0.4}, ("error", "timestamp-repeated", 1, 5)),
        ("timestamp", {(59,): 0.0}, ("error", "timestamp-backwards", 1, 19)),
    ],
)
def test_numbers_and_times_that_are_wrong_are_found(tmp_path, name, change, expected):
    path = write(tmp_path / "data")

    def spoil(values):
        for place, value in change.items():
            values[place] = value

    edit(path, name, spoil)
    assert expected in found(path, frames="none")


def test_gaps_and_another_rate_are_found(tmp_path):
    path = write(tmp_path / "data")

    def gap(values):
        values[50:80] += 0.5

    edit(path, "timestamp", gap)
    assert found(path, frames="none") == [("warning", "timestamp-gap", 1, 10)]

    def faster(values):
        values /= 2

    edit(path, "timestamp", faster)
    assert ("error", "timestamp-rate", 0, None) in found(path, frames="none")


def test_broken_video_is_found_and_the_rest_is_still_looked_at(tmp_path):
    path = write(tmp_path / "data", storage="video")
    (video,) = (path / "videos").rglob("*.mp4")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    findings = found(path)
    assert {(severity, code) for severity, code, _, _ in findings} == {
        ("error", "frames-unreadable")
    }
    video.write_bytes(content[:200])
    assert [episode for *_, episode, _ in found(path)] == list(range(8))
    assert found(path, frames="none") == []


def test_a_video_with_too_few_frames_or_of_another_size_is_found(tmp_path):
    path = write(tmp_path / "data", storage="video")

    def halve(episodes):
        for one in episodes[4:]:
            for name in ("actions", "states", "rewards", "images"):
                setattr(one, name, getattr(one, name)[20:])

    other = write(tmp_path / "shorter", spoil=halve, storage="video")
    (video,), (shorter,) = ((one / "videos").rglob("*.mp4") for one in (path, other))
    video.write_bytes(shorter.read_bytes())
    # 4 × 40 + 4 × 20 frames: those of the last two episodes are not there.
    missing = [one for one in found(path) if one[1] == "frames-unreadable"]
    assert missing == [
        ("error", "frames-unreadable", 6, 0),
        ("error", "frames-unreadable", 7, 0),
    ]
    edited = json.loads((path / "meta/info.json").read_text())
    edited["features"]["observation.images.front"]["shape"] = [32, 32, 3]
    (path / "meta/info.json").write_text(json.dumps(edited))
    sentences = [one.message for one in validate(open_source(path), frames="all").findings]
    assert "expected frames of 32x32 for camera 'front', but 64x64 came" in sentences[0]


def test_a_damaged_picture_is_found(tmp_path):
    path = write(tmp_path / "data")
    (file,) = (path / "data").rglob("*.parquet")
    table = pq.read_table(file)
    name = "observation.images.front"
    pictures = table.column(name).to_pylist()
    pictures[90]["bytes"] = pictures[90]["bytes"][:30]
    changed = pa.array(pictures, table.schema.field(name).type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, changed), file)
    assert found(path) == [("error", "frames-unreadable", 2, 10)]


def test_an_unreadable_episode_does_not_end_the_run(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("needs the fixtures in ../shared")
    path = tmp_path / "data"
    shutil.copytree(SHARED / "fixtures/lerobot_v21", path)
    file = path / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert found(path) == [
        ("warning", "one-outcome", None, None),
        ("error", "episode-unreadable", 1, None),
    ]
    assert validate_source(open_source(path)) == 1


def test_a_source_that_cannot_be_opened_is_a_finding(tmp_path, capsys):
    path = write(tmp_path / "data", storage="video")
    (video,) = (path / "videos").rglob("*.mp4")
    video.unlink()
    assert validate_path(path, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in told["findings"]] == ["source-unreadable"]
    assert "file-000.mp4" in told["findings"][0]["message"]


@pytest.mark.parametrize("name", ["lerobot_v21", "lerobot_v30", "rlds"])
def test_of_the_fixtures_only_the_truth_is_said(name):
    if not SHARED.is_dir():
        pytest.skip("needs the fixtures in ../shared")
    assert found(SHARED / "fixtures" / name) == [("warning", "one-outcome", None, None)]


def test_nothing_is_said_of_simulated_demonstrations(demonstrations):
    assert found(demonstrations) == []


def test_labels_settle_outcomes(tmp_path):
    path = write(tmp_path / "data", spoil=never_solved)
    names = [LeRobotSource(path).recording(index).name for index in range(8)]
    when = "2025-06-01T12:00:00+00:00"
    labels = [
        Label(index, name, "success" if index < 4 else "failure", None, "person", "me", when)
        for index, name in enumerate(names)
    ]
    with Labels.edit(labels_path(path), episodes=8) as edited:
        edited.set(*labels)
    assert found(path) == []
    with Labels.edit(tmp_path / "other.parquet", episodes=8) as edited:
        edited.set(*labels[:7], replace(labels[7], name="another", outcome="failure"))
    assert [one for one in found(path, labels=tmp_path / "other.parquet") if one[2] == 7] == [
        ("error", "label-misfit", 7, None)
    ]
    labels_path(path).write_bytes(b"no parquet")
    assert ("error", "labels-unreadable", None, None) in found(path)


def test_a_field_map_says_what_counts(tmp_path):
    def spoil(episodes):
        paid_twice(episodes)
        constant(episodes)

    path = write(tmp_path / "data", spoil=spoil)
    field_map = FieldMap(
        action=(Part("action", entries=(0,)),), state=(Part("observation.state", entries=(0,)),)
    )
    # Only x is an action there, no camera counts, and 1 is paid at the first success.
    assert found(path, field_map=field_map) == []
    assert ("warning", "reward-repeated", 1, 38) in found(
        path, field_map=replace(field_map, reward="next.reward", end_at_success=False)
    )
    # Where the episode ends at its success nothing is paid after it.
    assert found(path, field_map=replace(field_map, reward="next.reward")) == []
    twice = replace(field_map, instruction="")
    assert found(path, field_map=twice) == [("note", "instruction-empty", None, None)]
    with pytest.raises(ValueError, match="asks for entry 9"):
        found(path, field_map=FieldMap(action=(Part("action", entries=(9,)),)))


def test_json_has_the_documented_layout(tmp_path, capsys):
    path = write(tmp_path / "data", spoil=frozen)
    edit(path, "action", lambda values: values.__setitem__((83, 1), np.nan))
    assert validate_path(path, frames="all", as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [
        "version",
        "source",
        "format",
        "episodes",
        "frames_read",
        "findings",
        "counts",
    ]
    assert (told["version"], told["source"], told["episodes"]) == (1, str(path), 8)
    assert told["format"] == "LeRobotDataset v3.0"
    assert told["frames_read"] == 8
    assert told["counts"] == {"error": 1, "warning": 1, "note": 0}
    assert told["findings"][0] == {
        "severity": "error",
        "code": "not-finite",
        "message": "'action' holds NaN or infinity in 1 of 40 rows",
        "mend": "drop or mend the episode",
        "episode": 2,
        "step": 3,
    }
    assert [one["code"] for one in told["findings"]] == ["not-finite", "camera-frozen"]


def test_the_table_groups_findings_by_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 300)
    path = write(tmp_path / "data")

    def everywhere(values):
        values[5::40] = np.nan  # step 5 of every episode

    edit(path, "next.reward", everywhere)
    assert validate_path(path) == 1
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if "not-finite" in line]
    assert "0, 1, 2, 3, 4 and 3 more" in row
    assert "'next.reward' holds NaN or infinity in 1 of 40 rows (step 5)" in row
    assert "errors: 8, warnings: 0, notes: 0" in printed


def test_warnings_fail_with_strict_only(tmp_path):
    path = write(tmp_path / "data", spoil=successes_only)
    assert validate_path(path) == 0
    assert validate_path(path, strict=True) == 1
    noted = write(tmp_path / "noted", spoil=spelt_otherwise)
    assert validate_path(noted, strict=True) == 0


def test_progress_counts_reading_and_decoding(tmp_path):
    source = open_source(write(tmp_path / "data"))
    told: list[tuple[int, int]] = []
    validate(source, frames="sampled", progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 16) for done in range(1, 17)]
    told.clear()
    validate(source, frames="none", progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]


@dataclass
class Long:
    """A source of many episodes that remembers how many are alive."""

    path: Path
    count: int
    read: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = {"action": Column("float64", (2,)), "state": Column("float64", (2,))}
        self.info = SourceInfo("made up", columns, cameras={"front": Camera(8, 8, "image")})

    def __len__(self) -> int:
        return self.count

    def recording(self, index: int) -> Recording:
        self.read.append(index)
        made = make(index)
        evidence = Evidence("told", bool(index % 2), certain=True)
        return Recording(str(index), {"action": made.actions, "state": made.states}, "go", evidence)

    def frames(self, index: int, camera: str):
        self.decoded.append(index)
        for step in range(STEPS):
            yield np.full((8, 8, 3), 5 * step, np.uint8)

    def files(self) -> tuple[Path, ...]:
        return ()


def test_a_sample_of_frames_is_spread_over_the_set(tmp_path):
    source = Long(tmp_path, 96)
    validation: Validation = validate(source)
    assert validation.findings == ()
    assert validation.frames_read == len(source.decoded) == 20
    assert source.decoded == [5 * number for number in range(20)]


def test_an_empty_source_and_one_without_actions(tmp_path):
    assert validate(Long(tmp_path, 0)).findings == ()
    source = Long(tmp_path, 4)
    source.info = replace(source.info, columns={"state": Column("float64", (2,))})
    source.recording = lambda index: Recording(
        str(index),
        {"state": make(index).states},
        "go",
        Evidence("told", bool(index % 2), certain=True),
    )
    assert [one.code for one in validate(source).findings] == ["no-action"]
