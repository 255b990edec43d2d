"""A small file of robosuite's own collector."""

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KWARGS = {"robots": "Panda", "control_freq": 20}


def collect_by_robosuite(
    folder: Path, actions: Callable[[Any], Iterable[Any]], *, demos: int, seed: int | None = None
) -> Path:
    """What robosuite's own collector and its script leave behind, in whichever order.

    Args:
        folder: where to work.
        actions: called with robosuite's environment at the begin of each demonstration; the
            collector takes one of them as soon as it is given.
        demos: how many demonstrations of Lift.
        seed: of the environment.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that they leave open
        import robosuite
        from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
        from robosuite.wrappers import DataCollectionWrapper

        environment = robosuite.make(
            "Lift",
            **KWARGS,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            seed=seed,
        )
        recorder = DataCollectionWrapper(environment, str(folder / "raw"))
        for _ in range(demos):
            recorder.reset()
            for action in actions(environment):
                recorder.step(action)
                recorder.successful = True  # as where the cube was lifted: others are not kept
        recorder.close()
        (folder / "out").mkdir()
        gather_demonstrations_as_hdf5(str(folder / "raw"), str(folder / "out"), json.dumps(KWARGS))
    return folder / "out/demo.hdf5"
