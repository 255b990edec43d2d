"""Continuous actions to tokens and back: one token per dimension, each one of K_d bins.

Shape legend: A action dimensions (also called D once they are tokens), N actions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Vector


@dataclass(frozen=True)
class TokenizerConfig:
    """How bins are laid over the actions of a data set.

    Attributes:
        bins: K, bins of a continuous dimension.
        spacing: "uniform" bins are equally wide; "quantile" bins hold equally many actions.
        low_quantile: lower bound of the bins, as a quantile of the data.
        high_quantile: upper bound of the bins.
        discrete_values: a dimension with at most this many distinct values in the data (such as
            an open/close gripper) keeps exactly these values as its bins.
    """

    bins: int = 24
    spacing: Literal["uniform", "quantile"] = "uniform"
    low_quantile: float = 0.01
    high_quantile: float = 0.99
    discrete_values: int = 3

    def __post_init__(self) -> None:
        """Refuse settings that leave no bins.

        Raises:
            ValueError: naming the field.
        """
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}")
        if not 0 <= self.low_quantile < self.high_quantile <= 1:
            raise ValueError(
                "low_quantile and high_quantile must satisfy 0 <= low < high <= 1, "
                f"got {self.low_quantile} and {self.high_quantile}"
            )


@dataclass(frozen=True)
class Dimension:
    """The bins of one action dimension.

    Attributes:
        edges: K+1 ascending bin edges of a continuous dimension; empty for a discrete one.
        centres: K values that the tokens stand for.
    """

    edges: tuple[float, ...]
    centres: tuple[float, ...]

    @property
    def discrete(self) -> bool:
        """Whether the bins are single values rather than intervals."""
        return not self.edges


@dataclass(frozen=True)
class ActionTokenizer:
    """Bins for every action dimension.

    A value inside the bounds decodes to the centre of its bin, at most half a bin away: with two
    uniform bins over [-1, 1], 0.3 encodes to token 1 and decodes to 0.5.
    """

    dimensions: tuple[Dimension, ...]

    @classmethod
    def fit(cls, actions: Vector, config: TokenizerConfig) -> "ActionTokenizer":
        """Lay bins over `actions`, float32 (N, A).

        Raises:
            ValueError: when there is no action, or one is not finite.
        """
        if actions.ndim != 2 or len(actions) == 0:
            raise ValueError(f"actions must be a non-empty (N, A) array, got shape {actions.shape}")
        if not np.isfinite(actions).all():
            row, dimension = np.argwhere(~np.isfinite(actions))[0]
            raise ValueError(f"action {row} holds NaN or infinity in dimension {dimension}")
        return cls(tuple(_fit_dimension(column, config) for column in actions.T))

    @property
    def bins(self) -> tuple[int, ...]:
        """Bins of each dimension, K_d."""
        return tuple(len(dimension.centres) for dimension in self.dimensions)

    @property
    def discrete(self) -> tuple[bool, ...]:
        """Which dimensions are discrete."""
        return tuple(dimension.discrete for dimension in self.dimensions)

    def encode(self, actions: Vector) -> NDArray[np.int64]:
        """Tokens (N, A) of actions (N, A); values beyond the bounds get the outermost bin.

        Raises:
            ValueError: on a wrong number of dimensions or a value that is not finite.
        """
        self._check(actions)
        columns = [
            _encode_dimension(column, dimension)
            for column, dimension in zip(actions.T, self.dimensions, strict=True)
        ]
        return np.stack(columns, axis=1)

    def decode(self, tokens: NDArray[np.int64]) -> Vector:
        """Actions float32 (N, A) of tokens (N, A).

        Raises:
            ValueError: when a token is outside its dimension's bins.
        """
        bins = np.asarray(self.bins)
        if tokens.ndim != 2 or tokens.shape[1] != len(bins):
            raise ValueError(f"tokens must be (N, {len(bins)}), got shape {tokens.shape}")
        if ((tokens < 0) | (tokens >= bins)).any():
            raise ValueError(f"tokens must lie in [0, {bins.tolist()}), got {tokens.tolist()}")
        columns = [
            np.asarray(dimension.centres, np.float32)[column]
            for column, dimension in zip(tokens.T, self.dimensions, strict=True)
        ]
        return np.stack(columns, axis=1)

    def count_clipped(self, actions: Vector) -> NDArray[np.int64]:
        """How many of `actions` (N, A) lie beyond the bounds, per dimension (A,).

        For a discrete dimension: how many are none of its values.
        """
        self._check(actions)
        return np.array(
            [
                np.sum(~np.isin(column, np.asarray(dimension.centres, np.float32)))
                if dimension.discrete
                else np.sum((column < dimension.edges[0]) | (column > dimension.edges[-1]))
                for column, dimension in zip(actions.T, self.dimensions, strict=True)
            ],
            np.int64,
        )

    def repeated(self, times: int) -> "ActionTokenizer":
        """The same bins for so many consecutive actions, end to end."""
        return ActionTokenizer(self.dimensions * times)

    def to_json(self) -> list[dict[str, Any]]:
        """As plain lists, for the checkpoint."""
        return [asdict(dimension) for dimension in self.dimensions]

    @classmethod
    def from_json(cls, dimensions: Sequence[dict[str, Any]]) -> "ActionTokenizer":
        """Inverse of `to_json`."""
        return cls(tuple(Dimension(tuple(d["edges"]), tuple(d["centres"])) for d in dimensions))

    def _check(self, actions: Vector) -> None:
        if actions.ndim != 2 or actions.shape[1] != len(self.dimensions):
            raise ValueError(
                f"actions must be (N, {len(self.dimensions)}), got shape {actions.shape}"
            )
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinity, which no token stands for")


def _fit_dimension(column_N: Vector, config: TokenizerConfig) -> Dimension:
    values = np.unique(column_N)
    if len(values) <= config.discrete_values:
        return Dimension((), tuple(float(value) for value in values))
    quantiles = [config.low_quantile, config.high_quantile]
    low, high = (float(bound) for bound in np.quantile(column_N, quantiles))
    if low == high:  # nearly all actions agree: fall back on the full range
        low, high = float(values[0]), float(values[-1])
    if config.spacing == "uniform":
        edges = np.linspace(low, high, config.bins + 1)
    else:
        levels = np.linspace(config.low_quantile, config.high_quantile, config.bins + 1)
        edges = np.quantile(column_N, levels)
        # Repeated values share one bin; equal up to rounding is a repetition too.
        edges = edges[np.diff(edges, prepend=-np.inf) > 1e-6 * (high - low)]
        if len(edges) < 3:
            edges = np.linspace(low, high, config.bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    return Dimension(tuple(edges.tolist()), tuple(centres.tolist()))


def _encode_dimension(column_N: Vector, dimension: Dimension) -> NDArray[np.int64]:
    if dimension.discrete:
        centres = np.asarray(dimension.centres)
        nearest: NDArray[np.int64] = np.abs(column_N[:, None] - centres).argmin(axis=1)
        return nearest
    inner_edges = np.asarray(dimension.edges[1:-1])
    return np.searchsorted(inner_edges, column_N, side="right").astype(np.int64)
