"""Stitch data from one 64x64 camera and proprioception: Q-SFT, BC and filtered BC.

Three training seeds over 100 paired start states, last checkpoints, the same data and budget for
every method. An hour on two CPU cores; interrupted, it goes on where it stopped.
"""

import sys
from dataclasses import replace

import numpy as np
from learning import Run, figure_of, mean_over_seeds, run_all, stitch_setup, successes
from numpy.typing import NDArray
from report import publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.evaluate import EvaluationConfig
from robot_qsft.policies.token_policy import BC_GREEDY, DecodingConfig


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    seeds = (0,) if quick else (0, 1, 2)
    base = recipes.images()
    if quick:
        base = replace(base, steps=50, validate_every=50)
    setup = stitch_setup(
        "stitch_images_quick" if quick else "stitch_images",
        ("front",),
        episodes=100 if quick else 2400,
        evaluation=EvaluationConfig(episodes=4 if quick else 100),
    )
    best = DecodingConfig()
    greedy, sampled = replace(best, temperature=0.0), replace(best, temperature=1.0)
    bc_alike = replace(best, beta=0.0)
    runs = []
    for seed in seeds:
        seeded = replace(base, seed=seed)
        runs += [
            Run(f"qsft-{seed}", seeded, (best, BC_GREEDY, greedy, sampled)),
            Run(f"bc-{seed}", recipes.bc(seeded), (BC_GREEDY, bc_alike)),
            Run(f"filtered-{seed}", recipes.filtered_bc(seeded), (BC_GREEDY,)),
        ]
    results = run_all(setup, runs)

    def outcomes(method: str, decoding: DecodingConfig) -> NDArray[np.float64]:
        return successes(results, [f"{method}-{seed}" for seed in seeds], decoding)

    qsft, bc = outcomes("qsft", best), outcomes("bc", BC_GREEDY)
    figures = [
        figure_of(
            f"Q-SFT, beta {best.beta:g}, temperature {best.temperature:g}: success",
            mean_over_seeds(qsft),
            seeds,
            least=0.85,
        ),
        figure_of("BC trained alone, greedy: success", mean_over_seeds(bc), seeds),
        figure_of("Q-SFT − BC(greedy), paired", mean_over_seeds(qsft - bc), seeds, least=0.55),
        figure_of(
            "filtered BC, greedy: success",
            mean_over_seeds(outcomes("filtered", BC_GREEDY)),
            seeds,
            most=0.1,
        ),
        figure_of(
            "behaviour head of the Q-SFT network, greedy: success",
            mean_over_seeds(outcomes("qsft", BC_GREEDY)),
            seeds,
        ),
        figure_of(
            f"BC trained alone, temperature {best.temperature:g}: success",
            mean_over_seeds(outcomes("bc", bc_alike)),
            seeds,
        ),
        figure_of(
            f"Q-SFT, beta {best.beta:g}, greedy: success",
            mean_over_seeds(outcomes("qsft", greedy)),
            seeds,
        ),
        figure_of(
            f"Q-SFT, beta {best.beta:g}, sampled: success",
            mean_over_seeds(outcomes("qsft", sampled)),
            seeds,
        ),
    ]
    return 0 if publish("stitch_images", figures, {"steps": base.steps}, quick=quick) else 1


if __name__ == "__main__":
    sys.exit(main())
