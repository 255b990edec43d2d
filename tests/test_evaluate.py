"""Success over fixed start states: the same again, resumed, compared, filmed."""

import json
import shutil
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import pytest

from robot_qsft.evaluate import (
    EpisodeResult,
    Evaluation,
    EvaluationConfig,
    PolicyFactory,
    compare,
    evaluate,
    film,
    read_evaluation,
)
from robot_qsft.intervals import paired_difference, wilson
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.rollouts import Attempt, rollouts
from robot_qsft.train import train

LIFT = PyBulletConfig("Lift", cameras=(), max_steps=40)
CLUMSY = Script(carry=False, noise=0.6)
"""Lifts the cube from some start states and not from others."""


class Quiet:
    def started(self, step): ...

    def step(self, step, metrics): ...

    def validated(self, step, metrics): ...


def evaluate_script(
    folder: Path, script: Script = CLUMSY, *, recorded: Script | None = None, told=None, **changes
) -> Evaluation:
    settings = {"script": repr(recorded or script)}
    config = EvaluationConfig(**{"episodes": 6, "workers": 1, **changes})
    told = [] if told is None else told
    return evaluate(script, LIFT, config, folder, settings=settings, progress=told.append)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished evaluation."""
    folder = tmp_path_factory.mktemp("evaluations") / "whole"
    evaluate_script(folder)
    return folder


def test_rate_counts_what_happened(whole):
    evaluation = read_evaluation(whole)
    assert evaluation.seeds == tuple(range(10_000_000, 10_000_006))
    assert 0 < evaluation.successes.sum() < 6, "this test needs both outcomes"
    attempts = [Attempt(LIFT, CLUMSY, seed) for seed in evaluation.seeds]
    for episode, rollout in zip(evaluation.episodes, rollouts(attempts, workers=1), strict=True):
        assert episode.success == rollout.episode.success
        assert episode.steps == len(rollout.episode) == len(episode.actions)
        np.testing.assert_allclose(episode.actions, rollout.episode.actions)
        assert episode.values == []
    result = json.loads((whole / "result.json").read_text())
    expected = wilson(evaluation.successes)
    assert (result["success"], result["low"], result["high"], result["n"]) == (
        *(expected.value, expected.low, expected.high),
        6,
    )
    assert result["success"] == pytest.approx(evaluation.successes.mean())


def test_result_records_settings_and_versions(whole):
    result = json.loads((whole / "result.json").read_text())
    assert result["script"] == repr(CLUMSY)
    assert result["first_seed"] == 10_000_000
    assert result["environment"]["task"] == "Lift"
    assert result["environment"]["max_steps"] == 40
    for package in ("python", "robot-qsft", "torch", "numpy", "pybullet", "gymnasium"):
        assert result["versions"][package][0].isdigit()


def test_trained_policy_gives_the_same_result_again_whatever_the_workers(
    tiny, training_data, tmp_path
):
    checkpoint = train(tiny, training_data, tmp_path / "run", progress=Quiet(), resume=False)
    environment = PyBulletConfig("Stitch", image_size=16, max_steps=4)
    decoding = DecodingConfig(temperature=1)  # the harder case: drawn from the episode's seed
    written = []
    for name, workers in (("first", 1), ("again", 1), ("two", 2)):
        evaluate(
            PolicyFactory(str(checkpoint), decoding),
            environment,
            EvaluationConfig(episodes=4, workers=workers),
            tmp_path / name,
            settings={"decoding": "sampled"},
            progress=lambda episode: None,
        )
        files = ("episodes.jsonl", "result.json", "settings.json")
        written.append([(tmp_path / name / file).read_bytes() for file in files])
    assert written[0] == written[1] == written[2]
    episodes = read_evaluation(tmp_path / "first").episodes
    assert all(len(episode.values) == episode.steps == 4 for episode in episodes)
    assert all(0 <= value <= 1 for episode in episodes for value in episode.values)
    assert len({json.dumps(episode.actions) for episode in episodes}) == 4


def assert_same_files(one: Path, other: Path) -> None:
    names = {file.name for file in one.iterdir()}
    assert {file.name for file in other.iterdir()} == names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def copy_interrupted(whole: Path, folder: Path, *, lines: int, rest: int) -> None:
    """`whole` as it was after so many lines and bytes of the next."""
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    content = (whole / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    written = b"".join(content[:lines]) + content[lines][:rest]
    (folder / "episodes.jsonl").write_bytes(written)


@pytest.mark.parametrize(("lines", "rest"), [(0, 0), (2, 50), (4, 0), (5, 30)])
def test_interrupted_evaluation_goes_on_to_the_same_result(whole, tmp_path, lines, rest):
    folder = tmp_path / "broken"
    copy_interrupted(whole, folder, lines=lines, rest=rest)
    with pytest.raises(ValueError, match="no finished evaluation"):
        read_evaluation(folder)
    told: list[EpisodeResult] = []
    evaluate_script(folder, told=told)
    assert len(told) == 6 - lines
    assert_same_files(whole, folder)


def test_finished_evaluation_is_read_and_extended_not_repeated(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    told: list[EpisodeResult] = []
    assert len(evaluate_script(folder, told=told).episodes) == 6
    assert told == []
    assert len(evaluate_script(folder, told=told, episodes=7).episodes) == 7
    assert [episode.seed for episode in told] == [10_000_006]
    # Asked for fewer again, it reports on those.
    evaluate_script(folder, episodes=3)
    assert read_evaluation(folder).seeds == (10_000_000, 10_000_001, 10_000_002)


DEADLY = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from robot_qsft.sim.pybullet.demonstrators import Script, ScriptedDemonstrator

@dataclass(frozen=True)
class Deadly(Script):
    """Kills its process at one start state while the marker is there; `once`, not again."""
    seed: int = 0
    marker: str = ""
    once: bool = True

    def __call__(self):
        return DeadlyDemonstrator(self)

class DeadlyDemonstrator(ScriptedDemonstrator):
    def reset(self, *, seed):
        super().reset(seed=seed)
        script = self._script
        if seed == script.seed and Path(script.marker).exists():
            if script.once:
                Path(script.marker).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """Makes CLUMSY die at the fourth start state; the marker is there."""
    (tmp_path / "deadly_for_tests.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "deadly"
    marker.touch()
    make = import_module("deadly_for_tests").Deadly
    fields = {**asdict(CLUMSY), "seed": 10_000_003, "marker": str(marker)}
    return lambda *, once: make(**fields, once=once)


def test_evaluation_outlives_a_worker(whole, deadly, tmp_path):
    evaluate_script(tmp_path / "out", deadly(once=True), recorded=CLUMSY, workers=2)
    assert not (tmp_path / "deadly").exists(), "a worker died"
    assert_same_files(whole, tmp_path / "out")


def test_episode_that_kills_every_worker_is_named_and_the_rest_kept(whole, deadly, tmp_path):
    script, folder = deadly(once=False), tmp_path / "out"
    told: list[EpisodeResult] = []
    with pytest.raises(RuntimeError, match="died at the episode with seed 10000003 in Lift, perh"):
        evaluate_script(folder, script, recorded=CLUMSY, workers=2, told=told)
    kept = (folder / "episodes.jsonl").read_bytes().splitlines()
    assert kept == (whole / "episodes.jsonl").read_bytes().splitlines()[:3]
    assert len(told) == 3
    (tmp_path / "deadly").unlink()
    evaluate_script(folder, script, recorded=CLUMSY, workers=2, told=told)
    assert [episode.seed for episode in told] == list(range(10_000_000, 10_000_006)), "each once"
    assert_same_files(whole, folder)


def test_other_settings_are_refused(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match="holds results with another script; delete it"):
        evaluate_script(folder, Script())
    with pytest.raises(ValueError, match="holds results with another first_seed"):
        evaluate_script(folder, first_seed=3)
    with pytest.raises(ValueError, match="holds results with another environment"):
        evaluate(
            CLUMSY,
            replace(LIFT, max_steps=41),
            EvaluationConfig(),
            folder,
            settings={"script": repr(CLUMSY)},
            progress=lambda episode: None,
        )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_damaged_line_in_the_middle_is_named(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    lines = (folder / "episodes.jsonl").read_text().splitlines(keepends=True)
    (folder / "episodes.jsonl").write_text("".join([lines[0], "{}\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"line 2 of .*episodes\.jsonl is damaged"):
        evaluate_script(folder)


def test_comparison_is_paired_by_start_state(whole):
    clumsy = read_evaluation(whole)
    skilled = Evaluation(tuple(replace(one, success=True) for one in clumsy.episodes))
    difference = compare(skilled, clumsy)
    assert difference.value == pytest.approx(1 - clumsy.successes.mean())
    assert difference == paired_difference(skilled.successes, clumsy.successes)
    assert compare(clumsy, clumsy).value == 0
    for other in (
        clumsy.episodes[:-1],
        (*clumsy.episodes[:-1], replace(clumsy.episodes[-1], seed=5)),
    ):
        with pytest.raises(ValueError, match="needs the same start states"):
            compare(clumsy, Evaluation(other))


def test_videos_show_the_episodes(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    evaluate_script(folder, videos=2, video_size=64)
    episodes = read_evaluation(folder).episodes[:2]
    verdicts = {True: "success", False: "failure"}
    names = {f"seed-{one.seed}-{verdicts[one.success]}.mp4" for one in episodes}
    assert {file.name for file in (folder / "videos").iterdir()} == names
    for episode in episodes:
        file = folder / "videos" / f"seed-{episode.seed}-{verdicts[episode.success]}.mp4"
        with av.open(str(file)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == episode.steps
        assert frames[0].shape == (64, 64, 3)
        shown = film(LIFT, episode, size=64)
        np.testing.assert_allclose(frames[-1].mean(), shown[-1].mean(), atol=3)
        moved = np.abs(shown[-1].astype(float) - shown[0]).mean()
        assert moved > 1


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        EvaluationConfig(episodes=0)
