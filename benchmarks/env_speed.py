"""How fast demonstrations are made: environment steps per second of one core.

Measured is the whole loop of collecting episodes: start states, scripted demonstrator, physics,
pictures. Seconds are CPU seconds of this single-threaded process, so that other programs on the
machine do not count. The variants take turns, block by block.
"""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import Figure, at_least, mean_interval, publish, quick_from_command_line

from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.recipes import attempts
from robot_qsft.sim.rollouts import run_attempt

CONFIG = PyBulletConfig("Stitch", image_size=64, renderer="tiny")
SEED = 0
EPISODES_PER_BLOCK = 4


@dataclass(frozen=True)
class Variant:
    """A configuration and what its blocks reached."""

    config: PyBulletConfig
    rates: list[float]


def main() -> int:
    """Measure, print and write; 1 when a bar is missed."""
    quick = quick_from_command_line(__doc__ or "")
    blocks = 8 if quick else 40
    variants = {
        "image": Variant(CONFIG, []),
        "stock": Variant(replace(CONFIG, low_poly=False), []),
        "blind": Variant(replace(CONFIG, cameras=()), []),
    }
    environments = {name: make_environment(each.config) for name, each in variants.items()}
    for block in range(blocks):
        for name, variant in variants.items():
            todo = attempts(
                "expert", variant.config, episodes=EPISODES_PER_BLOCK, seed=SEED + block
            )
            policy = todo[0].policy()
            begin = time.process_time()
            steps = sum(
                len(run_attempt(attempt, environments[name], policy).episode) for attempt in todo
            )
            variant.rates.append(steps / (time.process_time() - begin))

    seeds = tuple(range(SEED, SEED + blocks))
    image, stock, blind = (np.array(variants[name].rates) for name in ("image", "stock", "blind"))

    def parts(figure: str, samples: NDArray[np.float64]) -> dict[str, Any]:
        value, low, high = mean_interval(samples.tolist())
        return {
            "figure": figure,
            "value": value,
            "low": low,
            "high": high,
            "n": blocks,
            "seeds": seeds,
        }

    met = publish(
        "env_speed",
        [
            at_least(250, **parts("steps/s per core with a 64×64 image", image)),
            at_least(3, **parts("low-poly ÷ stock meshes, with a 64×64 image", image / stock)),
            Figure(**parts("steps/s per core with stock meshes", stock)),
            Figure(**parts("steps/s per core without images", blind)),
        ],
        quick=quick,
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
