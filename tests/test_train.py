"""Training: what it learns, what it leaves, and that nothing can interrupt it for good."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robot_qsft import recipes
from robot_qsft.datasets.batches import SamplerConfig, TrainingData
from robot_qsft.datasets.interface import Observation
from robot_qsft.datasets.store import Dataset
from robot_qsft.policies.checkpoint import load_policy
from robot_qsft.policies.rt import PolicySpec, RTNetwork
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy
from robot_qsft.train import TrainConfig, learning_rate_at, train
from robot_qsft.training_data import load_training_data
from robot_qsft.training_display import TrainingDisplay
from robot_qsft.training_state import latest_checkpoint

FILES = ("policy.safetensors", "training.safetensors")


class Watcher:
    """Remembers what training reported, and may interrupt it."""

    def __init__(self, interrupt_at=None):
        self.steps, self.validations = [], []
        self._interrupt_at = interrupt_at

    def started(self, step):
        self.begun_after = step

    def step(self, step, metrics):
        self.steps.append((step, dict(metrics)))
        if step == self._interrupt_at:
            raise KeyboardInterrupt

    def validated(self, step, metrics):
        self.validations.append((step, dict(metrics)))


def run_training(config: TrainConfig, data: TrainingData, run: Path, *, resume=False) -> Path:
    return train(config, data, run, progress=Watcher(), resume=resume)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_qsft", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("killed_by", "precision"), [(signal.SIGINT, "auto"), (signal.SIGKILL, "float32")]
)
def test_killed_and_resumed_it_ends_with_the_same_weights(
    demonstrations,
    tiny_arguments,
    process_environment,
    command_line,
    tmp_path,
    killed_by,
    precision,
):
    def arguments(run):
        return [
            *("train", "--data", str(demonstrations), "--image-size", "16", "--run", str(run)),
            *(*tiny_arguments, "--steps", "210", "--checkpoint-every", "7"),
            *("--precision", precision),
        ]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, printed = command_line(*arguments(whole))
    assert status == 0, printed

    process = start(arguments(broken), process_environment)
    wait_for(broken / "checkpoints/step-000014", process)
    process.send_signal(killed_by)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[killed_by], printed
    assert "Traceback" not in printed
    assert latest_checkpoint(broken).name < "step-000210"

    first = arguments(broken)
    status, printed = command_line("train", "--resume", *first[1:])
    assert status == 0, printed
    assert weights(latest_checkpoint(broken)) == weights(latest_checkpoint(whole))
    assert latest_checkpoint(broken).name == "step-000210"
    names = {path.name for path in (broken / "checkpoints").iterdir()}
    assert not [name for name in names if not re.fullmatch(r"step-\d{6}", name)]


def test_weights_depend_on_dropout_noise_shifts_and_seed(tiny, training_data, tmp_path):
    """Or the test above would show less than it seems to."""
    variants = {
        "same": tiny,
        "no dropout": replace(tiny, network=replace(tiny.network, dropout=0.0)),
        "no noise": replace(tiny, network=replace(tiny.network, state_noise=0.0)),
        "no shifts": replace(tiny, shift_pixels=0),
        "seed": replace(tiny, seed=1),
        "again": tiny,
    }
    content = {
        name: weights(run_training(config, training_data, tmp_path / name))["policy.safetensors"]
        for name, config in variants.items()
    }
    assert content["again"] == content["same"]
    assert len(set(content.values())) == len(variants) - 1


def test_interruption_before_the_first_checkpoint_starts_over(tiny, training_data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny, training_data, tmp_path / "a", progress=Watcher(3), resume=False)
    assert not (tmp_path / "a/checkpoints").exists()
    resumed = run_training(tiny, training_data, tmp_path / "a", resume=True)
    assert weights(resumed) == weights(run_training(tiny, training_data, tmp_path / "b"))


def test_resuming_a_finished_run_changes_nothing(tiny, training_data, tmp_path):
    folder = run_training(tiny, training_data, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    watcher = Watcher()
    assert train(tiny, training_data, folder.parents[1], progress=watcher, resume=True) == folder
    assert (watcher.begun_after, watcher.steps) == (12, [])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_leftovers_of_a_killed_run_do_not_disturb(tiny, training_data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny, training_data, run, progress=Watcher(8), resume=False)
    for name in (".step-000010.123", ".step-000012.77"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "training.safetensors").write_bytes(b"half")
    folder = run_training(tiny, training_data, run, resume=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        *("step-000005", "step-000010", "step-000012")
    ]
    assert weights(folder) == weights(run_training(tiny, training_data, tmp_path / "other"))


def test_damaged_checkpoint_is_named_and_the_one_before_goes_on(tiny, training_data, tmp_path):
    run = tmp_path / "run"
    folder = run_training(tiny, training_data, run)
    whole = weights(folder)
    for damage in (b"", whole["training.safetensors"][:-100], None):
        file = folder / "training.safetensors"
        file.unlink() if damage is None else file.write_bytes(damage)
        with pytest.raises(
            ValueError, match=r"training\.safetensors is missing or damaged .*delete"
        ):
            run_training(tiny, training_data, run, resume=True)
    shutil.rmtree(folder)
    assert weights(run_training(tiny, training_data, run, resume=True)) == whole


def test_checkpoints_are_ordered_by_number(tmp_path):
    for step in ("999999", "1000000", "000007"):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert latest_checkpoint(tmp_path).name == "step-1000000"


def test_run_is_not_overwritten_nor_resumed_otherwise(tiny, training_data, tmp_path):
    run = tmp_path / "run"
    folder = run_training(tiny, training_data, run)
    before = weights(folder)
    with pytest.raises(ValueError, match="exists already; add --resume"):
        run_training(tiny, training_data, run)
    changed = replace(tiny, learning_rate=1e-4, tokenizer=replace(tiny.tokenizer, bins=9))
    with pytest.raises(ValueError, match="another learning_rate, tokenizer; resume with the same"):
        run_training(changed, training_data, run, resume=True)
    assert weights(folder) == before


def test_resuming_on_other_data_is_refused(tiny, training_data, tmp_path):
    run = tmp_path / "run"
    run_training(tiny, training_data, run)
    tables = replace(training_data.tables, actions=training_data.tables.actions * 2)
    with pytest.raises(ValueError, match=r"other data or cameras \(action_tokenizer differ"):
        run_training(tiny, replace(training_data, tables=tables), run, resume=True)
    renamed = replace(training_data, images={"wrist": training_data.images["front"]})
    with pytest.raises(ValueError, match=r"other data or cameras \(spec differ"):
        run_training(tiny, renamed, run, resume=True)
    blind = replace(training_data, images={})
    with pytest.raises(ValueError, match="network of another shape"):
        run_training(tiny, blind, run, resume=True)


def zeros(data: TrainingData, **columns: bool) -> TrainingData:
    """`data` with some columns of its tables zero."""
    tables = data.tables
    changed = {name: np.zeros_like(getattr(tables, name)) for name in columns}
    return replace(data, tables=replace(tables, **changed))


@pytest.mark.parametrize(
    ("changes", "zeroed", "message"),
    [
        ({"sampler": SamplerConfig(batch_size=5000)}, {}, "fewer than one batch of 5000; collect"),
        ({}, {"rewards": True}, "all 24 have none; add .* or train behaviour cloning"),
        (
            {"method": "bc", "episodes": "successful"},
            {"successes": True},
            "no training episode succeeded.*train on all episodes",
        ),
        ({"device": "abacus"}, {}, "device must be cpu, cuda or auto, got 'abacus'"),
    ],
)
def test_refused_training_leaves_nothing(tiny, training_data, tmp_path, changes, zeroed, message):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        run_training(replace(tiny, **changes), zeros(training_data, **zeroed), run)
    assert not run.exists()


@pytest.mark.parametrize("name", ["chunk", "steps", "validate_every", "checkpoint_every"])
def test_a_run_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TrainConfig(**{name: 0})


@pytest.mark.parametrize(
    ("recipe", "least", "most"),
    [(recipes.images, 1e6, 2e6), (recipes.state, 5e5, 1e6), (recipes.rt1_images, 3e7, 4e7)],
)
def test_networks_are_as_large_as_their_recipes_say(recipe, least, most):
    config = recipe()
    cameras = () if config.environment_state else ("front",)
    spec = PolicySpec(cameras, 64, 8, 10, (24, 24, 24, 2), (False, False, False, True))
    assert least < RTNetwork(config.network, spec).parameter_count() < most


@pytest.mark.parametrize("recipe", [recipes.bc, recipes.filtered_bc, recipes.paper])
def test_recipes_train_and_act(tiny, training_data, tmp_path, recipe):
    config = replace(recipe(tiny), environment_state=True)
    watcher = Watcher()
    folder = train(config, training_data, tmp_path / "run", progress=watcher, resume=False)
    network, _, method = load_policy(folder)
    assert method == config.method
    assert (network.likelihood_trunk is not None) == (recipe is recipes.paper)
    assert network.config.reject_token == (recipe is not recipes.paper)
    assert [step for step, _ in watcher.steps] == list(range(1, 13))
    assert all(np.isfinite(metrics["loss"]) for _, metrics in watcher.steps)
    assert all(
        (metrics["likelihood"] > 0) == (config.method == "qsft") for _, metrics in watcher.steps
    )
    extraction = "paper" if recipe is recipes.paper else "ratio"
    policy = TokenPolicy.load(folder, DecodingConfig(extraction=extraction))
    policy.reset(seed=0)
    observation = Observation(
        training_data.tables.states[0],
        "put the cube on the mark",
        {"front": training_data.images["front"][0]},
        training_data.tables.environment_states[0],
    )
    chunk = policy.act(observation)
    low, high = training_data.tables.actions.min(axis=0), training_data.tables.actions.max(axis=0)
    assert ((low <= chunk.actions) & (chunk.actions <= high)).all()
    assert (chunk.value is not None) == (config.method == "qsft")


def test_filtered_bc_reads_successful_training_episodes_only(tiny, training_data, tmp_path):
    """Data of the others can be anything."""
    config = replace(recipes.filtered_bc(tiny), validation_batches=0)
    tables, training = training_data.tables, training_data.training
    successful = set(training[tables.episode_successes[training]].tolist())
    assert 0 < len(successful) < len(training)
    rows = np.repeat(
        [episode in successful for episode in range(len(tables.episode_starts))],
        tables.episode_lengths,
    )
    noise = np.random.default_rng(0).normal(size=tables.actions.shape).astype(np.float32)
    other = replace(tables, actions=np.where(rows[:, None], tables.actions, noise))
    there = run_training(config, training_data, tmp_path / "a")
    here = run_training(config, replace(training_data, tables=other), tmp_path / "b")
    assert weights(here) == weights(there)


def test_held_out_episodes_judge_but_do_not_teach(tiny, training_data, tmp_path):
    tables = training_data.tables
    held_out = np.isin(np.arange(len(tables.episode_starts)), training_data.validation)
    rows = np.repeat(held_out, tables.episode_lengths)[:, None]
    other = replace(tables, actions=np.where(rows, 0, tables.actions).astype(np.float32))
    seen, folders = [], []
    for name, data in (("a", training_data), ("b", replace(training_data, tables=other))):
        watcher = Watcher()
        folders.append(train(tiny, data, tmp_path / name, progress=watcher, resume=False))
        assert [step for step, _ in watcher.validations] == [5, 10, 12]
        seen.append([metrics["loss"] for _, metrics in watcher.validations])
    assert weights(folders[0]) == weights(folders[1])
    assert np.isfinite(seen).all()
    assert seen[0] != seen[1]


def test_nothing_is_held_out_when_nothing_should_be(tiny, demonstrations, tmp_path):
    data = load_training_data(
        Dataset.open(demonstrations), cameras=(), image_size=16, validation_share=0.0
    )
    watcher = Watcher()
    train(tiny, data, tmp_path / "run", progress=watcher, resume=False)
    assert not watcher.validations


@pytest.fixture(scope="module")
def bandit(write_dataset, tmp_path_factory):
    """One-step episodes: 80% choose -1 and fail, 20% choose 1 and succeed, whatever they see."""
    rng = np.random.default_rng(0)
    chosen = np.where(rng.random(400) < 0.2, 1.0, -1.0)
    path = write_dataset(
        tmp_path_factory.mktemp("bandit") / "data",
        actions=[np.full((1, 1), action) for action in chosen],
        successes=(chosen > 0).tolist(),
        states=[rng.normal(size=(1, 2)) for _ in chosen],
    )
    return load_training_data(Dataset.open(path), cameras=(), image_size=16, validation_share=0.1)


def learner(tiny: TrainConfig, **changes: int) -> TrainConfig:
    """Learns something small in seconds."""
    return replace(
        tiny,
        network=replace(tiny.network, dropout=0.0),
        sampler=SamplerConfig(batch_size=64),
        learning_rate=5e-3,
        target_rate=0.05,
        checkpoint_every=1000,
        **changes,
    )


def test_it_learns_what_pays_from_those_who_mostly_do_not_know(tiny, bandit, tmp_path):
    config = learner(tiny, steps=150)
    watcher = Watcher()
    folder = train(config, bandit, tmp_path / "run", progress=watcher, resume=False)
    started, ended = (
        np.mean([metrics["loss"] for _, metrics in part])
        for part in (watcher.steps[:5], watcher.steps[-20:])
    )
    assert ended < 0.8 * started
    # The behaviour cannot be told better than by its entropy, H(0.2) = 0.500 nats.
    behaviour = np.mean([metrics["behaviour"] for _, metrics in watcher.steps[-20:]])
    assert behaviour == pytest.approx(0.5, abs=0.08)

    observation = Observation(np.zeros(2, np.float32), "do it")
    for beta, action, value in ((0.0, -1.0, 0.0), (16.0, 1.0, 1.0)):
        policy = TokenPolicy.load(folder, DecodingConfig(beta=beta, temperature=0))
        policy.reset(seed=0)
        chunk = policy.act(observation)
        assert chunk.actions.tolist() == [[action]]
        assert chunk.value == pytest.approx(value, abs=0.15)
        share = np.exp(chunk.behaviour_log_probability)
        assert share == pytest.approx(0.8 if action < 0 else 0.2, abs=0.1)


@pytest.fixture(scope="module")
def lock(write_dataset, tmp_path_factory):
    """Two steps, -1 or 1 each; 25% do twice the same, which pays. Nobody sees what was done."""
    rng = np.random.default_rng(0)
    first = rng.choice([-1.0, 1.0], 600)
    second = np.where(rng.random(600) < 0.25, first, -first)
    path = write_dataset(
        tmp_path_factory.mktemp("lock") / "data",
        actions=[np.array([[one], [other]]) for one, other in zip(first, second, strict=True)],
        successes=(first == second).tolist(),
        states=[np.array([[0.0, x], [1.0, x]]) for x in rng.normal(size=600)],
    )
    return load_training_data(Dataset.open(path), cameras=(), image_size=16, validation_share=0.1)


def test_a_chunk_fits_together_and_goes_on_from_what_is_committed(tiny, lock, tmp_path):
    config = learner(tiny, steps=250, chunk=2)
    folder = train(config, lock, tmp_path / "run", progress=Watcher(), resume=False)
    observation = Observation(np.zeros(2, np.float32), "do it")
    policy = TokenPolicy.load(folder, DecodingConfig(beta=16, temperature=1))
    cloned = TokenPolicy.load(folder, DecodingConfig(beta=0, temperature=0))
    policy.reset(seed=0)
    chunks = [policy.act(observation) for _ in range(20)]
    assert {float(chunk.actions[0, 0]) for chunk in chunks} == {-1.0, 1.0}
    assert sum(chunk.actions[0, 0] == chunk.actions[1, 0] for chunk in chunks) >= 19
    assert np.mean([chunk.value for chunk in chunks]) > 0.5
    for first in (-1.0, 1.0):
        committed = np.array([[first]], np.float32)
        bound = policy.act_after(observation, committed)
        assert bound.actions.tolist() == [[first], [first]]
        imitated = cloned.act_after(observation, committed)
        assert imitated.actions.tolist() == [[first], [-first]]
        assert imitated.value < 0.3


def test_a_chunk_is_no_longer_than_the_return_looks_ahead(tiny):
    with pytest.raises(ValueError, match="steps must be at least the 6 actions of a chunk"):
        replace(tiny, chunk=6)


def test_learning_rate_rises_and_falls():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    assert learning_rate_at(config, 0) == pytest.approx(0.1)
    assert learning_rate_at(config, 9) == pytest.approx(1.0)
    assert learning_rate_at(config, 60) == pytest.approx(0.5)  # half way along the cosine
    assert learning_rate_at(config, 110) == pytest.approx(0.0)


def test_log_can_be_read_by_tensorboard(demonstrations, tiny_arguments, command_line, tmp_path):
    status, printed = command_line(
        *("train", "--data", demonstrations, "--image-size", "16", "--run", tmp_path / "run"),
        *(*tiny_arguments, "--steps", "20"),
    )
    assert status == 0, printed
    assert "data wait" in printed
    log = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    validations = [event.step for event in log.Scalars("validation/loss")]
    assert validations == [5, 10, 15, 20]
    assert [event.step for event in log.Scalars("train/loss")] == [20]
    assert all(np.isfinite(event.value) for event in log.Scalars("validation/behaviour"))
    assert 0 <= log.Scalars("train/data_wait_share")[0].value <= 1


def test_steps_that_a_resumed_run_repeats_are_logged_once(tmp_path):
    for last in (60, 40):  # killed after step 60, gone on with from a checkpoint before 20
        display = TrainingDisplay(Progress(), "run", 60, tmp_path)
        for step in range(20, last + 1, 20):
            display.step(step, {"loss": float(last), "step_s": 0.1, "data_wait_share": 0.0})
        display.close()
        time.sleep(1.1)  # log files are read in the order of the seconds in their names
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in log.Scalars("train/loss")] == [(20, 40.0), (40, 40.0)]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_full_disk_is_one_sentence_and_leaves_no_half_checkpoint(
    training_data, demonstrations, tiny_arguments, process_environment, tmp_path
):
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from robot_qsft.cli import main; main()"
    )
    run = tmp_path / "run"
    process = subprocess.run(
        [
            *(sys.executable, "-c", limited, "train", "--data", str(demonstrations)),
            *("--image-size", "16", "--run", str(run), *tiny_arguments, "--steps", "20"),
        ],
        env=process_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process.stdout
    assert "Traceback" not in process.stdout
    last = process.stdout.splitlines()[-1]
    assert re.match(r"error: .*step-000020 cannot be written .*free some space", last)
    assert list((run / "checkpoints").iterdir()) == []
