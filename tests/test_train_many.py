"""Training runs side by side, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress

from robot_qsft import recipes
from robot_qsft.train import train
from robot_qsft.train_many import Job, train_many
from robot_qsft.training_data import DataSource


class Quiet:
    def step(self, step, metrics): ...

    def validated(self, step, metrics): ...


def bars() -> Progress:
    return Progress("{task.description}", "{task.fields[note]}")


@pytest.fixture
def source(demonstrations) -> DataSource:
    return DataSource(demonstrations, (), 16, 0.3)


def test_side_by_side_gives_the_weights_of_each_alone(tiny, source, tmp_path):
    configs = {"qsft": tiny, "bc": recipes.bc(replace(tiny, steps=10))}
    progress = bars()
    together = train_many(
        [Job(name, config, tmp_path / name, source) for name, config in configs.items()],
        workers=2,
        progress=progress,
    )
    assert [folder.name for folder in together] == ["step-000012", "step-000010"]
    assert [task.completed for task in progress.tasks] == [10, 10]  # told every ten steps
    assert all((tmp_path / name / "tensorboard").is_dir() for name in configs)

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    for folder, (name, config) in zip(together, configs.items(), strict=True):
        alone = tmp_path / "alone" / name
        alone = train(config, source(), alone, progress=Quiet(), resume=False)
        for file in ("policy.safetensors", "training.safetensors"):
            assert (alone / file).read_bytes() == (folder / file).read_bytes()


def test_error_of_one_is_raised_at_once_and_stops_the_other(tiny, source, tmp_path):
    endless = replace(tiny, steps=1_000_000, checkpoint_every=20)
    bad = replace(tiny, tokenizer=replace(tiny.tokenizer, bins=9))
    run = tmp_path / "bad"
    train(tiny, source(), run, progress=Quiet(), resume=False)
    jobs = [Job("endless", endless, tmp_path / "endless", source), Job("bad", bad, run, source)]
    with pytest.raises(ValueError, match="was started with another tokenizer"):
        train_many(jobs, workers=2, progress=bars())


LONG = """
import sys
from dataclasses import replace
from pathlib import Path
from rich.progress import Progress
from robot_qsft.policies.rt import RTConfig
from robot_qsft.train import TrainConfig
from robot_qsft.train_many import Job, train_many
from robot_qsft.training_data import DataSource
if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    network = RTConfig(width=16, layers=1, attention_heads=2)
    config = TrainConfig(network=network, steps=1_000_000, checkpoint_every=5)
    jobs = [Job("a", config, out / "a", DataSource(data, (), 16, 0.3))]
    train_many(jobs, workers=1, progress=Progress("{task.fields[note]}"))
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
@pytest.mark.parametrize("killed_by", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(demonstrations, process_environment, tmp_path, killed_by):
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, str(demonstrations), str(tmp_path)],
        env=process_environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "a/checkpoints/step-000005").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(killed_by)  # to the parent alone
    assert process.wait(timeout=60) != 0
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")
