"""The policy that acts by a token network.

Shape legend: A, D action dimensions (tokens), B batch (1), H likelihood heads, K bins.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.policies.checkpoint import load_policy
from robot_qsft.policies.instructions import word_tokens
from robot_qsft.policies.rt import Decoder, PolicySpec, RTNetwork, TokenInputs
from robot_qsft.policies.values import Extraction, paper_tilting, q_values, tilt


@dataclass(frozen=True)
class DecodingConfig:
    """How tokens are chosen.

    Attributes:
        beta: tilt toward value, pi(a|s) exp(beta Q(s, a)); 0 is behaviour cloning.
        sample: draw each token instead of taking the likeliest.
        extraction: what is tilted by: the "ratio" Q = p / pi, or p itself as in the "paper".
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
        self._generator = torch.Generator()

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
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """Choose one action; its value is Q(s, a) of the whole action, None without values.

        Raises:
            ValueError: when the observation lacks a camera, has another size, or holds NaN, or when
                the network's output does.
        """
        decoder = Decoder(self._network, self._inputs(observation))
        tokens: list[Tensor] = []
        log_probability, value = 0.0, None
        last = len(self.spec.bins) - 1
        for dimension in range(len(self.spec.bins)):
            if tokens:
                decoder.append(tokens[-1])
            if not self._has_values:
                log_pi_11K = decoder.log_behaviour()
                token_B = self._choose(log_pi_11K[:, 0])
            else:
                both = decoder.log_probabilities()
                log_pi_11K, log_p_H11V = both.behaviour_BDK, both.likelihood_HBDV
                q_11K = q_values(log_pi_11K, log_p_H11V)
                by_p = self._decoding.extraction == "paper"
                logits_11K = tilt(
                    log_pi_11K,
                    paper_tilting(log_pi_11K, log_p_H11V) if by_p else q_11K,
                    beta=self._decoding.beta,
                    threshold=self._decoding.support_threshold,
                )
                token_B = self._choose(logits_11K[:, 0])
                if dimension == last:
                    value = q_11K[0, 0, int(token_B)].item()
            tokens.append(token_B)
            log_probability += log_pi_11K[0, 0, int(token_B)].item()
        if not math.isfinite(log_probability) or not math.isfinite(value or 0.0):
            raise ValueError(
                "the network's output holds NaN, which no action stands for; its training diverged "
                "or its checkpoint is damaged"
            )
        action_1A = self._tokenizer.decode(torch.stack(tokens, dim=1).cpu().numpy())
        return ActionChunk(action_1A, value, log_probability)

    def _choose(self, logits_BK: Tensor) -> Tensor:
        if not self._decoding.sample:
            return logits_BK.argmax(dim=-1)
        probabilities_BK = logits_BK.softmax(dim=-1).cpu()
        drawn_B = torch.multinomial(probabilities_BK, 1, generator=self._generator)[:, 0]
        return drawn_B.to(self._device)

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
