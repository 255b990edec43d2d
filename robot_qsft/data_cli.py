"""The commands that start without PyTorch: they read demonstrations, or stand beside an arm."""

from typing import TypeAlias

from robot_qsft.data_commands import Export, Ingest, Inspect, Label, Validate, View
from robot_qsft.edit_command import Edit
from robot_qsft.run_command import Run
from robot_qsft.simulate_command import Simulate

DataCommand: TypeAlias = Inspect | Validate | Label | View | Ingest | Edit | Export
BridgeCommand: TypeAlias = Run | Simulate
