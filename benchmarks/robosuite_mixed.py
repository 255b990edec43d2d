"""Mixed-quality demonstrations of robosuite's Lift and Can: Q-SFT, BC and filtered BC.

40% of the demonstrations do it right; the others close the gripper too high or, with the can, let
go of it over the wrong compartment. Three training seeds over 100 start states each, all methods on
the same data, seeds and budget, last checkpoints. `--images` is the longer benchmark: from two
84x84 cameras and proprioception instead of the simulator's truth.
"""

import argparse
import sys
from dataclasses import replace

import numpy as np
from learning import ROOT, Run, Setup, figure_of, mean_over_seeds, run_all, successes
from numpy.typing import NDArray
from report import Figure, publish

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig
from robot_qsft.evaluate import EvaluationConfig
from robot_qsft.policies.token_policy import BC_GREEDY, DecodingConfig
from robot_qsft.sim.robosuite.config import RobosuiteConfig, Task
from robot_qsft.train import TrainConfig

MAX_STEPS: dict[Task, int] = {"Lift": 80, "Can": 200}
STEPS: dict[Task, int] = {"Lift": 1500, "Can": 5000}
"""Of training."""
CAMERAS = ("agentview", "wrist")
BEST = DecodingConfig()
DECODINGS = {
    "qsft": (BEST, replace(BEST, temperature=0.0), BC_GREEDY),
    "bc": (BC_GREEDY, replace(BEST, beta=0.0)),
    "filtered": (BC_GREEDY,),
}


def main() -> int:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, wider intervals")
    parser.add_argument("--images", action="store_true", help="from cameras; hours")
    options = parser.parse_args()
    seeds = (0,) if options.quick else (0, 1, 2)
    name = "robosuite_mixed_images" if options.images else "robosuite_mixed"
    figures = []
    for task in ("Lift",) if options.quick else MAX_STEPS:
        environment = RobosuiteConfig(
            task,
            cameras=CAMERAS if options.images else (),
            max_steps=20 if options.quick else MAX_STEPS[task],
        )
        episodes = 12 if options.quick else _EPISODES
        setup = Setup(
            ROOT / (f"{name}_quick" if options.quick else name) / task,
            CollectConfig("mixed", episodes=episodes, environment=environment),
            EvaluationConfig(episodes=3 if options.quick else 100),
        )
        base = _training(images=options.images)
        base = replace(base, steps=30 if options.quick else STEPS[task])
        figures += _measure(task, setup, base, seeds, least=None if options.images else 0.2)
    extra = {"steps": STEPS, "episodes": _EPISODES}
    return 0 if publish(name, figures, extra, quick=options.quick) else 1


_EPISODES = 1200


def _training(*, images: bool) -> TrainConfig:
    """The recipe, for episodes of 30 to 200 steps at 20 Hz in a workspace of a metre.

    Noise of 0.1 standard deviations would blur the can's place by 2 cm.
    """
    base = recipes.images() if images else recipes.state()
    return replace(
        base,
        objective=replace(base.objective, discount=0.99, steps=10),
        network=replace(base.network, state_noise=0.03),
    )


def _measure(
    task: Task, setup: Setup, base: TrainConfig, seeds: tuple[int, ...], *, least: float | None
) -> list[Figure]:
    """Train and evaluate every method on one task."""
    runs = []
    for seed in seeds:
        seeded = replace(base, seed=seed)
        configs = {
            "qsft": seeded,
            "bc": recipes.bc(seeded),
            "filtered": recipes.filtered_bc(seeded),
        }
        runs += [
            Run(f"{method}-{seed}", config, DECODINGS[method]) for method, config in configs.items()
        ]
    results = run_all(setup, runs)

    def outcomes(method: str, decoding: DecodingConfig) -> NDArray[np.float64]:
        return successes(results, [f"{method}-{seed}" for seed in seeds], decoding)

    qsft, bc = outcomes("qsft", BEST), outcomes("bc", BC_GREEDY)
    filtered = outcomes("filtered", BC_GREEDY)
    difference = figure_of(
        f"{task}: Q-SFT − BC(greedy), paired", mean_over_seeds(qsft - bc), seeds, least=least
    )
    if difference.ok is not None:
        difference = replace(
            difference,
            bar=f"{difference.bar}, interval excludes 0",
            ok=difference.ok and difference.low > 0,
        )
    rows = [
        (f"Q-SFT, beta {BEST.beta:g}, temperature {BEST.temperature:g}: success", qsft),
        ("BC trained alone, greedy: success", bc),
        ("filtered BC, greedy: success", filtered),
        ("Q-SFT − filtered BC(greedy), paired", qsft - filtered),
        (f"Q-SFT, beta {BEST.beta:g}, greedy: success", outcomes("qsft", DECODINGS["qsft"][1])),
        ("behaviour head of the Q-SFT network, greedy: success", outcomes("qsft", BC_GREEDY)),
        (
            f"BC trained alone, temperature {BEST.temperature:g}: success",
            outcomes("bc", DECODINGS["bc"][1]),
        ),
    ]
    return [
        difference,
        *(figure_of(f"{task}: {name}", mean_over_seeds(one), seeds) for name, one in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
