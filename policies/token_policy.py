"""The policy that acts by a token network.

Shape legend: A, D action dimensions (tokens), H likelihood heads, K bins, V = K + 1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.checkpoint import load_policy
from robot_qsft.policies.instructions import word_tokens
from robot_qsft.policies.rt import Decoder, PolicySpec, RTNetwork, TokenInputs
from robot_qsft.policies.values import MASKED_LOGIT

Extraction: TypeAlias = Literal["ratio", "paper"]


@dataclass(frozen=True)
class DecodingConfig:
    """How tokens are chosen.

    Attributes:
        beta: tilt toward value, pi(a|s) exp(beta Q(s, a)); 0 is behaviour cloning.
        sample: draw each token instead of taking the likeliest.
        extraction: what is tilted by: the "ratio" Q = p / pi, or p itself, that is, Q scaled by pi,
            as in the "paper" (Algorithm 1).
        support_threshold: bins below this share of the likeliest one's probability are not chosen
            (where beta is not 0).
    """

    beta: float = 16.0
    sample: bool = False
    extraction: Extraction = "ratio"
    support_threshold: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings outside their range.

        Raises:
            ValueError: naming the field.
        """
        if not (self.beta >= 0 and np.isfinite(self.beta)):
            raise ValueError(f"beta must be finite and at least 0, got {self.beta}")
        if not 0 <= self.support_threshold <= 1:
            raise ValueError(f"support_threshold must lie in [0, 1], got {self.support_threshold}")


class TokenPolicy:
    """A `Policy` over a token network: one forward pass reads the observation, D short ones act."""

    def __init__(
        self,
        network: RTNetwork,
        tokenizer: ActionTokenizer,
        decoding: DecodingConfig,
        *,
        has_values: bool,
    ):
        """Act by `network` on its device; without values, by its behaviour head alone."""
        self._has_values = has_values
        self._network = network.eval()
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._device = next(network.parameters()).device
        self._rng = np.random.default_rng()

    @classmethod
    def load(cls, folder: Path, decoding: DecodingConfig) -> "TokenPolicy":
        """The policy saved in `folder`.

        Raises:
            ValueError: when the checkpoint is missing or damaged.
        """
        network, tokenizer, method = load_policy(folder)
        return cls(network, tokenizer, decoding, has_values=method == "qsft")

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return self._network.spec

    def reset(self, *, seed: int) -> None:
        """Begin an episode; sampled tokens follow from `seed`."""
        self._rng = np.random.default_rng(seed)

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """Choose one action; its value is Q(s, a) of the whole action, None without values.

        Raises:
            ValueError: when the observation lacks a camera, has another size, or holds NaN, or when
                the network's output does.
        """
        decoder = Decoder(self._network, self._inputs(observation))
        tokens: list[int] = []
        log_probability, value = 0.0, None
        for _ in self.spec.bins:
            if tokens:
                decoder.append(torch.tensor(tokens[-1:], device=self._device))
            if self._has_values:
                both = decoder.log_probabilities()
                log_pi_K = both.behaviour_BDK.cpu().numpy()[0, 0]
                log_p_HV = both.likelihood_HBDV.cpu().numpy()[:, 0, 0]
                logits_K, q_K = tilted_logits(log_pi_K, log_p_HV, self._decoding)
                tokens.append(self._choose(logits_K))
                value = float(q_K[tokens[-1]])  # the last token's is that of the whole action
            else:
                log_pi_K = decoder.log_behaviour().cpu().numpy()[0, 0]
                tokens.append(self._choose(log_pi_K))
            log_probability += float(log_pi_K[tokens[-1]])
        if not math.isfinite(log_probability) or not math.isfinite(value or 0.0):
            raise ValueError(
                "the network's output holds NaN, which no action stands for; its training diverged "
                "or its checkpoint is damaged"
            )
        return ActionChunk(self._tokenizer.decode(np.array([tokens])), value, log_probability)

    def _choose(self, logits_K: NDArray[np.float32]) -> int:
        if self._decoding.sample:  # the largest of logits with Gumbel noise is a draw
            return int((logits_K + self._rng.gumbel(size=len(logits_K))).argmax())
        return int(logits_K.argmax())

    def _inputs(self, observation: Observation) -> TokenInputs:
        spec = self.spec
        environment_state = observation.environment_state
        if spec.environment_state_size == 0:  # a simulator may tell more than this policy reads
            environment_state = environment_state[:0]
        for name, vector, size in (
            ("state", observation.state, spec.state_size),
            ("environment_state", environment_state, spec.environment_state_size),
        ):
            if vector.shape != (size,):
                raise ValueError(f"{name} must have {size} entries, got shape {vector.shape}")
            if not np.isfinite(vector).all():
                raise ValueError(f"{name} holds NaN or infinity: {vector.tolist()}")
        images = {}
        for camera in spec.cameras:
            if camera not in observation.images:
                seen = sorted(observation.images) or "no camera"
                raise ValueError(f"the policy needs camera {camera!r}, the observation has {seen}")
            image = observation.images[camera]
            expected = (spec.image_size, spec.image_size, 3)
            if image.shape != expected or image.dtype != np.uint8:
                raise ValueError(
                    f"images[{camera}] must be uint8 {expected}, got {image.dtype} {image.shape}"
                )
            # A copy, since torch takes neither read-only nor flipped arrays.
            images[camera] = torch.from_numpy(image.copy())[None].to(self._device)
        words = word_tokens(observation.instruction, self._network.config.instruction_words)
        return TokenInputs(
            state_BS=torch.from_numpy(observation.state.astype(np.float32))[None].to(self._device),
            environment_state_BE=torch.from_numpy(environment_state.astype(np.float32))[None].to(
                self._device
            ),
            words_BI=torch.from_numpy(words)[None].to(self._device),
            images=images,
        )


def tilted_logits(
    log_pi_K: NDArray[np.float32], log_p_HV: NDArray[np.float32], decoding: DecodingConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits to choose one token by, and its Q, each (K,).

    `tilt` and `q_values` of one state as arrays: an action waits for them D times, and on so few
    numbers an array operation takes a third of a tensor operation's time.
    """
    least_K = log_p_HV[:, : len(log_pi_K)].min(axis=0)
    q_K = np.exp(np.minimum(least_K - log_pi_K, 0))
    if decoding.beta == 0:
        return log_pi_K, q_K
    tilting_K = np.exp(least_K) if decoding.extraction == "paper" else q_K
    threshold = decoding.support_threshold
    floor = log_pi_K.max() + math.log(threshold) if threshold else MASKED_LOGIT / 2
    return np.where(log_pi_K >= floor, log_pi_K + decoding.beta * tilting_K, MASKED_LOGIT), q_K
