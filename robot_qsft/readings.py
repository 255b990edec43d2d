"""What a trained policy thinks of actions that were recorded.

Shape legend: B batch, D action tokens, E environment-state dimensions, K bins, S state dimensions,
T steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from robot_qsft.datasets.features import ACTION, ENVIRONMENT_STATE, STATE
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.mapped import MappedEpisode, MappedSource
from robot_qsft.datasets.tables import action_chunks
from robot_qsft.datasets.wording import listed
from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.checkpoint import DESCRIPTION, load_policy
from robot_qsft.policies.instructions import word_tokens
from robot_qsft.policies.rt import PolicySpec, RTNetwork, TokenInputs
from robot_qsft.policies.values import demonstrator_value, q_values
from robot_qsft.training_state import latest_checkpoint

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Readings:
    """A policy's view of an episode, each float32 (T,).

    Attributes:
        behaviour_log_likelihoods: log pi(a|s) of the recorded actions, in nats.
        action_values: Q(s, a) of the recorded actions; None where the policy has no values.
        state_values: 1 - p(reject|s), the demonstrators' value; None where it has none, or its
            likelihood has no reject token.
    """

    behaviour_log_likelihoods: NDArray[np.float32]
    action_values: NDArray[np.float32] | None
    state_values: NDArray[np.float32] | None


def read_values(
    path: Path, source: MappedSource, episode: int, recorded: MappedEpisode
) -> Readings:
    """Read a checkpoint's values of an episode; its frames are decoded a few at a time.

    Args:
        path: of a checkpoint, or of a run, whose last checkpoint counts.
        source: that the episode is of.
        episode: its index there.
        recorded: the episode.

    Raises:
        ValueError: when there is no checkpoint, it is damaged, or it does not fit the episode.
    """
    folder = path if (path / DESCRIPTION).is_file() else latest_checkpoint(path)
    network, tokenizer, method = load_policy(folder)
    parts = []
    for inputs, tokens_BD in _batches(network, tokenizer, source, episode, recorded):
        parts.append(_read(network, inputs, tokens_BD))
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError(
            f"{folder} gives NaN for episode {episode}; its training diverged or it is damaged"
        )
    log_pi_T, q_T, v_T = columns
    has_values = method == "qsft"
    return Readings(
        behaviour_log_likelihoods=log_pi_T,
        action_values=q_T if has_values else None,
        state_values=v_T if has_values and network.config.reject_token else None,
    )


@torch.inference_mode()
def _read(
    network: RTNetwork, inputs: TokenInputs, tokens_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-likelihood, action value and state value, each (B,)."""
    heads = network(inputs, tokens_BD)
    log_pi_BD = heads.behaviour_BDK.gather(2, tokens_BD[..., None])[..., 0]
    q_BD = q_values(heads.behaviour_BDK, heads.likelihood_HBDV).gather(2, tokens_BD[..., None])
    # The last token's value is that of the whole action, the first one's reject that of the state.
    return log_pi_BD.sum(dim=1), q_BD[:, -1, 0], demonstrator_value(heads.likelihood_HBDV)[:, 0]


def _batches(
    network: RTNetwork,
    tokenizer: ActionTokenizer,
    source: MappedSource,
    episode: int,
    recorded: MappedEpisode,
) -> Iterator[tuple[TokenInputs, torch.Tensor]]:
    spec = network.spec
    states = _vector(recorded, STATE, spec.state_size)
    environment_states = _vector(recorded, ENVIRONMENT_STATE, spec.environment_state_size)
    actions = recorded.columns[ACTION].astype(np.float32)
    chunks = action_chunks(actions, np.zeros(1, np.int64), length=spec.chunk)
    tokens = torch.from_numpy(tokenizer.encode(chunks))
    words = torch.from_numpy(word_tokens(recorded.instruction, network.config.instruction_words))
    images = {camera: _frames(spec, camera, source, episode, recorded) for camera in spec.cameras}
    for start in range(0, len(recorded), _BATCH):
        rows = range(start, min(start + _BATCH, len(recorded)))
        here = slice(rows.start, rows.stop)
        stacks = {
            camera: torch.from_numpy(np.stack([next(frames) for _ in rows]))
            for camera, frames in images.items()
        }
        yield (
            TokenInputs(
                state_BS=states[here],
                environment_state_BE=environment_states[here],
                words_BI=words.expand(len(rows), -1),
                images=stacks,
            ),
            tokens[here],
        )


def _vector(recorded: MappedEpisode, name: str, size: int) -> torch.Tensor:
    if size == 0:
        return torch.zeros(len(recorded), 0)
    values = recorded.columns.get(name, np.zeros((len(recorded), 0))).astype(np.float32)
    if values.shape[1] != size:
        raise ValueError(
            f"the policy reads {size} entries of {name!r}, but the episode has {values.shape[1]}; "
            "use the field map that its training data was made with"
        )
    return torch.from_numpy(np.ascontiguousarray(values))


def _frames(
    spec: PolicySpec, camera: str, source: MappedSource, episode: int, recorded: MappedEpisode
) -> Iterator[Image]:
    """Frames at the policy's size, made as its training cache makes them."""
    if camera not in source.cameras:
        raise ValueError(
            f"the policy needs the camera {camera!r}, but the episode has "
            f"{listed(source.cameras)}; name it in the field map"
        )
    size = (spec.image_size, spec.image_size)
    for image in source.frames(episode, camera, recorded.steps):
        yield (
            image
            if image.shape[:2] == size
            else cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        )
