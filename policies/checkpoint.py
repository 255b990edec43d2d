"""A policy on disk: weights, configuration, tokenizer and normalisation together.

`policy.safetensors` holds the tensors, `policy.json` all the rest; nothing is ever unpickled.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.rt import PolicySpec, RTConfig, RTNetwork

FORMAT_VERSION = 1
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"


def save_policy(
    folder: Path,
    network: RTNetwork,
    tokenizer: ActionTokenizer,
    *,
    method: str,
    trained: dict[str, Any],
) -> None:
    """Write a policy into an existing folder.

    Args:
        folder: where to; the caller makes the write atomic by renaming it.
        network: the weights to act by.
        tokenizer: its action bins.
        method: "qsft" or "bc", which says whether its values mean anything.
        trained: what a person would ask about its training, JSON.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "config": asdict(network.config),
        "spec": asdict(network.spec),
        "action_tokenizer": tokenizer.to_json(),
        "trained": trained,
    }
    save_file(network.state_dict(), folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def load_policy(folder: Path) -> tuple[RTNetwork, ActionTokenizer, str]:
    """Network (in evaluation mode, on the CPU), tokenizer and method of a saved policy.

    Raises:
        ValueError: when something is missing, cut off, of another version, or does not fit.
    """
    description = read_description(folder)
    try:
        config_json, spec_json = description["config"], description["spec"]
        config = RTConfig(**{**config_json, "stem_channels": tuple(config_json["stem_channels"])})
        tuples = {name: tuple(spec_json[name]) for name in ("cameras", "bins", "discrete")}
        spec = PolicySpec(**{**spec_json, **tuples})
        tokenizer = ActionTokenizer.from_json(description["action_tokenizer"])
        method = str(description["method"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION} does not describe a policy ({error}); restore it from a copy"
        ) from error
    if tokenizer.bins != spec.bins:
        raise ValueError(
            f"{folder / DESCRIPTION} has a network of {list(spec.bins)} bins per action dimension "
            f"but a tokenizer of {list(tokenizer.bins)}; restore both from the same training run"
        )
    network = RTNetwork(config, spec)
    load_weights(network, folder / WEIGHTS)
    return network.eval(), tokenizer, method


def read_description(folder: Path) -> dict[str, Any]:
    """The checkpoint's JSON part.

    Raises:
        ValueError: when it is missing, no JSON, or of another version.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no policy: {DESCRIPTION} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is cut off or no JSON ({error}); restore it from a copy"
        ) from None
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        version = description.get("format_version") if isinstance(description, dict) else None
        raise ValueError(
            f"{path} has format version {version}, this robot_qsft reads {FORMAT_VERSION}; "
            "train again or install the version that wrote it"
        )
    return description


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Copy tensors from a safetensors file into `network`.

    Raises:
        ValueError: when the file is missing, cut off, or its tensors have other names or shapes.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; restore it from a copy") from None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut off or damaged ({error}); restore it from a copy"
        ) from None
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        here = tuple(expected[name].shape) if name in expected else None
        there = tuple(tensors[name].shape) if name in tensors else None
        if here != there:
            raise ValueError(
                f"{path} does not fit its configuration: {name} has shape {there}, expected {here} "
                "(another number of bins or another size); use the run's own configuration"
            )
    network.load_state_dict(tensors)
