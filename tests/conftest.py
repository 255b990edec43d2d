"""Small data and small runs that several test files share."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_qsft.cli import main
from robot_qsft.collect import CollectConfig, collect
from robot_qsft.console import console
from robot_qsft.datasets.batches import SamplerConfig, TrainingData
from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.policies.rt import RTConfig
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.rollouts import Rollout
from robot_qsft.train import Progress, TrainConfig
from robot_qsft.training_data import load_training_data


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums depend on the number of threads; one, as in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def process_environment() -> dict[str, str]:
    """Environment variables of processes that tests start."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "500"}


@pytest.fixture(scope="session")
def parts() -> Callable[[Rollout], dict[str, np.ndarray]]:
    """The arrays of a rollout, by name."""

    def name_them(rollout: Rollout) -> dict[str, np.ndarray]:
        episode = rollout.episode
        return {
            "states": episode.states,
            "environment_states": episode.environment_states,
            "actions": episode.actions,
            "rewards": episode.rewards,
            "successes": episode.successes,
            "values": rollout.values,
            "log_probabilities": rollout.behaviour_log_probabilities,
            **episode.images,
        }

    return name_them


@pytest.fixture(scope="session")
def collection() -> CollectConfig:
    """What `demonstrations` holds."""
    return CollectConfig(
        quality="stitch",
        episodes=24,
        environment=PyBulletConfig("Stitch", image_size=16),
    )


@pytest.fixture(scope="session")
def demonstrations(collection: CollectConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 stitch episodes, some successful, with one camera of 16x16 pixels."""
    path = tmp_path_factory.mktemp("demonstrations") / "stitch"
    collect(collection, path, workers=1, resume=False, progress=lambda rollout: None)
    return path


@pytest.fixture(scope="session")
def training_data(demonstrations: Path) -> TrainingData:
    """`demonstrations` ready for training, with its camera."""
    return load_training_data(
        Dataset.open(demonstrations), cameras=("front",), image_size=16, validation_share=0.3
    )


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Everything that a real run does (dropout, shifts, validation), in a second."""
    return TrainConfig(
        network=RTConfig(
            width=16, layers=1, attention_heads=2, stem_channels=(4, 8), image_tokens=2, dropout=0.1
        ),
        sampler=SamplerConfig(batch_size=16),
        steps=12,
        warmup_steps=3,
        validation_share=0.3,
        validate_every=5,
        validation_batches=2,
        checkpoint_every=5,
        device="cpu",
    )


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """`tiny` as the end of a `robot-qsft train` command, but for its steps."""
    return [
        "images",
        *("--network.width", "16", "--network.layers", "1", "--network.attention-heads", "2"),
        *("--network.stem-channels", "4", "8", "--network.image-tokens", "2"),
        *("--sampler.batch-size", "16", "--warmup-steps", "3", "--validation-share", "0.3"),
        *("--validate-every", "5", "--validation-batches", "2", "--device", "cpu"),
    ]


@pytest.fixture(scope="session")
def silent() -> Progress:
    """Watches a training run and says nothing."""

    class Silent:
        def started(self, step: int) -> None:
            pass

        def step(self, step: int, metrics: Mapping[str, float]) -> None:
            pass

        def validated(self, step: int, metrics: Mapping[str, float]) -> None:
            pass

    return Silent()


@pytest.fixture(scope="module")
def launch_chromium() -> Iterator[Callable[..., Any]]:
    """Starts the system's Chromium without a window, with more arguments where some are given."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, ExitStack() as running:

        def launch(*arguments: str) -> Any:
            chromium = playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=[
                    *("--headless=new", "--no-sandbox", "--disable-background-networking"),
                    *arguments,
                ],
            )
            running.callback(chromium.close)
            return chromium

        yield launch


WriteDataset = Callable[..., Path]


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """Writes a data set of made-up episodes."""

    def write(
        path: Path,
        *,
        actions: Sequence[np.ndarray],
        successes: Sequence[bool],
        states: Sequence[np.ndarray] | None = None,
        camera: Camera | None = None,
    ) -> Path:
        """Episode i takes `actions[i]` (T, A) and is paid 1 at its end if `successes[i]`."""
        states = [taken[:, :1] for taken in actions] if states is None else states
        info = DatasetInfo(
            fps=10,
            action_names=tuple("xyzuvw"[: actions[0].shape[1]]),
            state_names=tuple("pqr"[: states[0].shape[1]]),
            cameras={} if camera is None else {"front": camera},
        )
        with DatasetWriter(path, info=info) as writer:
            for taken, seen, success in zip(actions, states, successes, strict=True):
                rewards = np.zeros(len(taken), np.float32)
                rewards[-1] = success
                shape = (len(taken), camera.height, camera.width, 3) if camera else ()
                writer.add_episode(
                    Episode(
                        states=seen.astype(np.float32),
                        actions=taken.astype(np.float32),
                        rewards=rewards,
                        successes=rewards > 0,
                        terminated=True,
                        truncated=False,
                        instruction="do it",
                        images={"front": np.zeros(shape, np.uint8)} if camera else {},
                        environment_states=np.zeros((len(taken), 0), np.float32),
                    )
                )
        return path

    return write


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Ray cluster of one worker with one CPU, on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield started
        started.shutdown()


CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def command_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Runs `robot-qsft` in this process: exit status, and all that it printed."""
    monkeypatch.setenv("COLUMNS", "500")  # of tyro's help
    monkeypatch.setattr(console, "width", 500)

    def run(*arguments: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        status = ended.value.code
        return status if isinstance(status, int) else int(status is not None), "".join(printed)

    return run


@pytest.fixture
def refused(command_line: CommandLine) -> Callable[..., str]:
    """Runs `robot-qsft`, which must end in one sentence; gives that sentence."""

    def run(*arguments: str | Path) -> str:
        status, printed = command_line(*arguments)
        assert status == 1, printed
        assert "Traceback" not in printed
        sentences = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, printed
        # The sentence comes last: nothing is printed after it, and it takes one line.
        assert printed.rstrip().splitlines()[-1] == sentences[0]
        return sentences[0]

    return run
