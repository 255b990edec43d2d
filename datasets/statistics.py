"""Exact statistics of numbers and of frames, as a LeRobot data set stores them.

Shape legend: D dimensions, H height, N rows, W width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LARGEST_SIDE_PX = 300
_DECIMATED_SIDE_PX = 150


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Statistics over the rows, one number per dimension; all arrays float64 (D,).

    Attributes:
        minimum: smallest value.
        maximum: largest value.
        mean: arithmetic mean.
        std: population standard deviation.
        q01: 1% quantile, linear between neighbours, as are the others.
        q10: 10% quantile.
        q50: median.
        q90: 90% quantile.
        q99: 99% quantile.
        count: number of rows (of frames, for a camera).
    """

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    q01: NDArray[np.float64]
    q10: NDArray[np.float64]
    q50: NDArray[np.float64]
    q90: NDArray[np.float64]
    q99: NDArray[np.float64]
    count: int

    def dimensions(self, first: int, last: int) -> "FeatureStatistics":
        """The statistics of dimensions `first` to `last`, half open."""
        arrays = {
            f.name: getattr(self, f.name)[first:last] for f in fields(self) if f.name != "count"
        }
        return FeatureStatistics(**arrays, count=self.count)


def feature_statistics(values_ND: NDArray[Any]) -> FeatureStatistics:
    """Exact statistics per dimension, in double precision.

    Args:
        values_ND: numbers or booleans, (N, D) with N of at least 1.

    Raises:
        ValueError: when there are no rows.
    """
    if values_ND.ndim != 2 or len(values_ND) == 0:
        raise ValueError(f"statistics need rows x dimensions, but shape {values_ND.shape} came")
    # Of columns that training never sees, numbers may be beyond reason: so are their statistics.
    with np.errstate(over="ignore", invalid="ignore"):
        sorted_ND = np.sort(values_ND.astype(np.float64), axis=0)
        mean_D, std_D = sorted_ND.mean(axis=0), sorted_ND.std(axis=0)
    return FeatureStatistics(
        minimum=sorted_ND[0],
        maximum=sorted_ND[-1],
        mean=mean_D,
        std=std_D,
        **{name: _quantile_of_sorted(sorted_ND, q) for name, q in QUANTILES.items()},
        count=len(sorted_ND),
    )


class ImageStatistics:
    """Statistics per colour channel, in [0, 1], over evenly spaced frames that come one by one.

    As in LeRobot about N**0.75 frames, at least 100 where there are as many, are looked at, and
    frames above 300 pixels are thinned to about 150.
    """

    def __init__(self, total: int) -> None:
        """Expect `total` frames, at least one."""
        samples = min(total, int(np.clip(total**0.75, 100, 10_000)))
        self._chosen = np.zeros(total, np.bool_)
        self._chosen[np.round(np.linspace(0, total - 1, samples)).astype(np.int64)] = True
        self._counts_CV = np.zeros((3, 256), np.int64)
        self._seen = self._samples = 0

    def passing(self, frames: Iterable[Image]) -> Iterator[Image]:
        """The frames, uint8 (H, W, 3) each, looked at in passing.

        Raises:
            ValueError: when more or fewer frames come than were expected.
        """
        for frame in frames:
            if self._seen < len(self._chosen) and self._chosen[self._seen]:
                self._look_at(frame)
            self._seen += 1
            yield frame
        if self._seen != len(self._chosen):
            raise ValueError(f"expected {len(self._chosen)} frames, but {self._seen} came")

    def result(self) -> FeatureStatistics:
        """The statistics, once all frames have passed."""
        levels_V = np.arange(256) / 255.0
        pixels = int(self._counts_CV[0].sum())
        mean_C = self._counts_CV @ levels_V / pixels
        variance_C = self._counts_CV @ levels_V**2 / pixels - mean_C**2
        cumulative_CV = self._counts_CV.cumsum(axis=1)

        def at_rank(rank: int) -> NDArray[np.float64]:
            levels_C: NDArray[np.float64] = levels_V[(cumulative_CV <= rank).sum(axis=1)]
            return levels_C

        quantiles = {}
        for name, q in QUANTILES.items():
            below = int(q * (pixels - 1))
            part = q * (pixels - 1) - below
            above = min(below + 1, pixels - 1)
            quantiles[name] = (1 - part) * at_rank(below) + part * at_rank(above)
        return FeatureStatistics(
            minimum=at_rank(0),
            maximum=at_rank(pixels - 1),
            mean=mean_C,
            std=np.sqrt(variance_C.clip(min=0)),
            **quantiles,
            count=self._samples,
        )

    def _look_at(self, frame: Image) -> None:
        side = max(frame.shape[:2])
        stride = side // _DECIMATED_SIDE_PX if side > _LARGEST_SIDE_PX else 1
        sampled = frame[::stride, ::stride]
        for channel in range(3):
            self._counts_CV[channel] += np.bincount(sampled[..., channel].ravel(), minlength=256)
        self._samples += 1


def combine(first: FeatureStatistics, second: FeatureStatistics) -> FeatureStatistics:
    """Statistics of two sets of rows taken together.

    Exact but for the quantiles, of which the count-weighted mean is taken, as in LeRobot.
    """
    count = first.count + second.count
    share = second.count / count
    mean = first.mean + share * (second.mean - first.mean)
    variance = (
        (1 - share) * first.std**2
        + share * second.std**2
        + share * (1 - share) * (second.mean - first.mean) ** 2
    )
    return FeatureStatistics(
        minimum=np.minimum(first.minimum, second.minimum),
        maximum=np.maximum(first.maximum, second.maximum),
        mean=mean,
        std=np.sqrt(variance),
        **{
            name: (1 - share) * getattr(first, name) + share * getattr(second, name)
            for name in QUANTILES
        },
        count=count,
    )


def statistics_to_json(statistics: FeatureStatistics, *, dtype: str) -> dict[str, Any]:
    """The form of `stats.json`: lists per dimension, for a camera shaped (3, 1, 1).

    Args:
        statistics: of one feature.
        dtype: of the feature; whole numbers and booleans keep their type in `min` and `max`.
    """

    def nested(values: NDArray[Any]) -> list[Any]:
        shaped = values.reshape(-1, 1, 1) if dtype in ("image", "video") else values
        listed: list[Any] = shaped.tolist()
        return listed

    exact = np.dtype(dtype) if dtype not in ("image", "video") else np.dtype(np.float64)
    bound = exact if exact.kind in "iub" else np.dtype(np.float64)
    return {
        "min": nested(statistics.minimum.astype(bound)),
        "max": nested(statistics.maximum.astype(bound)),
        "mean": nested(statistics.mean),
        "std": nested(statistics.std),
        "count": [statistics.count],
        **{name: nested(getattr(statistics, name)) for name in QUANTILES},
    }


def statistics_from_json(stored: dict[str, Any]) -> FeatureStatistics:
    """Read one entry of `stats.json`; all keys must be there."""

    def flat(name: str) -> NDArray[np.float64]:
        return np.asarray(stored[name], np.float64).reshape(-1)

    return FeatureStatistics(
        minimum=flat("min"),
        maximum=flat("max"),
        mean=flat("mean"),
        std=flat("std"),
        **{name: flat(name) for name in QUANTILES},
        count=int(np.asarray(stored["count"]).reshape(-1)[0]),
    )


def _quantile_of_sorted(sorted_ND: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    position = quantile * (len(sorted_ND) - 1)
    below = int(position)
    above = min(below + 1, len(sorted_ND) - 1)
    part = position - below
    low: NDArray[np.float64] = sorted_ND[below]
    # Infinity times nothing would be no number.
    return (1 - part) * low + part * sorted_ND[above] if part else low
