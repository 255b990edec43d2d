"""The main job in minutes: mixed demonstrations in, a policy that beats them out, and a report."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig, collect
from robot_qsft.console import Counter, console, progress_bar
from robot_qsft.datasets.store import Dataset
from robot_qsft.demo_report import DemoMethod, demo_contents
from robot_qsft.evaluate import (
    Evaluation,
    EvaluationConfig,
    PolicyFactory,
    compare,
    evaluate,
)
from robot_qsft.json_file import write_json
from robot_qsft.machine import commit, peak_memory_bytes, processor, versions
from robot_qsft.policies.token_policy import BC_GREEDY, BC_SAMPLED, DecodingConfig
from robot_qsft.report import write_report
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.train import TrainConfig
from robot_qsft.train_many import Job, train_many
from robot_qsft.training_data import DataSource

_ENVIRONMENT = PyBulletConfig("Stitch", cameras=())


def _demonstrations() -> CollectConfig:
    return CollectConfig(quality="stitch", episodes=2400, environment=_ENVIRONMENT)


@dataclass(frozen=True)
class DemoConfig:
    """How much of everything.

    Attributes:
        demonstrations: what is collected.
        training: of Q-SFT; filtered BC takes the same steps.
        evaluation: start states, the same for every method.
        decoding: how Q-SFT acts.
    """

    demonstrations: CollectConfig = field(default_factory=_demonstrations)
    training: TrainConfig = field(default_factory=recipes.state)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


def run_demo(config: DemoConfig, out: Path) -> None:
    """Collect, train, evaluate, report; goes on where an interrupted demo of the same kind stopped.

    Writes `result.json` and `report.html` into `out`.

    Raises:
        ValueError: when `out` holds a demo with other settings.
    """
    started_s = time.perf_counter()
    clock = out / "seconds.json"
    before_s = json.loads(clock.read_text()) if clock.is_file() else 0.0
    try:
        with progress_bar() as progress:
            dataset = _collect(config, out, progress)
            methods = _train_and_evaluate(config, out, progress)
    finally:
        seconds = before_s + time.perf_counter() - started_s
        write_json(clock, seconds)
    difference = compare(methods[-1].evaluation, methods[0].evaluation)
    memory = peak_memory_bytes(config.evaluation.workers or os.cpu_count() or 1)
    facts = {
        "time": f"{seconds / 60:.1f} minutes",
        "peak memory": f"{memory / 1e9:.1f} GB",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "training seed": str(config.training.seed),
        "start states": f"seeds from {config.evaluation.first_seed}",
        "commit": commit(),
        **versions(),
    }
    write_report(
        out / "report.html",
        demo_contents(
            methods,
            difference,
            dataset.tables(),
            dataset.info,
            config.training,
            _ENVIRONMENT,
            facts,
        ),
    )
    write_json(
        out / "result.json",
        {
            "methods": {
                method.name: {
                    "description": method.description,
                    **_rounded(_success(method.evaluation)),
                }
                for method in methods
            },
            "difference": {
                "first": methods[-1].name,
                "second": methods[0].name,
                **_rounded(asdict(difference)),
            },
            "seconds": round(seconds, 1),
            "peak_memory_bytes": memory,
            "facts": facts,
        },
    )
    _print(methods, asdict(difference))
    done = f"{facts['time']}, {facts['peak memory']}; the report is {out / 'report.html'}"
    console.print(done, soft_wrap=True)


def _collect(config: DemoConfig, out: Path, progress: Progress) -> Dataset:
    counter = Counter(progress, "demonstrations", config.demonstrations.episodes)
    return collect(
        config.demonstrations,
        out / "data",
        workers=config.evaluation.workers,
        resume=True,
        progress=lambda rollout: counter.add(rollout.episode.success),
    )


def _train_and_evaluate(config: DemoConfig, out: Path, progress: Progress) -> list[DemoMethod]:
    """BC (greedy, sampled), filtered BC and Q-SFT, in the order they are shown."""
    source = DataSource(out / "data", (), _ENVIRONMENT.image_size, config.training.validation_share)
    qsft, filtered = train_many(
        [
            Job("training Q-SFT", config.training, out / "qsft", source),
            Job(
                "training filtered BC",
                recipes.filtered_bc(config.training),
                out / "filtered-bc",
                source,
            ),
        ],
        workers=2,
        progress=progress,
    )
    tilted = config.decoding
    same_network = "behaviour head of the same network"
    planned = [
        ("BC", f"{same_network}, greedy", qsft, BC_GREEDY),
        ("BC sampled", f"{same_network}, sampled", qsft, BC_SAMPLED),
        ("filtered BC", "successful episodes only, greedy", filtered, BC_GREEDY),
        (
            "Q-SFT",
            f"the same network tilted by its values, beta = {tilted.beta:g}, "
            f"temperature {tilted.temperature:g}",
            qsft,
            tilted,
        ),
    ]
    methods = []
    for name, description, checkpoint, decoding in planned:
        evaluation = _evaluate(config, name, checkpoint, decoding, out, progress)
        methods.append(DemoMethod(name, description, evaluation))
    return methods


def _evaluate(
    config: DemoConfig,
    name: str,
    checkpoint: Path,
    decoding: DecodingConfig,
    out: Path,
    progress: Progress,
) -> Evaluation:
    counter = Counter(progress, f"evaluating {name}", config.evaluation.episodes)
    return evaluate(
        PolicyFactory(str(checkpoint.resolve()), decoding),
        _ENVIRONMENT,
        config.evaluation,
        out / "evaluations" / name.lower().replace(" ", "-"),
        settings={"checkpoint": checkpoint.name, "decoding": asdict(decoding)},
        progress=lambda episode: counter.add(episode.success),
    )


def _success(evaluation: Evaluation) -> dict[str, float]:
    rate = evaluation.rate()
    return {"success": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in numbers.items()}


def _print(methods: list[DemoMethod], difference: dict[str, float]) -> None:
    table = Table("method", "how", "success", "95% interval", "episodes")
    for method in methods:
        rate = method.evaluation.rate()
        interval = f"{rate.low:.0%} … {rate.high:.0%}"
        table.add_row(method.name, method.description, f"{rate.value:.0%}", interval, str(rate.n))
    table.add_section()
    table.add_row(
        f"{methods[-1].name} − {methods[0].name}",
        "paired by start state",
        f"{100 * difference['value']:+.0f} points",
        f"{100 * difference['low']:+.0f} … {100 * difference['high']:+.0f}",
        str(difference["n"]),
    )
    console.print(table)
