"""Files of robomimic (v0.1 to v0.5) and robosuite's own `demo.hdf5`.

The latter hold no more than simulator states and actions.

Shape legend: T steps.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from robot_qsft.datasets.formats.demos import (
    DemoFile,
    control_frequency_hz,
    kind_of,
    robot_type,
)
from robot_qsft.datasets.formats.hdf5 import has_h5py, is_hdf5
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE, reward_evidence
from robot_qsft.datasets.source import Recording, SourceInfo, check_camera, check_index

REWARDS: Final = "rewards"
UNKNOWN_MASK: Final = "outcome_unknown"
"""Filter key of demos whose outcome nobody knows, though they have rewards of 0."""
_STATES_ONLY = (
    "images, observations and rewards are not in the file: the simulator's replay of its states "
    "regenerates them"
)


def matches(path: Path) -> bool:
    """Whether it is a file of robomimic, or robosuite's `demo.hdf5`.

    Without h5py no HDF5 file can be told from another: all match, and opening says what to install.
    """
    if not has_h5py():
        return is_hdf5(path)
    return kind_of(path) in ("robomimic", "robosuite")


class RobomimicSource:
    """Demos of robomimic or robosuite as an `EpisodeSource`; filter keys are its splits.

    Attributes:
        path: of the file.
        info: what all demos have in common.
        env_args: how to make the environment, as stored, or in these words what robosuite's own
            collector stores; empty where the file does not tell.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a file; of the demos no more than the first one's layout is read.

        Raises:
            ValueError: when it is damaged, or h5py is not installed.
        """
        self.path = Path(path)
        self._file = DemoFile(self.path)
        layout = self._file.layout
        env_args = self._file.data.json("env_args")
        self.env_args: Mapping[str, Any] = env_args or self._of_the_collector()
        env_kwargs = self.env_args.get("env_kwargs")
        seen = layout.cameras or any(name.startswith("obs/") for name in layout.columns)
        notes = layout.notes if seen else (*layout.notes, _STATES_ONLY)
        self.info = SourceInfo(
            format="robomimic HDF5" if seen or env_args is not None else "robosuite demo.hdf5",
            columns=layout.columns,
            cameras=layout.cameras,
            fps=control_frequency_hz(env_kwargs),
            robot_type=robot_type(env_kwargs),
            splits=self._splits(),
            notes=notes,
        )
        self._unknown = frozenset(self.info.splits.get(UNKNOWN_MASK, ()))

    def __len__(self) -> int:
        """Number of demos."""
        return len(self._file.names)

    def recording(self, index: int) -> Recording:
        """One demo without its images; see `EpisodeSource`."""
        check_index(self, index)
        demo, steps = self._file.demo(index)
        columns = self._file.columns(demo, steps)
        about = demo.json("ep_meta") or {}
        language = about.get("lang")
        tells = REWARDS in columns and index not in self._unknown
        return Recording(
            name=self._file.names[index],
            columns=columns,
            instruction=language if isinstance(language, str) else "",
            evidence=reward_evidence(columns[REWARDS], REWARDS) if tells else NO_EVIDENCE,
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera, which are stored upright; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._file.frames(index, camera)

    def model_xml(self, index: int) -> str:
        """The simulator's model of a demo; "" where the file has none."""
        check_index(self, index)
        xml = self._file.demo(index)[0].attribute("model_file")
        return xml if isinstance(xml, str) else ""

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def _of_the_collector(self) -> dict[str, Any]:
        """`env_args` told from what robosuite's own collector stores."""
        env_kwargs, name = self._file.data.json("env_info"), self._file.data.attribute("env")
        if env_kwargs is None:
            return {}
        version = self._file.data.attribute("repository_version")
        return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": env_kwargs}

    def _splits(self) -> dict[str, tuple[int, ...]]:
        if "mask" not in self._file.root:
            return {}
        places = {name: index for index, name in enumerate(self._file.names)}
        splits = {}
        for split, dataset in self._file.root.group("mask").datasets().items():
            names = dataset.text()
            for name in names:
                if name not in places:
                    raise ValueError(
                        f"expected names of demos in mask/{split} of {self.path}, but {name!r} is "
                        "none of them; remove it there or restore the demo"
                    )
            splits[split] = tuple(sorted({places[name] for name in names}))
        return splits
