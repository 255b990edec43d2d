"""Stitch data from low-dimensional state: Q-SFT, BC and filtered BC, and what success depends on.

Three training seeds over 100 start states each; the curves vary one thing at a time with one seed.
"""

import sys
from dataclasses import replace

from report import Figure, at_least, publish, quick_from_command_line
from stitch import BC, BC_SAMPLED, ROOT, Run, Setup, mean_over_seeds, run_all, successes

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig
from robot_qsft.evaluate import EvaluationConfig
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.train import TrainConfig

BETAS = (2.0, 4.0, 8.0, 16.0, 32.0)
BINS = (12, 48)
STEPS = (1, 3, 10)
EPISODES = (300, 600, 1200)


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    seeds = (0,) if quick else (0, 1, 2)
    base = recipes.state()
    if quick:
        base = replace(base, steps=300, validate_every=300)
    setup = Setup(
        ROOT / ("stitch_state_quick" if quick else "stitch_state"),
        CollectConfig(
            "stitch",
            episodes=200 if quick else 2400,
            environment=EnvironmentConfig("Stitch", cameras=()),
        ),
        EvaluationConfig(episodes=10 if quick else 100),
    )
    best = DecodingConfig()
    tilted = tuple(replace(best, beta=beta) for beta in BETAS)
    sampled = replace(best, sample=True)
    runs = []
    for seed in seeds:
        seeded = replace(base, seed=seed)
        runs += [
            Run(f"qsft-{seed}", seeded, (BC, best, sampled, *tilted)),
            Run(f"bc-{seed}", recipes.bc(seeded), (BC, BC_SAMPLED)),
            Run(f"filtered-{seed}", recipes.filtered_bc(seeded), (BC,)),
        ]
        if not quick:
            runs.append(Run(f"long-{seed}", replace(seeded, steps=2 * base.steps), (best,)))
    curves = [] if quick else _curves(base, best)
    results = run_all(setup, runs + curves)

    def of(method: str, decoding: DecodingConfig) -> "Figure":
        estimate = mean_over_seeds(
            successes(results, [f"{method}-{seed}" for seed in seeds], decoding)
        )
        return Figure(
            "",
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.n,
            seeds,
        )

    figures = [
        _named(of("qsft", best), f"Q-SFT, beta {best.beta:g}, greedy", least=0.9),
        _named(of("qsft", sampled), f"Q-SFT, beta {best.beta:g}, sampled"),
        _named(of("bc", BC), "BC trained alone, greedy"),
        _named(of("bc", BC_SAMPLED), "BC trained alone, sampled"),
        _named(of("qsft", BC), "behaviour head of the Q-SFT network, greedy"),
        _named(of("filtered", BC), "filtered BC, greedy"),
    ]
    difference = mean_over_seeds(
        successes(results, [f"qsft-{seed}" for seed in seeds], best)
        - successes(results, [f"bc-{seed}" for seed in seeds], BC)
    )
    figures.append(_of_estimate("Q-SFT − BC(greedy), paired", difference, seeds))
    if not quick:
        loss = mean_over_seeds(
            successes(results, [f"long-{seed}" for seed in seeds], best)
            - successes(results, [f"qsft-{seed}" for seed in seeds], best)
        )
        figures += [
            _named(of("long", best), "Q-SFT trained twice as long"),
            at_least(
                -0.05,
                figure="change when trained twice as long, paired",
                value=loss.value,
                low=loss.low,
                high=loss.high,
                n=loss.n,
                seeds=seeds,
            ),
        ]
    figures += [
        _named(of("qsft", decoding), f"Q-SFT over beta: {decoding.beta:g}") for decoding in tilted
    ]
    for run in curves:
        estimate = results[run.name, best].rate()
        figures.append(_of_estimate(f"Q-SFT over {run.name.replace('-', ': ')}", estimate, (0,)))
    return 0 if publish("stitch_state", figures, {"steps": base.steps, "quick": quick}) else 1


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


def _named(figure: Figure, name: str, least: float | None = None) -> Figure:
    named = replace(figure, figure=f"{name}: success")
    if least is None:
        return named
    return replace(named, bar=f"≥ {least:g}", ok=figure.value >= least)


def _of_estimate(name: str, estimate, seeds: tuple[int, ...]) -> Figure:
    return Figure(name, estimate.value, estimate.low, estimate.high, estimate.n, seeds)


if __name__ == "__main__":
    sys.exit(main())
