"""The command line: `robot-qsft COMMAND --help` lists every option with its default."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.table import Table

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig, collect
from robot_qsft.console import Counter, TrainingDisplay, console, progress_bar
from robot_qsft.datasets.batches import TrainingData
from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.split import split_episodes
from robot_qsft.datasets.store import Dataset
from robot_qsft.demo import DemoConfig, run_demo
from robot_qsft.doctor import examine, print_findings
from robot_qsft.evaluate import (
    Evaluation,
    EvaluationConfig,
    PolicyFactory,
    compare,
    evaluate,
    read_evaluation,
)
from robot_qsft.intervals import Estimate
from robot_qsft.policies.checkpoint import read_description
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.train import TrainConfig, train
from robot_qsft.training_state import latest_checkpoint

_RECIPES = {
    "images": recipes.images(),
    "state": recipes.state(),
    "paper-images": recipes.paper(recipes.images()),
    "paper-state": recipes.paper(recipes.state()),
}
