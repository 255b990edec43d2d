"""Evaluation over a Ray cluster: the same files, also when a worker dies on the way."""

import signal
from functools import partial
from pathlib import Path

import pytest

from robot_qsft.datasets.worker import WorkerDiedError
from robot_qsft.evaluate import EvaluationConfig, evaluate
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.rollouts import Attempt, rollouts

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own

LIFT = PyBulletConfig("Lift", cameras=(), max_steps=40)


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_result_is_that_of_one_machine_though_a_worker_dies(cluster, tmp_path: Path) -> None:
    def evaluate_script(name: str, *, progress, **changes: object) -> None:
        config = EvaluationConfig(episodes=30, **changes)
        script = Script(carry=False, noise=0.6)
        evaluate(script, LIFT, config, tmp_path / name, settings={}, progress=progress)

    evaluate_script("one", workers=1, progress=lambda episode: None)
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    seen: list[int] = []

    def kill_the_second(episode) -> None:
        seen.append(episode.seed)
        if len(seen) == 10:
            cluster.remove_node(second, allow_graceful=False)

    evaluate_script("ray", ray=cluster.address, progress=kill_the_second)
    assert len(seen) == 30, "the second worker was killed midway"
    assert set(files(tmp_path / "ray")) == {"episodes.jsonl", "result.json", "settings.json"}
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def test_commands_of_a_cluster_started_in_another_folder(
    cluster, command_line, demonstrations, tiny_arguments, tmp_path: Path, monkeypatch
) -> None:
    def succeed(*arguments: str | Path) -> None:
        status, printed = command_line(*arguments)
        assert status == 0, printed

    monkeypatch.chdir(tmp_path)
    images = ["--image-size", "16"]
    succeed(
        *("train", "--data", demonstrations, "--run", "run", *images),
        *(*tiny_arguments, "--steps", "3"),
    )
    short = ["pybullet", "--max-steps", "3"]
    evaluate_run = ["eval", "--run", "run", "--episodes", "3"]
    succeed(*evaluate_run, "--name", "one", "--workers", "1", *short)
    succeed(*evaluate_run, "--name", "ray", "--ray", cluster.address, *short)
    assert files(Path("run/evaluations/ray")) == files(Path("run/evaluations/one"))
    collect = ["collect", "--episodes", "3"]
    succeed(*collect, "--out", "one", "--workers", "1", *short, *images)
    succeed(*collect, "--out", "ray", "--ray", cluster.address, *short, *images)
    assert files(Path("ray")) == files(Path("one"))


@pytest.mark.parametrize(
    ("policy", "kind", "sentence"),
    [
        (Script(noise=float("nan")), ValueError, "{} failed: the action must be 4 finite numbers"),
        (partial(len, 3), RuntimeError, "{} failed: object of type 'int' has no len"),
        (
            partial(signal.raise_signal, signal.SIGKILL),
            WorkerDiedError,
            "3 worker processes in a row died at {}, perhaps for lack of memory",
        ),
    ],
    ids=["refused", "broken", "deadly"],
)
def test_failure_names_the_seed(cluster, policy, kind: type[Exception], sentence: str) -> None:
    attempts = [Attempt(LIFT, Script(), 1), Attempt(LIFT, policy, 77)]
    results = rollouts(attempts, workers=1, ray=cluster.address)
    assert next(results).attempt.seed == 1
    with pytest.raises(kind, match="^" + sentence.format("the episode with seed 77 in Lift")):
        next(results)
