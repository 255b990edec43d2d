"""Predicted value against the return that followed, over on-policy episodes held out of training.

Takes the Q-SFT runs of `stitch_state.py` (training them where they are not there) and tries them
on start states of their own. Also writes the reliability curve, `value_calibration.png`.
"""

import sys
from dataclasses import asdict, replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from learning import Run, figure_of, run_all, stitch_setup
from report import RESULTS, publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.calibration import Calibration, calibration
from robot_qsft.evaluate import Evaluation, EvaluationConfig
from robot_qsft.policies.token_policy import DecodingConfig

FIRST_SEED = 20_000_000
BETAS = (2.0, 8.0, 16.0)
BINS = 10


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    seeds = (0,) if quick else (0, 1, 2)
    base = recipes.state()
    if quick:
        base = replace(base, steps=300, validate_every=300)
    setup = stitch_setup(
        "stitch_state_quick" if quick else "stitch_state",
        (),
        episodes=200 if quick else 2400,
        evaluation=EvaluationConfig(episodes=10 if quick else 100, first_seed=FIRST_SEED),
    )
    # Weaker tilts fail more often, so values are tested over a wider range of returns.
    decodings = tuple(DecodingConfig(beta=beta) for beta in BETAS)
    runs = [Run(f"qsft-{seed}", replace(base, seed=seed), decodings) for seed in seeds]
    results = run_all(setup, runs, evaluations="calibration")
    discount = base.objective.discount
    figures, drawn = [], {}
    for decoding in decodings:
        episodes = [episode for run in runs for episode in results[run.name, decoding].episodes]
        measured = calibration(Evaluation(tuple(episodes)), discount)
        drawn[f"beta {decoding.beta:g}"] = measured
        figures.append(
            figure_of(
                f"Spearman of value and return, beta {decoding.beta:g}",
                measured.rank_correlation,
                seeds,
                least=0.6 if decoding == DecodingConfig() else None,
            )
        )
    if not quick:
        _draw(drawn)
    extra = {"decodings": [asdict(decoding) for decoding in decodings]}
    return 0 if publish("value_calibration", figures, extra, quick=quick) else 1


def _draw(measured: dict[str, Calibration]) -> None:
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    edges = np.linspace(0, 1, BINS + 1)
    for name, one in measured.items():
        which = np.clip(np.digitize(one.values, edges) - 1, 0, BINS - 1)
        filled = [index for index in range(BINS) if (which == index).any()]
        predicted = [one.values[which == index].mean() for index in filled]
        reached = [one.returns[which == index].mean() for index in filled]
        axes.plot(predicted, reached, marker="o", label=name)
    axes.set(xlabel="predicted value", ylabel="discounted return that followed", aspect="equal")
    axes.legend()
    figure.savefig(RESULTS / "value_calibration.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
