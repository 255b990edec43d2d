"""Stitch data from low-dimensional state: Q-SFT, BC and filtered BC, and what success depends on.

Three training seeds over 100 start states each; the curves vary one thing at a time with one seed.
"""

import sys
from dataclasses import replace

import numpy as np
from learning import Run, figure_of, mean_over_seeds, run_all, stitch_setup, successes
from numpy.typing import NDArray
from report import publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.evaluate import EvaluationConfig
from robot_qsft.policies.token_policy import BC_GREEDY, BC_SAMPLED, DecodingConfig
from robot_qsft.train import TrainConfig

BETAS = (2.0, 4.0, 8.0, 16.0, 32.0)
BINS = (12, 48)
STEPS = (1, 10)
EPISODES = (300, 1200)


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    seeds = (0,) if quick else (0, 1, 2)
    base = recipes.state()
    if quick:
        base = replace(base, steps=200, validate_every=200)
    setup = stitch_setup(
        "stitch_state_quick" if quick else "stitch_state",
        (),
        episodes=150 if quick else 2400,
        evaluation=EvaluationConfig(episodes=6 if quick else 100),
    )
    best = DecodingConfig()
    tilted = tuple(replace(best, beta=beta) for beta in (BETAS[:1] if quick else BETAS))
    greedy, sampled = replace(best, temperature=0.0), replace(best, temperature=1.0)
    bc_alike = replace(best, beta=0.0)
    runs = []
    for seed in seeds:
        seeded = replace(base, seed=seed)
        runs += [
            Run(f"qsft-{seed}", seeded, (BC_GREEDY, best, greedy, sampled, *tilted)),
            Run(f"bc-{seed}", recipes.bc(seeded), (BC_GREEDY, bc_alike, BC_SAMPLED)),
            Run(f"filtered-{seed}", recipes.filtered_bc(seeded), (BC_GREEDY,)),
        ]
        if not quick:
            runs.append(Run(f"long-{seed}", replace(seeded, steps=2 * base.steps), (best,)))
    curves = [] if quick else _curves(base, best)
    results = run_all(setup, runs + curves)

    def outcomes(method: str, decoding: DecodingConfig) -> NDArray[np.float64]:
        return successes(results, [f"{method}-{seed}" for seed in seeds], decoding)

    qsft, bc = outcomes("qsft", best), outcomes("bc", BC_GREEDY)
    rows = [
        (f"Q-SFT, beta {best.beta:g}, greedy", "qsft", greedy),
        (f"Q-SFT, beta {best.beta:g}, sampled", "qsft", sampled),
        ("BC trained alone, greedy", "bc", BC_GREEDY),
        (f"BC trained alone, temperature {best.temperature:g}", "bc", bc_alike),
        ("BC trained alone, sampled", "bc", BC_SAMPLED),
        ("behaviour head of the Q-SFT network, greedy", "qsft", BC_GREEDY),
        ("filtered BC, greedy", "filtered", BC_GREEDY),
        *((f"Q-SFT over beta: {one.beta:g}", "qsft", one) for one in tilted),
    ]
    figures = [
        figure_of(
            f"Q-SFT, beta {best.beta:g}, temperature {best.temperature:g}: success",
            mean_over_seeds(qsft),
            seeds,
            least=0.9,
        ),
        figure_of("Q-SFT − BC(greedy), paired", mean_over_seeds(qsft - bc), seeds),
        *(
            figure_of(f"{name}: success", mean_over_seeds(outcomes(method, decoding)), seeds)
            for name, method, decoding in rows
        ),
    ]
    if not quick:
        twice = outcomes("long", best)
        figures += [
            figure_of("Q-SFT trained twice as long: success", mean_over_seeds(twice), seeds),
            figure_of(
                "change when trained twice as long, paired",
                mean_over_seeds(twice - qsft),
                seeds,
                least=-0.05,
            ),
        ]
    figures += [
        figure_of(
            f"Q-SFT over {run.name.replace('-', ': ')}: success",
            results[run.name, best].rate(),
            (base.seed,),
        )
        for run in curves
    ]
    return 0 if publish("stitch_state", figures, {"steps": base.steps}, quick=quick) else 1


def _curves(base: TrainConfig, best: DecodingConfig) -> list[Run]:
    """One seed each; the middle of every curve is the run `qsft-0`."""
    runs = [
        Run(f"K-{k}", replace(base, tokenizer=replace(base.tokenizer, bins=k)), (best,))
        for k in BINS
    ]
    runs += [
        Run(f"n-{n}", replace(base, objective=replace(base.objective, steps=n)), (best,))
        for n in STEPS
    ]
    return runs + [Run(f"episodes-{count}", base, (best,), count) for count in EPISODES]


if __name__ == "__main__":
    sys.exit(main())
