"""Success of a policy over fixed start states, and the comparison of two."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robot_qsft.datasets.interface import ActionChunk, Observation, Policy, Vector
from robot_qsft.film import write_mp4
from robot_qsft.intervals import Estimate, paired_difference, wilson
from robot_qsft.json_file import write_json
from robot_qsft.machine import versions
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy
from robot_qsft.sim.environment import EnvironmentConfig, settings_of
from robot_qsft.sim.rollouts import Attempt, Rollout, rollouts

FIRST_SEED = 10_000_000
"""Start states of evaluations; demonstrations use other seeds."""

RESULT = "result.json"
EPISODES = "episodes.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class EvaluationConfig:
    """Where and how often a policy is tried.

    Attributes:
        episodes: start states; seeds `first_seed` … `first_seed` + episodes - 1.
        first_seed: of the start states.
        workers: processes; 0 for one per core. The result does not depend on it.
        ray: address of a Ray cluster that does the work instead; "" for none. Its machines have
            the policy under the same path.
        videos: of how many episodes a video is written.
        video_size: height and width of the videos in pixels.
    """

    episodes: int = 100
    first_seed: int = FIRST_SEED
    workers: int = 0
    ray: str = ""
    videos: int = 0
    video_size: int = 256

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing.

        Raises:
            ValueError: naming the field.
        """
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")


@dataclass(frozen=True)
class PolicyFactory:
    """Loads a saved policy, in whichever process acts by it.

    Attributes:
        folder: of the checkpoint; absolute, as processes of a cluster start elsewhere.
        decoding: how actions are chosen.
    """

    folder: str
    decoding: DecodingConfig

    def __call__(self) -> Policy:
        """The policy, on one CPU thread: parallelism comes from processes."""
        torch.set_num_threads(1)
        return TokenPolicy.load(Path(self.folder), self.decoding)


@dataclass(frozen=True)
class EpisodeResult:
    """What happened in one episode.

    Attributes:
        seed: of its start state.
        success: whether the task was solved.
        steps: control steps it took.
        values: predicted value of the chosen action at every step; empty where there is none.
        actions: every action taken.
    """

    seed: int
    success: bool
    steps: int
    values: list[float]
    actions: list[list[float]]

    @classmethod
    def of(cls, rollout: Rollout) -> "EpisodeResult":
        """The result of a rollout."""
        values = rollout.values
        return cls(
            rollout.attempt.seed,
            rollout.episode.success,
            len(rollout.episode),
            [] if np.isnan(values).all() else [float(value) for value in values],
            rollout.episode.actions.tolist(),
        )


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one policy, in the order of their seeds."""

    episodes: tuple[EpisodeResult, ...]

    @property
    def successes(self) -> NDArray[np.bool_]:
        """Bool (n,)."""
        return np.array([episode.success for episode in self.episodes])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Start states."""
        return tuple(episode.seed for episode in self.episodes)

    def rate(self) -> Estimate:
        """Success rate with its Wilson interval."""
        return wilson(self.successes)


def compare(first: Evaluation, second: Evaluation) -> Estimate:
    """Difference of success rates, `first` - `second`, paired by start state.

    Raises:
        ValueError: when they were run on different start states.
    """
    if first.seeds != second.seeds:
        raise ValueError(
            "a paired comparison needs the same start states; evaluate both runs with the same "
            "--episodes and --first-seed"
        )
    return paired_difference(first.successes, second.successes)


def evaluate(
    factory: Callable[[], Policy],
    environment: EnvironmentConfig,
    config: EvaluationConfig,
    folder: Path,
    *,
    settings: dict[str, Any],
    progress: Callable[[EpisodeResult], None],
) -> Evaluation:
    """Try a policy on every start state, keeping each episode as soon as it ends.

    Writes `episodes.jsonl`, `result.json` and videos into `folder`. What an interrupted evaluation
    with the same settings left there is kept and not run again.

    Args:
        factory: makes the policy; hashable and picklable.
        environment: where.
        config: how often.
        folder: of the results.
        settings: what else decides the result, JSON; recorded with it.
        progress: told of every episode.

    Raises:
        ValueError: when `folder` holds results of other settings.
        RuntimeError: when an episode fails, naming its seed.
    """
    settings = {
        **settings,
        "environment": settings_of(environment),
        "first_seed": config.first_seed,
        "versions": versions(),
    }
    done = _resume(folder, settings)
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    attempts = [
        Attempt(environment, factory, seed, keep_images=False) for seed in seeds if seed not in done
    ]
    with (folder / EPISODES).open("a") as log:
        for rollout in rollouts(attempts, workers=config.workers, ray=config.ray):
            result = EpisodeResult.of(rollout)
            log.write(json.dumps(asdict(result)) + "\n")
            log.flush()
            done[result.seed] = result
            progress(result)
    evaluation = Evaluation(tuple(done[seed] for seed in seeds))
    for episode in evaluation.episodes[: config.videos]:
        verdict = "success" if episode.success else "failure"
        frames = film(environment, episode, size=config.video_size)
        write_mp4(
            folder / "videos" / f"seed-{episode.seed}-{verdict}.mp4",
            frames,
            fps=environment.control_hz,
        )
    rate = evaluation.rate()
    write_json(
        folder / RESULT,
        {"success": rate.value, "low": rate.low, "high": rate.high, "n": rate.n, **settings},
    )
    return evaluation


def film(environment: EnvironmentConfig, episode: EpisodeResult, *, size: int) -> NDArray[np.uint8]:
    """Frames (T, size, size, 3) of an episode, by running its actions again from its seed."""
    camera = environment.film_camera
    larger = replace(environment, cameras=(camera,), image_size=size)
    actions = np.array(episode.actions, np.float32)
    attempt = Attempt(larger, _Replay(actions.tobytes(), actions.shape), episode.seed)
    (rollout,) = rollouts([attempt], workers=1)
    return rollout.episode.images[camera]


@dataclass(frozen=True)
class _Replay:
    """A `Policy` (and its own factory) that takes recorded actions."""

    buffer: bytes
    shape: tuple[int, ...]

    def __call__(self) -> "_Replay":
        return self

    def reset(self, *, seed: int) -> None:
        """Nothing to begin: the actions are known."""

    def act(self, observation: Observation) -> ActionChunk:
        """All actions at once."""
        actions: Vector = np.frombuffer(self.buffer, np.float32).reshape(self.shape)
        return ActionChunk(actions)


def read_evaluation(folder: Path) -> Evaluation:
    """The finished evaluation in `folder`.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    if not (folder / RESULT).is_file():
        raise ValueError(f"{folder} holds no finished evaluation; run robot-qsft eval first")
    try:
        result = json.loads((folder / RESULT).read_text())
        seeds = range(result["first_seed"], result["first_seed"] + result["n"])
        episodes = {episode.seed: episode for episode in _lines(folder / EPISODES)}
        return Evaluation(tuple(episodes[seed] for seed in seeds))
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"the evaluation in {folder} is damaged ({error}); run it again") from None


def _resume(folder: Path, settings: dict[str, Any]) -> dict[int, EpisodeResult]:
    """Episodes that an earlier run with the same settings has finished."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if not recorded.is_file():
        write_json(recorded, settings)
        return {}
    before = json.loads(recorded.read_text())
    changed = sorted(key for key in settings if settings[key] != before.get(key))
    if changed:
        raise ValueError(
            f"{folder} holds results with another {', '.join(changed)}; delete it, or write to "
            "another folder (eval: another --name)"
        )
    return {episode.seed: episode for episode in _lines(folder / EPISODES)}


def _lines(path: Path) -> Iterator[EpisodeResult]:
    """Whole lines of an episode log; a line cut off by an interruption is dropped from the file."""
    if not path.is_file():
        return
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(whole)
        shutil.move(temporary, path)
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield EpisodeResult(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is damaged ({error}); delete it") from None
