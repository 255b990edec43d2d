"""The command line: `robot-qsft COMMAND --help` lists every option with its default."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro
from rich.table import Table

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig, collect, record
from robot_qsft.command_line import run
from robot_qsft.console import (
    Counter,
    console,
    frame_bar,
    progress_bar,
)
from robot_qsft.data_cli import BridgeCommand, DataCommand
from robot_qsft.datasets.batches import TrainingData
from robot_qsft.datasets.cache import Storage
from robot_qsft.datasets.store import Dataset
from robot_qsft.demo import DemoConfig, run_demo
from robot_qsft.doctor import examine, print_findings
from robot_qsft.evaluate import (
    EvaluationConfig,
    PolicyFactory,
    compare,
    evaluate,
    read_evaluation,
)
from robot_qsft.intervals import Estimate
from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.checkpoint import load_policy
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.replay_command import Replay
from robot_qsft.serve_command import Serve
from robot_qsft.sim.rollouts import Rollout
from robot_qsft.simulators import DEFAULT_ENVIRONMENT, SimulatorChoice
from robot_qsft.train import TrainConfig, chosen_episodes, rows_of, train
from robot_qsft.training_data import load_training_data
from robot_qsft.training_display import TrainingDisplay
from robot_qsft.training_state import latest_checkpoint

_HDF5 = (".hdf5", ".h5")
_RECIPES = {
    "images": recipes.images(),
    "rt1-images": recipes.rt1_images(),
    "state": recipes.state(),
    "paper-images": recipes.paper(recipes.images()),
    "paper-state": recipes.paper(recipes.state()),
}
_Recipe = tyro.extras.subcommand_type_from_defaults(_RECIPES, prefix_names=False)


@dataclass(frozen=True)
class Collect:
    """Let scripted demonstrators, good and bad, fill a data set (LeRobot v3.0 layout).

    Attributes:
        out: folder of the new data set; NAME.hdf5 for a robomimic file of robosuite's tasks, which
            keeps the simulator's states, too.
        resume: go on with an interrupted collection of the same settings (a folder's).
        workers: processes; 0 for one per core.
        ray: address of a Ray cluster that does the work instead; "" for none.
        config: what is demonstrated.
    """

    out: Path
    resume: bool = False
    workers: int = 0
    ray: str = ""
    config: Annotated[CollectConfig, tyro.conf.arg(name="")] = field(default_factory=CollectConfig)

    def run(self) -> int:
        """Collect."""
        with progress_bar() as progress:
            counter = Counter(
                progress, f"{self.config.quality} demonstrations", self.config.episodes
            )

            def progressed(rollout: Rollout) -> None:
                counter.add(rollout.episode.success)

            if self.out.suffix in _HDF5:
                record(
                    self.config,
                    self.out,
                    workers=self.workers,
                    ray=self.ray,
                    progress=progressed,
                )
                console.print(f"{self.config.episodes} episodes in {self.out}", soft_wrap=True)
                return 0
            dataset = collect(
                self.config,
                self.out,
                workers=self.workers,
                ray=self.ray,
                resume=self.resume,
                progress=progressed,
            )
        done = f"{len(dataset)} episodes, {dataset.frame_count} frames in {self.out}"
        console.print(done, soft_wrap=True)  # paths stay in one piece
        return 0


@dataclass(frozen=True)
class Train:
    """Train a policy from a data set; a recipe gives the defaults.

    Attributes:
        data: folder of the data set.
        run_folder: folder of the training run.
        recipe: where the defaults come from.
        cameras: cameras to read; all of the data set's if left out, none for the state recipes.
        image_size: height and width in pixels that frames are resized to.
        storage: of decoded frames: "raw" is fast, "jpeg" small, "auto" raw where the disk has room.
        resume: go on with an interrupted run of the same settings.
    """

    data: Path
    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    recipe: Annotated[_Recipe, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    cameras: tuple[str, ...] | None = None
    image_size: int = 64
    storage: Storage = "auto"
    resume: bool = False

    def run(self) -> int:
        """Train."""
        config: TrainConfig = self.recipe
        dataset = Dataset.open(self.data)
        cameras = self.cameras
        if cameras is None:
            cameras = () if config.environment_state else tuple(dataset.info.cameras)
        with progress_bar() as progress:
            data = load_training_data(
                dataset,
                cameras=cameras,
                image_size=self.image_size,
                validation_share=config.validation_share,
                storage=self.storage,
                progress=frame_bar(progress),
            )
            if clipped := _clipped(config, data, dataset.info.action_names):
                console.print(clipped, soft_wrap=True)
            display = TrainingDisplay(progress, config.method, config.steps, self.run_folder)
            try:
                folder = train(config, data, self.run_folder, progress=display, resume=self.resume)
            finally:
                display.close()
        console.print(f"policy in {folder}", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Eval:
    """Try a trained policy on fixed start states in simulation.

    Attributes:
        run_folder: folder of the training run; its last checkpoint is tried.
        name: of this evaluation; results go to RUN/evaluations/NAME.
        against: results folder of another evaluation to compare with, paired by start state.
        decoding: how actions are chosen; beta 0 is behaviour cloning.
        environment: where; cameras and image size are those that the policy was trained on.
        config: where and how often.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    name: str = "default"
    against: Path | None = None
    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")] = field(
        default_factory=DecodingConfig
    )
    environment: SimulatorChoice = DEFAULT_ENVIRONMENT
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )

    def run(self) -> int:
        """Evaluate."""
        other = None if self.against is None else read_evaluation(self.against)
        checkpoint = latest_checkpoint(self.run_folder)
        spec = load_policy(checkpoint)[0].spec
        environment = replace(
            self.environment,
            cameras=spec.cameras,
            image_size=spec.image_size or self.environment.image_size,
        )
        folder = self.run_folder / "evaluations" / self.name
        with progress_bar() as progress:
            counter = Counter(progress, self.name, self.config.episodes)
            evaluation = evaluate(
                PolicyFactory(str(checkpoint.resolve()), self.decoding),
                environment,
                self.config,
                folder,
                settings={"checkpoint": checkpoint.name, "decoding": asdict(self.decoding)},
                progress=lambda episode: counter.add(episode.success),
            )
        table = Table("", "success", "95% interval", "episodes")
        _add_row(table, self.name, evaluation.rate())
        if other is not None:
            _add_row(table, str(self.against), other.rate())
            _add_row(table, "difference", compare(evaluation, other))
        console.print(table)
        console.print(f"results in {folder}", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Demo:
    """Collect, train, evaluate and report, in minutes: mixed demonstrations to a better policy.

    Attributes:
        out: folder of everything; what an interrupted demo left there is gone on with.
        config: how much of it.
    """

    out: Path = Path("runs/demo")
    config: Annotated[DemoConfig, tyro.conf.arg(name="")] = field(default_factory=DemoConfig)

    def run(self) -> int:
        """Run the main job."""
        run_demo(self.config, self.out)
        return 0


@dataclass(frozen=True)
class Doctor:
    """Say what of this machine works: renderers, bfloat16, GPU, video codecs."""

    def run(self) -> int:
        """Examine the machine."""
        return print_findings(examine())


Command: TypeAlias = (
    Collect | DataCommand | Train | Eval | Replay | Serve | BridgeCommand | Demo | Doctor
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run any command; see `command_line.run`."""
    run(Command, arguments)


def _clipped(config: TrainConfig, data: TrainingData, names: Sequence[str]) -> str:
    """How many action values lie beyond the bins, in one sentence; "" when none does."""
    actions = data.tables.actions[rows_of(data.tables, chosen_episodes(config, data))]
    clipped = ActionTokenizer.fit(actions, config.tokenizer).count_clipped(actions)
    if not clipped.any():
        return ""
    counts = ", ".join(f"{name}: {n}" for name, n in zip(names, clipped, strict=True) if n)
    return (
        f"{clipped.sum()} of {actions.size} action values lie beyond the bins' bounds and are "
        f"clipped ({counts})"
    )


def _add_row(table: Table, name: str, estimate: Estimate) -> None:
    interval = f"{estimate.low:+.1%} … {estimate.high:+.1%}".replace("+", "")
    table.add_row(name, f"{estimate.value:.1%}", interval, str(estimate.n))
