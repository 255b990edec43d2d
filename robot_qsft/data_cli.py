"""The commands that only read and write demonstrations, which start without PyTorch."""

from typing import TypeAlias

from robot_qsft.data_commands import Export, Ingest, Inspect, Label, Validate, View
from robot_qsft.edit_command import Edit

DataCommand: TypeAlias = Inspect | Validate | Label | View | Ingest | Edit | Export
