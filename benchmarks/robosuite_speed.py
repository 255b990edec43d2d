"""How fast robosuite's tasks run: against plain robosuite, in processes, and in an evaluation.

Plain robosuite is `robosuite.make` as it comes, with the same offscreen camera; both are given the
same actions and take turns, block by block, in a process of their own for every view: what plain
robosuite frees late would otherwise be freed from the next view's renderer. Ratios are of CPU
seconds of that process, all its threads included, so that other programs do not count.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from learning import ROOT, Run, Setup, run_all
from numpy.typing import NDArray
from report import Figure, at_least, at_most, mean_interval, publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig
from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.datasets.worker import Worker
from robot_qsft.evaluate import EvaluationConfig, PolicyFactory, evaluate
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.sim.robosuite.config import CAMERAS, RobosuiteConfig, Task
from robot_qsft.sim.robosuite.engine import import_robosuite
from robot_qsft.sim.robosuite.env_args import env_args_of
from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment
from robot_qsft.sim.rollouts import Attempt, rollouts
from robot_qsft.training_state import latest_checkpoint

SIZE = 84
STEPS_PER_BLOCK = 25
ACTIONS = 7
SEED = 0


@dataclass
class Contestant:
    """How an environment is reset and stepped, and its steps per CPU second, block by block."""

    reset: Callable[[], Any]
    step: Callable[[Any], Any]
    rates: list[float] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    """The last observation."""

    def run(self, actions: Any) -> None:
        """One block."""
        begin = time.process_time()
        for action in actions:
            self.seen = self.step(action)[0]
        self.rates.append(len(actions) / (time.process_time() - begin))


@dataclass(frozen=True)
class Wander:
    """A `Policy` (and its own factory) that makes the same small motion at every step."""

    def __call__(self) -> "Wander":
        """Itself."""
        return self

    def reset(self, *, seed: int) -> None:
        """Begin."""

    def act(self, observation: Observation) -> ActionChunk:
        """The motion."""
        return ActionChunk(np.array([[0.1, 0.0, 0.1, 0.0, 0.0, 0.0, -1.0]], np.float32))


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__ or "")
    blocks = 2 if quick else 16
    figures = []
    for view in _VIEWS[:1] if quick else _VIEWS:
        process: Worker[View, list[Figure]] = Worker(partial(_against_plain, blocks=blocks))
        figures += process(view)
        process.dismiss()
        process.join()
    figures += _in_processes(12 if quick else 60, rounds=1 if quick else 5)
    figures.append(_evaluation(4 if quick else 100))
    return 0 if publish("robosuite_speed", figures, quick=quick) else 1


@dataclass(frozen=True)
class View:
    """What is compared.

    Attributes:
        task: of robosuite.
        camera: "" for low-dimensional state alone.
        least: what the ratio of "fast" has to be.
    """

    task: Task
    camera: str
    least: float | None = None


_VIEWS = (
    View("Lift", "agentview", least=2.0),
    View("Lift", "wrist"),
    View("Can", "agentview"),
    View("Door", "agentview"),
    View("Lift", ""),
)


def _against_plain(view: View, *, blocks: int) -> list[Figure]:
    """Steps per second of ours, "exact" and "fast", and of plain robosuite."""
    task, camera = view.task, view.camera
    config = RobosuiteConfig(
        task, cameras=(camera,) if camera else (), image_size=SIZE, max_steps=10**6
    )
    robosuite = import_robosuite(log=False)
    plain = robosuite.make(
        env_args_of(config).env_name,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=bool(camera),
        use_camera_obs=bool(camera),
        ignore_done=True,
        seed=SEED,
        **({"camera_names": CAMERAS[camera]} if camera else {}),
        camera_heights=SIZE,
        camera_widths=SIZE,
    )
    ours = {
        name: RobosuiteEnvironment(replace(config, rendering=name))
        for name in (("fast", "exact") if camera else ("fast",))
    }
    contestants = {
        "plain": Contestant(plain.reset, plain.step),
        **{name: Contestant(one.reset, one.step) for name, one in ours.items()},
    }
    rng = np.random.default_rng(SEED)
    for block in range(blocks + 1):
        actions = rng.uniform(-1, 1, (STEPS_PER_BLOCK, ACTIONS)).astype(np.float32)
        for contestant in contestants.values():
            if block % 4 == 0:
                contestant.reset()
            contestant.run(actions)
            if block == 0:  # compiles, loads
                contestant.rates.clear()
    for name, contestant in contestants.items() if camera else ():
        if np.ptp(_image(contestant.seen, camera)) == 0:
            raise RuntimeError(f"{name} drew nothing, so that the figures mean nothing")
    seen = f"{task}, {camera} {SIZE}×{SIZE}" if camera else f"{task}, low-dimensional"
    rates = {name: np.array(one.rates) for name, one in contestants.items()}
    figures = []
    for name in ours:
        label = f"{seen}, {name}" if camera else seen
        value, low, high = mean_interval((rates[name] / rates["plain"]).tolist())
        parts: dict[str, Any] = {
            "figure": f"{label}: steps/s ÷ plain robosuite",
            **{"value": value, "low": low, "high": high, "n": blocks, "seeds": (SEED,)},
        }
        asked = view.least is not None and name == "fast"
        figures.append(at_least(view.least, **parts) if asked else Figure(**parts))
    for name, samples in rates.items():
        value, low, high = mean_interval(samples.tolist())
        figures.append(
            Figure(f"{seen}, {name}: steps/s per core", value, low, high, blocks, (SEED,))
        )
    return figures


def _image(seen: dict[str, Any], camera: str) -> NDArray[np.uint8]:
    """The image in an observation of ours or of plain robosuite."""
    image: NDArray[np.uint8] = (
        seen["images"][camera] if "images" in seen else seen[f"{CAMERAS[camera]}_image"]
    )
    return image


def _in_processes(episodes: int, *, rounds: int) -> list[Figure]:
    """How much faster two processes are than one, by the clock."""
    environment = RobosuiteConfig("Lift", image_size=SIZE, max_steps=50)
    attempts = [Attempt(environment, Wander(), seed) for seed in range(episodes)]
    gains = []
    for _ in range(rounds):
        seconds = []
        for workers in (1, 2):
            results = rollouts(attempts, workers=workers)
            for _ in range(2 * workers):  # starting, compiling
                next(results)
            begin = time.perf_counter()
            steps = sum(len(rollout.episode) for rollout in results)
            seconds.append((time.perf_counter() - begin) / steps)
        gains.append(seconds[0] / seconds[1])
    value, low, high = mean_interval(gains)
    return [Figure("two processes ÷ one, Lift with agentview", value, low, high, rounds, (SEED,))]


def _evaluation(episodes: int) -> Figure:
    """Minutes of an evaluation whose episodes all time out, as those of a hardly trained policy."""
    base = replace(recipes.state(), steps=20, validate_every=20)
    with tempfile.TemporaryDirectory(dir=_made(ROOT)) as folder:
        environment = RobosuiteConfig("Lift", cameras=())
        setup = Setup(
            Path(folder),
            CollectConfig("mixed", episodes=12, environment=environment),
            EvaluationConfig(episodes=episodes),
        )
        run_all(setup, [Run("policy", base, ())])
        checkpoint = latest_checkpoint(setup.folder / "policy")
        begin = time.perf_counter()
        evaluation = evaluate(
            PolicyFactory(str(checkpoint), DecodingConfig()),
            environment,
            setup.evaluation,
            setup.folder / "evaluation",
            settings={},
            progress=lambda episode: None,
        )
        minutes = (time.perf_counter() - begin) / 60
    steps = sum(episode.steps for episode in evaluation.episodes)
    return at_most(
        5,
        figure=f"minutes of an evaluation of {episodes} Lift episodes ({steps} steps), 2 workers",
        value=minutes,
        low=minutes,
        high=minutes,
        n=1,
        seeds=(SEED,),
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
