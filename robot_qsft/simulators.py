"""The simulators as the command line offers them: `... pybullet --task Lift`."""

from typing import Annotated, TypeAlias

import tyro

from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.robosuite.config import RobosuiteConfig

DEFAULT_ENVIRONMENT = PyBulletConfig("Stitch")

SimulatorChoice: TypeAlias = Annotated[
    Annotated[
        PyBulletConfig,
        tyro.conf.subcommand("pybullet", default=DEFAULT_ENVIRONMENT, prefix_name=False),
    ]
    | Annotated[
        RobosuiteConfig,
        tyro.conf.subcommand("robosuite", default=RobosuiteConfig(), prefix_name=False),
    ],
    tyro.conf.arg(name=""),
]
"""An `EnvironmentConfig`; PyBullet's Stitch where none is named."""
