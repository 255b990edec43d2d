"""An RT-style network: cameras, proprioception and instruction in, action tokens out.

Shape legend: A, D action dimensions (tokens), B batch, E environment-state dimensions, I words of
the instruction, M image tokens, P prefix tokens, S state dimensions, T tokens, W width.

After RT-1 (Brohan et al. 2022, arXiv 2212.06817), with autoregressive action tokens as in
Q-Transformer (Chebotar et al. 2023, arXiv 2309.10150).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robot_qsft.policies.heads import TokenHeads, TokenLogProbabilities
from robot_qsft.policies.instructions import BUCKETS
from robot_qsft.policies.transformer import CausalTransformer, KeyValue
from robot_qsft.policies.vision import STEM_STRIDE, ImageTokenizer, Pooling


@dataclass(frozen=True)
class RTConfig:
    """Size and layout of the network.

    Attributes:
        width: of the transformer.
        layers: transformer blocks.
        attention_heads: per block.
        stem_channels: of the two convolutions that see each camera.
        image_tokens: per camera.
        image_pooling: how they are made of the stem's positions: "grid" reads each position with
            weights of its own; "token_learner" averages, for images too large for that.
        instruction_words: words read from the instruction; 0 where data holds only one.
        dropout: in every block while training. It biases p / pi, and the bias grows from backup
            to backup until every value is high; noise on the inputs does not.
        state_noise: standard deviation of the Gaussian noise on the low-dimensional inputs while
            training, in theirs over the data. A continuous state is seen once: without noise it
            is learnt by heart (Sinha et al. 2021, arXiv 2103.06326).
        likelihood_heads: H; values are the minimum of them.
        reject_token: whether p has one token more than pi (all but the paper's Eq. 3).
        trunks: "shared" heads sit on one trunk; "separate" gives p a trunk of its own (paper).
        initial_value: Q everywhere before training.
    """

    width: int = 128
    layers: int = 3
    attention_heads: int = 4
    stem_channels: tuple[int, int] = (32, 64)
    image_tokens: int = 2
    image_pooling: Pooling = "grid"
    instruction_words: int = 0
    dropout: float = 0.0
    state_noise: float = 0.1
    likelihood_heads: int = 2
    reject_token: bool = True
    trunks: Literal["shared", "separate"] = "shared"
    initial_value: float = 0.05

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together.

        Raises:
            ValueError: naming the field.
        """
        if self.width % self.attention_heads:
            raise ValueError(
                f"width must be a multiple of attention_heads, got {self.width} "
                f"and {self.attention_heads}"
            )
        if not 0 <= self.state_noise < math.inf:
            raise ValueError(f"state_noise must be finite and at least 0, got {self.state_noise}")
        if self.likelihood_heads < 1:
            raise ValueError(f"likelihood_heads must be at least 1, got {self.likelihood_heads}")


@dataclass(frozen=True)
class PolicySpec:
    """What goes in and out, as the data set has it.

    Attributes:
        cameras: names, in the order of their tokens; () for none.
        image_size: height and width of the images in pixels.
        state_size: S.
        environment_state_size: E, or 0 where the policy must not see the simulator's truth.
        bins: K_d of every action dimension, of all actions of a chunk end to end.
        discrete: which action dimensions are discrete.
        chunk: C, consecutive actions that are decided at once.
    """

    cameras: tuple[str, ...]
    image_size: int
    state_size: int
    environment_state_size: int
    bins: tuple[int, ...]
    discrete: tuple[bool, ...]
    chunk: int = 1

    def __post_init__(self) -> None:
        """Refuse an image size that the stem's strides do not divide.

        Raises:
            ValueError: naming the field.
        """
        if self.cameras and self.image_size % STEM_STRIDE:
            raise ValueError(
                f"image_size must be a multiple of {STEM_STRIDE}, got {self.image_size}"
            )


@dataclass(frozen=True)
class TokenInputs:
    """A batch of observations on the network's device.

    Attributes:
        state_BS: float32.
        environment_state_BE: float32; E is 0 where the policy does not read it.
        words_BI: int64 word tokens.
        images: camera to uint8 (B, H, W, 3).
    """

    state_BS: Tensor
    environment_state_BE: Tensor
    words_BI: Tensor
    images: Mapping[str, Tensor] = field(default_factory=dict)


class Trunk(nn.Module):
    """Observation and action tokens to hidden states."""

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: RTConfig, spec: PolicySpec):
        super().__init__()
        width = config.width
        self.cameras = spec.cameras
        self.state_noise = config.state_noise
        self.image_tokenizers = nn.ModuleList(
            ImageTokenizer(
                image_size=spec.image_size,
                channels=config.stem_channels,
                width=width,
                tokens=config.image_tokens,
                pooling=config.image_pooling,
            )
            for _ in spec.cameras
        )
        low_dimensional = spec.state_size + spec.environment_state_size
        self.state_encoder = nn.Sequential(
            nn.Linear(low_dimensional, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.words = nn.Embedding(BUCKETS, width) if config.instruction_words else None
        self.action_DKW = nn.Parameter(torch.randn(len(spec.bins), max(spec.bins), width) * 0.02)
        prefix = config.instruction_words + len(spec.cameras) * config.image_tokens + 1
        self.transformer = CausalTransformer(
            width=width,
            layers=config.layers,
            attention_heads=config.attention_heads,
            dropout=config.dropout,
            max_tokens=prefix + len(spec.bins) - 1,
        )
        self.register_buffer("state_mean", torch.zeros(low_dimensional))
        self.register_buffer("state_std", torch.ones(low_dimensional))

    def observe(self, inputs: TokenInputs) -> Tensor:
        """Prefix tokens (B, P, W): instruction, cameras, and last the state."""
        state_BX = torch.cat([inputs.state_BS, inputs.environment_state_BE], dim=1)
        state_BX = (state_BX - self.state_mean) / self.state_std
        if self.training:
            state_BX = state_BX + self.state_noise * torch.randn_like(state_BX)
        tokens = [] if self.words is None else [self.words(inputs.words_BI)]
        for camera, tokenizer in zip(self.cameras, self.image_tokenizers, strict=True):
            tokens.append(tokenizer(inputs.images[camera]))
        tokens.append(self.state_encoder(state_BX)[:, None])
        return torch.cat(tokens, dim=1)

    def embed_actions(self, tokens_BT: Tensor, first: int = 0) -> Tensor:
        """Embeddings (B, T, W) of the action tokens `first` … `first` + T - 1."""
        dimensions_T = torch.arange(first, first + tokens_BT.shape[1], device=tokens_BT.device)
        return self.action_DKW[dimensions_T, tokens_BT]

    def forward(self, inputs: TokenInputs, tokens_BD: Tensor) -> Tensor:
        """Hidden states (B, D, W), the d-th predicting token d from the demonstrated ones before.

        The last prefix token predicts the first action token, so the last action token is not
        needed as an input.
        """
        prefix_BPW = self.observe(inputs)
        actions_BTW = self.embed_actions(tokens_BD[:, :-1])
        hidden_BTW, _ = self.transformer(torch.cat([prefix_BPW, actions_BTW], dim=1))
        hidden_BDW: Tensor = hidden_BTW[:, prefix_BPW.shape[1] - 1 :]
        return hidden_BDW


class RTNetwork(nn.Module):
    """Trunk(s) and both heads."""

    def __init__(self, config: RTConfig, spec: PolicySpec):
        super().__init__()
        self.config = config
        self.spec = spec
        self.trunk = Trunk(config, spec)
        self.likelihood_trunk = Trunk(config, spec) if config.trunks == "separate" else None
        self.heads = TokenHeads(
            width=config.width,
            bins=spec.bins,
            likelihood_heads=config.likelihood_heads,
            reject_token=config.reject_token,
            initial_value=config.initial_value,
        )

    @property
    def trunks(self) -> list[Trunk]:
        """The trunk, and the likelihood's own where it has one."""
        return [self.trunk] + ([self.likelihood_trunk] if self.likelihood_trunk else [])

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Scale of the low-dimensional inputs, each (S + E,), kept with the weights."""
        for trunk in self.trunks:
            trunk.state_mean.copy_(mean)
            trunk.state_std.copy_(std)

    def forward(self, inputs: TokenInputs, tokens_BD: Tensor) -> TokenLogProbabilities:
        """Log-probabilities of every action token given the demonstrated ones before it."""
        hidden_BDW = self.trunk(inputs, tokens_BD)
        likelihood_hidden_BDW = hidden_BDW
        if self.likelihood_trunk is not None:
            likelihood_hidden_BDW = self.likelihood_trunk(inputs, tokens_BD)
        with torch.autocast(hidden_BDW.device.type, enabled=False):  # ratios need float32
            log_probabilities: TokenLogProbabilities = self.heads(hidden_BDW, likelihood_hidden_BDW)
        return log_probabilities

    def parameter_count(self) -> int:
        """Trainable numbers in the network."""
        return sum(parameter.numel() for parameter in self.parameters())


class Decoder:
    """Feeds action tokens one by one through the cache of an observation already read."""

    def __init__(self, network: RTNetwork, inputs: TokenInputs, given_BT: Tensor | None = None):
        """Read the observation, and tokens that are given, in one pass.

        Then the next token's log-probabilities can be asked for.
        """
        self._network = network
        self._caches: list[list[KeyValue] | None] = [None] * len(network.trunks)
        self._hidden: list[Tensor] = []
        self._dimension = 0 if given_BT is None else given_BT.shape[1]
        prefixes = [trunk.observe(inputs) for trunk in network.trunks]
        if given_BT is not None:
            prefixes = [
                torch.cat([prefix_BPW, trunk.embed_actions(given_BT)], dim=1)
                for prefix_BPW, trunk in zip(prefixes, network.trunks, strict=True)
            ]
        self._advance(prefixes)

    def log_behaviour(self) -> Tensor:
        """Log-probabilities (B, 1, K) of the next token under the behaviour head alone."""
        return self._network.heads.behaviour(self._hidden[0], self._dimension)

    def log_heads(self) -> Tensor:
        """Log-probabilities (1 + H, B, 1, V) of the next token, see `TokenHeads.joint`."""
        return self._network.heads.joint(self._hidden[0], self._hidden[-1], self._dimension)

    def append(self, tokens_B: Tensor) -> None:
        """Continue the action by one token."""
        tokens_B1 = tokens_B[:, None]
        embedded = [
            trunk.embed_actions(tokens_B1, self._dimension) for trunk in self._network.trunks
        ]
        self._dimension += 1
        self._advance(embedded)

    def _advance(self, tokens: list[Tensor]) -> None:
        self._hidden = []
        for index, (trunk, tokens_BTW) in enumerate(zip(self._network.trunks, tokens, strict=True)):
            hidden_BTW, self._caches[index] = trunk.transformer(tokens_BTW, self._caches[index])
            self._hidden.append(hidden_BTW[:, -1:])
