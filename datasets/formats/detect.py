"""Which format a folder or file is in, told by its content."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robot_qsft.datasets.formats import (
    d4rl,
    diffusion_policy,
    lerobot,
    libero,
    minari,
    rlds,
    robomimic,
    video_folder,
)
from robot_qsft.datasets.formats.hdf5 import is_hdf5, open_hdf5
from robot_qsft.datasets.source import EpisodeSource


@dataclass(frozen=True)
class Format:
    """One way of storing demonstrations.

    Attributes:
        name: for messages.
        matches: whether a path holds this format; looks at names and first bytes only, reads no
            episode and raises nothing.
        open: reads it; raises ValueError in one sentence where it is damaged.
    """

    name: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], EpisodeSource]


FORMATS = (
    Format("LeRobotDataset", lerobot.matches, lerobot.LeRobotSource),
    Format("RLDS / TFDS", rlds.matches, rlds.RldsSource),
    Format("LIBERO HDF5", libero.matches, libero.LiberoSource),
    Format("robomimic HDF5", robomimic.matches, robomimic.RobomimicSource),
    Format("D4RL HDF5", d4rl.matches, d4rl.D4RLSource),
    Format("Minari", minari.matches, minari.MinariSource),
    Format(
        "diffusion-policy zarr", diffusion_policy.matches, diffusion_policy.DiffusionPolicySource
    ),
    Format("folder of videos", video_folder.matches, video_folder.VideoFolderSource),
)
"""In the order that they are tried; at most one matches."""


def open_source(path: Path | str) -> EpisodeSource:
    """Open demonstrations of whichever format.

    Raises:
        ValueError: when nothing is there, no format matches, or the data is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"expected demonstrations at {path}, but nothing is there; mend the path")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty; copy it again from where it came")
    for one in FORMATS:
        if one.matches(path):
            return one.open(path)
    if is_hdf5(path):
        open_hdf5(path).close()  # says what is wrong where no format matches for damage
    raise ValueError(
        f"{path} is in no format that is known here ({', '.join(one.name for one in FORMATS)}); "
        "name the folder or file that holds the demonstrations"
    )
