"""Everything a training run needs to go on where it stopped.

A checkpoint folder holds the policy (to act by) and `training.safetensors` (to go on from), under
`RUN/checkpoints/step-NNNNNN`. It is written under a temporary name and renamed, so a run killed at
any moment leaves whole checkpoints only.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.checkpoint import save_policy
from robot_qsft.policies.rt import RTNetwork

TRAINING = "training.safetensors"
_STEP_PREFIX = "step-"


@dataclass
class TrainingState:
    """What changes from step to step.

    Attributes:
        network: the one being trained.
        target: its moving average, which gives the targets and is saved to act by.
        optimizer: with its moments.
        generator: randomness of image shifts; dropout draws from torch's global generator.
        step: gradient steps taken.
    """

    network: RTNetwork
    target: RTNetwork
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"{_STEP_PREFIX}{step:06d}"


def latest_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        ValueError: when the run has none.
    """
    found = list((run / "checkpoints").glob(f"{_STEP_PREFIX}[0-9]*"))
    if not found:
        raise ValueError(f"{run} holds no checkpoint; train it first: robot-qsft train --run {run}")
    return max(found, key=lambda folder: int(folder.name.removeprefix(_STEP_PREFIX)))


def save_checkpoint(
    run: Path,
    state: TrainingState,
    tokenizer: ActionTokenizer,
    *,
    method: str,
    trained: dict[str, Any],
) -> Path:
    """Write the checkpoint of the current step and return its folder.

    Raises:
        OSError: when it cannot be written; nothing is left of it then.
    """
    folder = checkpoint_folder(run, state.step)
    for leftover in folder.parent.glob(f".{_STEP_PREFIX}*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        save_policy(temporary, state.target, tokenizer, method=method, trained=trained)
        save_file(_tensors(state), temporary / TRAINING, metadata={"step": json.dumps(state.step)})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"{folder} cannot be written ({error}); free some space, then go on with --resume"
        ) from error
    return folder


def load_checkpoint(folder: Path, state: TrainingState) -> None:
    """Bring `state` to where `folder` was written, bit for bit.

    Raises:
        ValueError: when the file is missing, damaged, or from a network of another shape.
    """
    path = folder / TRAINING
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state.step = int(json.loads((file.metadata() or {})["step"]))
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}); delete {folder} to go on from the checkpoint "
            "before"
        ) from None
    for prefix, module in (("network", state.network), ("target", state.target)):
        part = _part(tensors, prefix)
        expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if {name: tensor.shape for name, tensor in part.items()} != expected:
            raise ValueError(
                f"{folder} holds a network of another shape (bins, cameras or size) than the "
                "configuration; resume with the configuration the run was started with"
            )
        module.load_state_dict(part)
    optimizer_state = state.optimizer.state_dict()
    for name, tensor in _part(tensors, "optimizer").items():
        index, key = name.split(".")
        optimizer_state["state"].setdefault(int(index), {})[key] = tensor
    state.optimizer.load_state_dict(optimizer_state)
    state.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["dropout_generator"])


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {
        "generator": state.generator.get_state(),
        "dropout_generator": torch.get_rng_state(),
    }
    for prefix, module in (("network", state.network), ("target", state.target)):
        tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
