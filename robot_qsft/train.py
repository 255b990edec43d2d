"""Training: batches in, checkpoints out, resumable anywhere.

Shape legend: D action tokens, I words of an instruction, K bins, M distinct instructions, N frames.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from robot_qsft.datasets.batches import (
    Batch,
    Returns,
    SamplerConfig,
    TrainingData,
    WindowSampler,
    n_step_returns,
)
from robot_qsft.datasets.outcomes import check_outcomes_known, check_rewards, infer_outcomes
from robot_qsft.datasets.tables import Tables, action_chunks
from robot_qsft.json_file import write_json
from robot_qsft.learning_step import Collator, Losses, Method, losses
from robot_qsft.objective import ObjectiveConfig, smoothing_kernels
from robot_qsft.policies.action_tokenizer import ActionTokenizer, TokenizerConfig
from robot_qsft.policies.checkpoint import read_description
from robot_qsft.policies.instructions import word_tokens
from robot_qsft.policies.rt import PolicySpec, RTConfig, RTNetwork
from robot_qsft.precision import use_bfloat16
from robot_qsft.prefetch import Prefetcher
from robot_qsft.training_state import (
    TrainingState,
    checkpoint_folder,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = "config.json"
"""What a run was started with, in its folder."""

_STD_FLOOR = 1e-3
"""Inputs that hardly vary (an orientation held fixed) are not blown up to unit variance."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        method: "qsft", or "bc" for the behaviour head alone.
        episodes: train on "all" episodes, on those whose outcome is "known", or on "successful"
            ones only (filtered BC).
        environment_state: let the policy read the simulator's truth (low-dimensional tasks).
        network: its size and layout.
        tokenizer: action bins.
        chunk: consecutive actions that are decided at once.
        objective: what Q-SFT learns.
        sampler: batches.
        steps: gradient steps.
        learning_rate: peak, reached after `warmup_steps` and then brought to 0 along a cosine.
        warmup_steps: linear.
        weight_decay: AdamW, on matrices only.
        clip_norm: gradient norm.
        target_rate: of the moving average that gives the targets and is acted by.
        shift_pixels: random shifts of the images, in their pixels; more than the precision that
            the task asks for hides where things are (at 64x64 a pixel is a centimetre of table).
        validation_share: of the episodes, held out.
        validate_every: steps.
        validation_batches: how many held-out batches a validation reads.
        checkpoint_every: steps.
        precision: "auto" takes bfloat16 where that is faster (GPUs, CPUs with AMX).
        device: "cpu", "cuda", or "auto".
        seed: of weights, batches, dropout and shifts.
    """

    method: Method = "qsft"
    episodes: Literal["all", "known", "successful"] = "all"
    environment_state: bool = False
    network: RTConfig = field(default_factory=RTConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    chunk: int = 1
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    steps: int = 3000
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    target_rate: float = 0.01
    shift_pixels: int = 1
    validation_share: float = 0.05
    validate_every: int = 500
    validation_batches: int = 8
    checkpoint_every: int = 1000
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a run of nothing.

        Raises:
            ValueError: naming the field.
        """
        for name in ("chunk", "steps", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "shift_pixels", "validation_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.objective.steps < self.chunk:
            raise ValueError(
                f"objective.steps must be at least the {self.chunk} actions of a chunk, after "
                f"which there is a next value to look at, got {self.objective.steps}"
            )


class Progress(Protocol):
    """Whoever wants to watch a training run."""

    def started(self, step: int) -> None:
        """Training begins after this step: 0, or that of the checkpoint it goes on from."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A gradient step was taken; metrics are as of the last few steps."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Losses on held-out episodes were computed."""


def train(
    config: TrainConfig, data: TrainingData, run: Path, *, progress: Progress, resume: bool
) -> Path:
    """Train on `data` and return the folder of the last checkpoint.

    Interrupted and resumed, it ends with the same weights as in one go, bit for bit on a CPU.

    Raises:
        ValueError: when data and configuration do not fit, the run exists already and `resume` is
            off, or its checkpoint does not fit.
    """
    device = choose_device(config.device)
    autocast = use_bfloat16(config.precision, device)
    episodes = chosen_episodes(config, data)
    rows = rows_of(data.tables, episodes)
    tokenizer = ActionTokenizer.fit(data.tables.actions[rows], config.tokenizer)
    tokenizer = tokenizer.repeated(config.chunk)
    spec = policy_spec(config, data, tokenizer)
    torch.manual_seed(config.seed)
    state = new_state(config, spec, data.tables, rows, device)
    returns = n_step_returns(
        data.tables.rewards,
        data.tables.episode_starts,
        data.tables.terminated,
        steps=config.objective.steps,
        discount=config.objective.discount,
    )
    collate = collator(config, data.tables, returns, tokenizer, spec, device)
    kernels_DKK = smoothing_kernels(spec.bins, spec.discrete, config.objective.smoothing_bins)
    kernels_DKK = kernels_DKK.to(device)

    def sampler(drawn_from: NDArray[np.int64], sampler_config: SamplerConfig) -> WindowSampler:
        return WindowSampler(
            data,
            returns,
            episodes=drawn_from,
            steps=config.objective.steps,
            config=sampler_config,
            seed=config.seed,
        )

    def compute(batch: Batch, *, shift_pixels: int) -> Losses:
        tensors = collate(batch, shift_pixels=shift_pixels, generator=state.generator)
        return losses(
            state.network,
            state.target,
            tensors,
            kernels_DKK,
            method=config.method,
            objective=config.objective,
            autocast=autocast,
        )

    held_out = _validation_batches(config, data, sampler)
    training = sampler(episodes, config.sampler)
    # All that can be refused has been by now, so a refused run leaves nothing behind.
    start_run(run, config, state, tokenizer, resume=resume)
    progress.started(state.step)
    prefetcher = Prefetcher(training.batches(state.step))
    started_s = time.perf_counter()
    first_step = state.step
    try:
        while state.step < config.steps:
            batch = next(prefetcher)
            state.network.train()
            step_losses = compute(batch, shift_pixels=config.shift_pixels)
            descend(config, state, step_losses.total)
            state.step += 1
            elapsed_s = time.perf_counter() - started_s
            progress.step(
                state.step,
                {
                    **step_losses.as_floats(),
                    "step_s": elapsed_s / (state.step - first_step),
                    "data_wait_share": prefetcher.waited_s / elapsed_s,
                },
            )
            last = state.step == config.steps
            if held_out and (last or state.step % config.validate_every == 0):
                state.network.eval()
                with torch.no_grad():
                    seen = [compute(one, shift_pixels=0).as_floats() for one in held_out]
                means = {key: float(np.mean([one[key] for one in seen])) for key in seen[0]}
                progress.validated(state.step, means)
            if last or state.step % config.checkpoint_every == 0:
                trained = {"step": state.step, "config": asdict(config)}
                save_checkpoint(run, state, tokenizer, method=config.method, trained=trained)
    finally:
        prefetcher.close()
    return checkpoint_folder(run, config.steps)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one.

    Raises:
        ValueError: when there is no such device, or CUDA is asked for and missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or auto, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device cpu")
    return device


def policy_spec(config: TrainConfig, data: TrainingData, tokenizer: ActionTokenizer) -> PolicySpec:
    """What the policy reads and writes, from the data."""
    sizes = {stack.shape[1] for stack in data.images.values()}
    tables = data.tables
    return PolicySpec(
        cameras=tuple(data.images),
        image_size=sizes.pop() if sizes else 0,
        state_size=tables.states.shape[1],
        environment_state_size=(
            tables.environment_states.shape[1] if config.environment_state else 0
        ),
        bins=tokenizer.bins,
        discrete=tokenizer.discrete,
        chunk=config.chunk,
    )


def new_state(
    config: TrainConfig,
    spec: PolicySpec,
    tables: Tables,
    rows: NDArray[np.int64],
    device: torch.device,
) -> TrainingState:
    """Fresh weights, normalised to the training rows, and their optimizer."""
    network = RTNetwork(config.network, spec)
    truth = tables.environment_states[:, : spec.environment_state_size]
    inputs = np.concatenate([tables.states, truth], axis=1)[rows]
    network.set_normalisation(
        torch.from_numpy(inputs.mean(axis=0)),
        torch.from_numpy(inputs.std(axis=0)).clamp(min=_STD_FLOOR),
    )
    network.to(device)
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )
    target = copy.deepcopy(network).eval().requires_grad_(False)
    return TrainingState(network, target, optimizer, torch.Generator().manual_seed(config.seed))


def collator(
    config: TrainConfig,
    tables: Tables,
    returns: Returns,
    tokenizer: ActionTokenizer,
    spec: PolicySpec,
    device: torch.device,
) -> Collator:
    """The collator for a data set."""
    words = [word_tokens(task, config.network.instruction_words) for task in tables.tasks]
    chunks = action_chunks(tables.actions, tables.episode_starts, length=config.chunk)
    return Collator(
        tables,
        returns,
        tokens_ND=tokenizer.encode(chunks),
        words_MI=np.stack(words),
        environment_state_size=spec.environment_state_size,
        monte_carlo_bound=config.objective.monte_carlo_bound,
        device=device,
    )


def start_run(
    run: Path,
    config: TrainConfig,
    state: TrainingState,
    tokenizer: ActionTokenizer,
    *,
    resume: bool,
) -> None:
    """Make the run's folder, or continue from its last checkpoint.

    Raises:
        ValueError: when the run exists and `resume` is off, or was started otherwise.
    """
    description = run / CONFIG
    settings = json.loads(json.dumps(asdict(config)))
    if description.is_file():
        if not resume:
            raise ValueError(f"{run} exists already; add --resume, or choose another --run")
        try:
            before = json.loads(description.read_text())
        except ValueError as error:
            raise ValueError(f"{description} is damaged ({error}); choose another --run") from None
        changed = sorted(key for key in settings if settings[key] != before.get(key))
        if changed:
            raise ValueError(
                f"{run} was started with another {', '.join(changed)}; resume with the same "
                "configuration, or choose another --run"
            )
        if any((run / "checkpoints").glob("step-*")):
            checkpoint = latest_checkpoint(run)
            load_checkpoint(checkpoint, state)
            _check_same_data(checkpoint, state.network.spec, tokenizer)
        return
    write_json(description, settings)


def _check_same_data(checkpoint: Path, spec: PolicySpec, tokenizer: ActionTokenizer) -> None:
    description = read_description(checkpoint)
    now = {"spec": asdict(spec), "action_tokenizer": tokenizer.to_json()}
    changed = [key for key in now if json.loads(json.dumps(now[key])) != description.get(key)]
    if changed:
        raise ValueError(
            f"{checkpoint} was trained on other data or cameras ({', '.join(changed)} differ); "
            "resume with the same --data, --cameras and --image-size, or choose another --run"
        )


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to 0 at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def descend(config: TrainConfig, state: TrainingState, loss: torch.Tensor) -> None:
    """One optimizer step, then the target network follows."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(config, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip_norm)
    state.optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(
            list(state.target.parameters()), list(state.network.parameters()), config.target_rate
        )


def chosen_episodes(config: TrainConfig, data: TrainingData) -> NDArray[np.int64]:
    """Episodes that the configuration trains on.

    Raises:
        ValueError: when Q-SFT finds no rewards, or rewards outside [0, 1], or the filter leaves
            nothing.
    """
    if config.method == "qsft":
        check_rewards(data.tables)
        if config.episodes == "all":
            check_outcomes_known(data.tables)
    if config.episodes == "all":
        return data.training
    outcomes = np.array(infer_outcomes(data.tables).outcomes)[data.training]
    chosen: NDArray[np.int64] = data.training[
        outcomes == "success" if config.episodes == "successful" else outcomes != "unknown"
    ]
    if len(chosen) == 0:
        raise ValueError(
            "no training episode succeeded, so there is nothing to filter for; "
            "train on all episodes instead"
            if config.episodes == "successful"
            else "of no training episode is the outcome known; label some with 'robot-qsft label'"
        )
    return chosen


def rows_of(tables: Tables, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frames of the given episodes."""
    starts, lengths = tables.episode_starts[episodes], tables.episode_lengths[episodes]
    return np.concatenate(
        [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    )


def _validation_batches(
    config: TrainConfig,
    data: TrainingData,
    sampler: Callable[[NDArray[np.int64], SamplerConfig], WindowSampler],
) -> list[Batch]:
    """The same few held-out batches every time; none where too little is held out for one."""
    frames = int(data.tables.episode_lengths[data.validation].sum())
    size = min(config.sampler.batch_size, frames)
    if size <= config.objective.steps:
        return []
    batches = sampler(data.validation, replace(config.sampler, batch_size=size)).batches()
    return list(islice(batches, min(config.validation_batches, max(1, frames // size))))
