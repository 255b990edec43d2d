"""A small real data set of each format that is read, for `fuzz_readers.py` and the tests.

They are written by the formats' own libraries where these install (Minari, zarr, our own writer),
else by h5py in the layout that robomimic, robosuite, LIBERO and D4RL write; three are copies of
what lerobot and tensorflow-datasets wrote. What is in them follows from numbers that can be worked
out by hand: the frame of step t of episode e is red above and blue below, with `green(e, T, t)` as
its green.

Shape legend: H height, T steps, W width.
"""

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from small_content import LENGTHS, frames, green, numbers
from small_hdf5_sets import (
    write_d4rl,
    write_d4rl_images,
    write_libero,
    write_robomimic,
    write_robosuite,
)

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.video import VideoWriter, choose_encoder
from robot_qsft.datasets.writer import DatasetWriter

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"


@dataclass(frozen=True)
class SmallSet:
    """How a small data set is made, and what a reader should find in it.

    Attributes:
        name: of the format and its storage.
        write: writes it into an empty folder, and gives the path to open.
        format: what `SourceInfo.format` should say.
        lengths: steps of the episodes.
        outcomes: how they ended, as far as the format's policy lets one know.
        green: of a frame, from episode, length and step; None where that is not known.
        upright: whether frames are red above and blue below; False for fixtures, which are grey.
        packages: that writing it needs.
        checked: endings of the files whose content carries a checksum.
    """

    name: str
    write: Callable[[Path], Path]
    format: str
    lengths: tuple[int, ...] = LENGTHS
    outcomes: tuple[Outcome, ...] = ("success", "failure", "success")
    green: Callable[[int, int, int], int] | None = green
    upright: bool = True
    packages: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()


def _fixture(name: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        if not FIXTURES.is_dir():
            raise FileNotFoundError(f"no shared fixtures at {FIXTURES}")
        return Path(shutil.copytree(FIXTURES / name, folder / name))

    return copy


def _lerobot_v20(folder: Path) -> Path:
    """Version 2.1 with what version 2.0 had in its place."""
    path = _fixture("lerobot_v21")(folder)
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    (path / "meta/episodes_stats.jsonl").unlink()
    (path / "meta/stats.json").write_text("{}")
    return path


def _lerobot_v30(folder: Path) -> Path:
    cameras = {"front": Camera(64, 64, "video"), "wrist": Camera(32, 48, "image")}
    info = DatasetInfo(10, ("x", "y"), ("p", "q", "r"), cameras=cameras, robot_type="panda")
    with DatasetWriter(folder / "set", info=info) as writer:
        for episode, length in enumerate(LENGTHS):
            solved = (np.arange(length) == length - 1) & (episode != 1)
            writer.add_episode(
                Episode(
                    states=numbers(episode, length, 3).astype(np.float32),
                    actions=numbers(episode, length, 2).astype(np.float32),
                    rewards=solved.astype(np.float32),
                    successes=solved,
                    terminated=bool(solved[-1]),
                    truncated=not solved[-1],
                    instruction=f"put {episode % 2} away",
                    images={
                        name: frames(episode, length, height=camera.height, width=camera.width)
                        for name, camera in cameras.items()
                    },
                    environment_states=np.zeros((length, 0), np.float32),
                )
            )
    return folder / "set"


def _minari(storage: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from gymnasium import spaces

        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an author that nobody named
                import minari
                from minari.data_collector import EpisodeBuffer

                buffers = [_buffer(EpisodeBuffer, *one) for one in enumerate(LENGTHS)]
                observation_space = spaces.Dict(
                    {
                        "agent": spaces.Tuple((spaces.Box(-9, 9, (2,)), spaces.Discrete(9))),
                        "image": spaces.Box(0, 255, (32, 48, 3), np.uint8),
                        "mission": spaces.Text(30),
                    }
                )
                minari.create_dataset_from_buffers(
                    "tiny/set-v0",
                    buffers,
                    data_format=storage,
                    observation_space=observation_space,
                    action_space=spaces.Box(-9, 9, (3,)),
                )
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
        return folder / "tiny/set-v0"

    return write


def _buffer(kind: Any, episode: int, length: int) -> Any:
    """One episode as Minari's collector gathers it: with the observation after the last action."""
    solved = episode != 1
    last = np.arange(length) == length - 1
    seen = np.arange(length + 1)
    return kind(
        observations={
            "agent": (numbers(episode, length + 1, 2).astype(np.float32), seen),
            "image": frames(episode, length, height=32, width=48, extra=1),
            "mission": ["fetch it"] * (length + 1),
        },
        actions=numbers(episode, length, 3).astype(np.float32),
        rewards=(last & solved).astype(float).tolist(),
        terminations=(last & solved).tolist(),
        truncations=(last & (not solved)).tolist(),
        infos={"success": (seen == length) & solved},
    )


def _zarr(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import zarr
        import zarr.storage

        path = folder / name
        store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else path
        each = list(enumerate(LENGTHS))
        arrays = {
            "data/action": np.concatenate([numbers(e, n, 2) for e, n in each]).astype(np.float32),
            "data/state": np.concatenate([numbers(e, n, 5) for e, n in each]),
            "data/img": np.concatenate([frames(e, n, height=8, width=10) for e, n in each]),
            "meta/episode_ends": np.cumsum(LENGTHS),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr writes some members of a zip twice
            root = zarr.open_group(store, mode="w", zarr_format=2)
            for key, array in arrays.items():
                chunks = (1, *array.shape[1:]) if array.ndim == 4 else array.shape
                made = root.create_array(
                    key,
                    shape=array.shape,
                    dtype=array.dtype,
                    chunks=chunks,
                    config={"write_empty_chunks": True},
                )
                made[...] = array
            if path.suffix == ".zip":
                root.store.close()
        return path

    return write


def _videos(table: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for episode, length in enumerate(LENGTHS):
            take = folder / f"take_{episode + 1}"
            take.mkdir()
            video = VideoWriter(
                take / "front.mp4", fps=10, height=64, width=64, encoder=choose_encoder()
            )
            video.write(frames(episode, length, height=64, width=64))
            video.close()
            measured = numbers(episode, length, 5).round(3).tolist()
            solved = [int(step == length - 1 and episode != 1) for step in range(length)]
            names = ("state.x", "state.y", "action.x", "action.y", "force", "solved")
            rows = [[*row, flag] for row, flag in zip(measured, solved, strict=True)]
            if table == "csv":
                with (take / "steps.csv").open("w", newline="") as file:
                    csv.writer(file).writerows([names, *rows])
            else:
                steps = [dict(zip(names, row, strict=True)) for row in rows]
                told = {"steps": steps, "success": episode != 1}
                (take / "steps.json").write_text(json.dumps(told))
        mapping = [
            "fps: 10",
            f'table: "{{episode}}/steps.{table}"',
            'cameras: {front: "{episode}/front.mp4"}',
            "instruction: put the cup away",
            *(["success: solved"] if table == "csv" else []),
        ]
        (folder / "episodes.yaml").write_text("\n".join(mapping) + "\n")
        return folder

    return write


_MINARI = ("minari",)
_UNKNOWN: tuple[Outcome, ...] = ("unknown",) * 3


def _lerobot_fixture(name: str, write: Callable[[Path], Path]) -> SmallSet:
    return SmallSet(
        name=name,
        write=write,
        format=name,
        lengths=(12, 13, 14),
        outcomes=("success",) * 3,
        green=lambda episode, length, step: (40 * episode + 5 * step) % 255,
        upright=False,
    )


SMALL_SETS = (
    _lerobot_fixture("LeRobotDataset v2.0", _lerobot_v20),
    _lerobot_fixture("LeRobotDataset v2.1", _fixture("lerobot_v21")),
    _lerobot_fixture("LeRobotDataset v3.0", _fixture("lerobot_v30")),
    SmallSet(
        "LeRobotDataset v3.0, our writer",
        _lerobot_v30,
        "LeRobotDataset v3.0",
        checked=("data/chunk-000/file-000.parquet",),
    ),
    SmallSet("robomimic HDF5", write_robomimic, "robomimic HDF5"),
    SmallSet("robosuite demo.hdf5", write_robosuite, "robosuite demo.hdf5", outcomes=_UNKNOWN),
    SmallSet(
        "LIBERO HDF5",
        write_libero,
        "LIBERO HDF5",
        outcomes=_UNKNOWN,
        # The first action goes, as there is no observation from before it.
        green=lambda episode, length, step: green(episode, length, step + 1),
    ),
    SmallSet("D4RL HDF5", write_d4rl, "D4RL HDF5"),
    SmallSet("D4RL HDF5, images", write_d4rl_images, "D4RL HDF5"),
    *(
        SmallSet(f"Minari, {kind}", _minari(kind), f"Minari ({kind})", packages=_MINARI)
        for kind in ("hdf5", "arrow", "parquet")
    ),
    SmallSet(
        "RLDS / TFDS",
        _fixture("rlds"),
        "RLDS / TFDS",
        lengths=(5, 6, 7, 5),
        outcomes=("success",) * 4,
        green=lambda episode, length, step: 20 * (length - 5) + step,
        upright=False,
        packages=("google.protobuf", "google_crc32c"),
        checked=(".tfrecord-00000-of-00001",),
    ),
    *(
        SmallSet(
            f"diffusion-policy zarr, {kind}",
            _zarr(name),
            "diffusion-policy zarr",
            outcomes=_UNKNOWN,
            packages=("zarr",),
            checked=(".zip",) if kind == "zip" else (),
        )
        for kind, name in (("folder", "set.zarr"), ("zip", "set.zarr.zip"))
    ),
    *(
        SmallSet(f"folder of MP4 + {kind.upper()}", _videos(kind), "folder of videos")
        for kind in ("csv", "json")
    ),
)
