"""Training runs side by side, in processes of their own."""

import multiprocessing
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress

from robot_qsft import recipes
from robot_qsft.train import train
from robot_qsft.train_many import Job, train_many
from robot_qsft.training_data import DataSource
from robot_qsft.training_state import latest_checkpoint


class Quiet:
    def started(self, step): ...

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

    again = bars()
    jobs = [Job(name, config, tmp_path / name, source) for name, config in configs.items()]
    assert train_many(jobs, workers=2, progress=again) == together
    assert [task.completed for task in again.tasks] == [12, 10]  # what was done before counts

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
    assert multiprocessing.active_children() == []


def test_interrupt_stops_the_workers(tiny, source, tmp_path):
    """Here of this process alone; from a terminal, Ctrl-C reaches the workers too."""
    endless = replace(tiny, steps=1_000_000)
    checkpoint = tmp_path / "run/checkpoints/step-000005"
    over = threading.Event()

    def interrupt_once_it_trains():
        while not (checkpoint.exists() or over.wait(0.02)):
            pass
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watch = threading.Thread(target=interrupt_once_it_trains)
    watch.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train_many(
                [Job("endless", endless, tmp_path / "run", source)], workers=1, progress=bars()
            )
    finally:
        over.set()
        watch.join()
    assert multiprocessing.active_children() == []
    assert latest_checkpoint(tmp_path / "run").name >= "step-000005"
