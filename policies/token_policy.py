"""The policy that acts by a token network.

Shape legend: A action dimensions, C chunk length, D = C A tokens, H likelihood heads, V bins and,
where p has one, the reject token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from robot_qsft.datasets.interface import ActionChunk, Observation, Vector
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
        temperature: of the draw of each token; 0 takes the likeliest ("greedy"), 1 follows the
            policy itself. A policy without memory that always takes the likeliest action takes it
            for ever where it leads back to the same observation; a low temperature gets out.
        extraction: what is tilted by: the "ratio" Q = p / pi, or p itself, that is, Q scaled by pi,
            as in the "paper" (Algorithm 1).
        support_threshold: bins below this share of the likeliest one's probability are not chosen
            (where beta is not 0).
        execute: actions of a chunk that are decided and done before the policy looks again; 0 for
            all of them.
    """

    beta: float = 16.0
    temperature: float = 0.5
    extraction: Extraction = "ratio"
    support_threshold: float = 0.1
    execute: int = 0

    def __post_init__(self) -> None:
        """Refuse settings outside their range.

        Raises:
            ValueError: naming the field.
        """
        for name in ("beta", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 <= self.support_threshold <= 1:
            raise ValueError(f"support_threshold must lie in [0, 1], got {self.support_threshold}")
        if self.execute < 0:
            raise ValueError(f"execute must be at least 0, got {self.execute}")


BC_GREEDY = DecodingConfig(beta=0, temperature=0)
"""The likeliest action under the behaviour head."""
BC_SAMPLED = DecodingConfig(beta=0, temperature=1)
"""What the demonstrators do, as often as they do it."""


class TokenPolicy:
    """A `PrefixPolicy` over a token network.

    One forward pass reads the observation, a short one for each token acts.
    """

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

    def act(self, observation: Observation) -> ActionChunk:
        """Choose a chunk; its value is Q(s, a) of all of its actions, None without values.

        Raises:
            ValueError: when the observation lacks a camera, has another size, or holds NaN, or when
                the network's output does.
        """
        return self._decode(observation, [])

    def act_after(self, observation: Observation, committed: Vector) -> ActionChunk:
        """Choose a chunk that begins with `committed`, float32 (C, A).

        The committed actions are a prefix that the rest is decided by, token by token as ever, so
        the chunk goes on from them as demonstrations do (real-time chunking, Black et al. 2025,
        arXiv 2506.07339, which is exact for tokens of single actions). They come back as their
        bins' centres.

        Raises:
            ValueError: as `act`, and when `committed` leaves nothing to decide or has another size.
        """
        chunk = self.spec.chunk
        size = len(self.spec.bins) // chunk
        if committed.ndim != 2 or committed.shape[1] != size or len(committed) >= chunk:
            raise ValueError(
                f"committed actions must be fewer than {chunk} rows of {size}, "
                f"got {committed.shape}"
            )
        whole_CA = np.zeros((chunk, size), np.float32)
        whole_CA[: len(committed)] = committed
        tokens: list[int] = self._tokenizer.encode(whole_CA.reshape(1, -1))[0].tolist()
        return self._decode(observation, tokens[: committed.size])

    @torch.inference_mode()
    def _decode(self, observation: Observation, tokens: list[int]) -> ActionChunk:
        """Go on from the first tokens of a chunk to its end."""
        size = len(self.spec.bins) // self.spec.chunk
        wanted = size * min(self._decoding.execute or self.spec.chunk, self.spec.chunk)
        given = torch.tensor([tokens], device=self._device) if tokens else None
        decoder = Decoder(self._network, self._inputs(observation), given)
        perturbations_DV = self._perturbations()
        log_probability, value = 0.0, None
        chosen = list(tokens)
        while len(chosen) < wanted:
            dimension = len(chosen)
            if dimension > len(tokens):
                decoder.append(torch.tensor(chosen[-1:], device=self._device))
            if self._has_values:
                log_pi_V, *log_p_HV = decoder.log_heads().cpu().numpy()[:, 0, 0].tolist()
                logits_V, q_V = tilted_logits(log_pi_V, log_p_HV, self._decoding)
                chosen.append(_largest(logits_V, perturbations_DV, dimension))
                value = q_V[chosen[-1]]  # the last token's is that of the whole chunk
            else:
                log_pi_V = decoder.log_behaviour().cpu().numpy()[0, 0].tolist()
                chosen.append(_largest(log_pi_V, perturbations_DV, dimension))
            log_probability += log_pi_V[chosen[-1]]
        if not math.isfinite(log_probability) or not math.isfinite(value or 0.0):
            raise ValueError(
                "the network's output holds NaN, which no action stands for; its training diverged "
                "or its checkpoint is damaged"
            )
        padded = chosen + [0] * (len(self.spec.bins) - len(chosen))
        actions_CA = self._tokenizer.decode(np.array([padded])).reshape(-1, size)
        return ActionChunk(actions_CA[: len(chosen) // size], value, log_probability)

    def _perturbations(self) -> list[list[float]] | None:
        """Gumbel noise (D, V): the largest of logits with noise is a draw; None for greedy."""
        if self._decoding.temperature == 0:
            return None
        size = (len(self.spec.bins), max(self.spec.bins) + 1)
        noise_DV: list[list[float]] = self._rng.gumbel(
            scale=self._decoding.temperature, size=size
        ).tolist()
        return noise_DV

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


def _largest(
    logits_V: list[float], perturbations_DV: list[list[float]] | None, dimension: int
) -> int:
    if perturbations_DV is not None:  # of as many tokens as there are logits
        logits_V = list(map(add, logits_V, perturbations_DV[dimension]))
    return logits_V.index(max(logits_V))


def tilted_logits(
    log_pi_V: Sequence[float], log_p_HV: Sequence[Sequence[float]], decoding: DecodingConfig
) -> tuple[list[float], list[float]]:
    """Logits to choose one token by, and its Q, each (V,); Q is 0 off the support.

    `tilt` and `q_values` of one state in plain numbers, few of which are on the support: an action
    waits for them D times, and a single operation on tensors or arrays takes longer than all this.
    """
    beta, threshold = decoding.beta, decoding.support_threshold
    by_likelihood = decoding.extraction == "paper"
    floor = max(log_pi_V) + math.log(threshold) if beta and threshold else MASKED_LOGIT / 2
    logits_V, q_V = [MASKED_LOGIT] * len(log_pi_V), [0.0] * len(log_pi_V)
    least_V = map(min, zip(*log_p_HV, strict=True))
    for token, (log_pi, least) in enumerate(zip(log_pi_V, least_V, strict=True)):
        if log_pi >= floor:
            # Not min(), which would drop a NaN.
            q_V[token] = q = 1.0 if least > log_pi else math.exp(least - log_pi)
            logits_V[token] = log_pi + beta * (math.exp(least) if by_likelihood else q)
    return logits_V, q_V
