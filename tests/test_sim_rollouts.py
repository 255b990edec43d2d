import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from robot_qsft.datasets.interface import ActionChunk
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.recipes import attempts
from robot_qsft.sim.rollouts import Attempt, rollouts

BLIND = PyBulletConfig("Stitch", cameras=(), max_steps=7)


def test_processes_give_bit_for_bit_what_one_process_gives_in_order(parts):
    todo = attempts("stitch", PyBulletConfig("Stitch", image_size=32), episodes=10, seed=2)
    alone = list(rollouts(todo, workers=1))
    together = list(rollouts(todo, workers=2))
    assert [rollout.attempt for rollout in together] == todo
    for one, other in zip(alone, together, strict=True):
        for name, part in parts(one).items():
            np.testing.assert_array_equal(part, parts(other)[name], err_msg=name)
        assert one.episode.demonstrator == other.episode.demonstrator
        assert one.episode.terminated == other.episode.terminated


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_names_seed_and_cause(workers):
    broken = Attempt(BLIND, Script(noise=float("nan")), 77)
    todo = [Attempt(BLIND, Script(), 1), broken, Attempt(BLIND, Script(), 2)]
    results = rollouts(todo, workers=workers)
    assert next(results).attempt.seed == 1
    with pytest.raises(ValueError, match=r"seed 77 in Stitch failed: .*4 finite numbers"):
        next(results)


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 5)])
def test_attempts_are_drawn_only_as_results_are_taken(workers, ahead):
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield Attempt(BLIND, Script(), drawn[-1])

    results = rollouts(endless(), workers=workers)
    assert next(results).attempt.seed == 0
    assert len(drawn) <= ahead
    results.close()


class ThreeAtOnce:
    """Goes up three steps at a time and values each choice by what it has seen."""

    def reset(self, *, seed):
        self.seen = 0

    def act(self, observation):
        self.seen += 1
        actions = np.zeros((3, 4), np.float32)
        actions[:, 2] = [0.1, 0.2, 0.3]
        return ActionChunk(actions, value=self.seen / 10, behaviour_log_probability=-self.seen)


def test_chunks_are_executed_to_their_end():
    (rollout,) = rollouts([Attempt(BLIND, ThreeAtOnce, 0)], workers=1)
    nan = np.nan
    assert rollout.episode.truncated
    np.testing.assert_allclose(rollout.episode.actions[:, 2], [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1])
    np.testing.assert_allclose(rollout.values, [0.1, nan, nan, 0.2, nan, nan, 0.3])
    np.testing.assert_allclose(
        rollout.behaviour_log_probabilities, [-1, nan, nan, -2, nan, nan, -3]
    )


def test_observation_and_action_of_a_row_belong_together():
    (rollout,) = rollouts([Attempt(BLIND, ThreeAtOnce, 0)], workers=1)
    climbed_m = np.diff(rollout.episode.states[:, 2])
    # The hand follows within the step, and the sixth difference belongs to the sixth action.
    np.testing.assert_allclose(climbed_m, 0.045 * rollout.episode.actions[:-1, 2], atol=0.003)


LONG = """
from itertools import count
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.rollouts import Attempt, rollouts
config = PyBulletConfig("Stitch", cameras=())
for rollout in rollouts((Attempt(config, Script(), seed) for seed in count()), workers=2):
    print(rollout.attempt.seed, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_interrupt_ends_the_workers():
    process = subprocess.Popen(
        [sys.executable, "-c", LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "0\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("workers outlived the interrupt")
