"""Packages that only some formats need."""

from importlib import import_module
from typing import Any


def optional_import(name: str, *, purpose: str) -> Any:
    """Import a package of the extra `formats`.

    Args:
        name: of the module, such as "h5py".
        purpose: what it is needed for, such as "reading HDF5 files".

    Raises:
        ValueError: when it is not installed, saying how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs the package {name!r}, which is not installed; "
            "pip install 'robot-qsft[formats]'"
        ) from error
