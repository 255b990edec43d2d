"""RLDS episodes as TFDS stores them: Open X-Embodiment, DROID, and what people build alike.

One record is one episode. Columns carry the names of `features.json` without `steps/`: `action` or
`action/<part>`, `observation/<k>`, `reward`, `discount`, `is_first`, `is_last`, `is_terminal`;
cameras likewise, `observation/image`.

Last step. By RLDS's specification it has an observation, but no valid action, reward or discount.
Most published sets put a valid action there all the same. So the last step is kept when its action
is finite and not all zero, and left out otherwise; then the step before it takes over its `is_last`
and `is_terminal`.

Outcome. `episode_metadata/success` tells it, and so does a folder `success` or `failure` in
`episode_metadata/file_path`, as DROID has it. A reward of 1 and `is_terminal` on the last step
tell nothing: the usual builder writes both for every episode, failures too.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats import tfds_shards
from robot_qsft.datasets.formats.encoded_image import decode_image, sniff_image
from robot_qsft.datasets.formats.rlds_features import (
    Record,
    StepFeature,
    buffers_of,
    count_steps,
    from_buffer,
    layout_from_json,
    layout_from_record,
    values_of,
)
from robot_qsft.datasets.formats.tf_example import parse_example
from robot_qsft.datasets.formats.tfds_shards import Shard, read_json, read_shards, version_folder
from robot_qsft.datasets.formats.tfrecord import index_records, read_record
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

FREQUENCIES_HZ: Mapping[str, float] = MappingProxyType(
    {
        "austin_buds_dataset_converted_externally_to_rlds": 20.0,
        "austin_sailor_dataset_converted_externally_to_rlds": 20.0,
        "austin_sirius_dataset_converted_externally_to_rlds": 20.0,
        "bc_z": 10.0,
        "berkeley_autolab_ur5": 5.0,
        "berkeley_cable_routing": 10.0,
        "bridge": 5.0,
        "bridge_dataset": 5.0,
        "bridge_orig": 5.0,
        "droid": 15.0,
        "droid_100": 15.0,
        "fractal20220817_data": 3.0,
        "furniture_bench_dataset_converted_externally_to_rlds": 10.0,
        "jaco_play": 10.0,
        "kuka": 10.0,
        "language_table": 10.0,
        "taco_play": 15.0,
        "toto": 30.0,
        "utaustin_mutex": 20.0,
        "viola": 20.0,
    }
)
"""Control steps per second of well-known sets, which do not store it."""
_FEATURES = "features.json"
_SUCCESS = "episode_metadata/success"
_FILE_PATH = "episode_metadata/file_path"
_INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction")
_REWARD = "reward"
_ENDS = ("is_last", "is_terminal")

matches = tfds_shards.matches


class RldsSource:
    """An RLDS data set as an `EpisodeSource`; episodes lie split after split, shard after shard."""

    def __init__(self, path: Path | str) -> None:
        """Open one version; of the records, the lengths of all and the content of the first.

        Args:
            path: folder of the version, or the one above it where it has one version only.

        Raises:
            ValueError: when there is none, its records are in other files than TFRecord, a shard is
                missing or cut off, or the records are no episodes.
        """
        self.path = Path(path)
        self._folder = version_folder(self.path)
        info = read_json(self._folder / tfds_shards.INFO)
        self._shards = [shard for shard in read_shards(self._folder, info) if shard.records]
        places = [_index_of(shard) for shard in self._shards]
        if not places:
            raise ValueError(f"expected episodes in {self._folder}, but it has none; record some")
        self._places = np.concatenate(places)
        """int64 (episodes, 2): first byte and number of bytes of each."""
        self._firsts = np.cumsum([0, *map(len, places)])
        self._latest: tuple[int, Record] | None = None
        first, about = self._record(0), self._about(0)
        features = self._folder / _FEATURES
        self._layout = (
            layout_from_json(read_json(features), file=features)
            if features.is_file()
            else layout_from_record(first, about=about)
        )
        self._features = {feature.name: feature for feature in self._layout.features}
        cameras = {
            feature.name: _camera_of(first, feature, about=about)
            for feature in self._layout.features
            if feature.kind in ("encoded", "pixels")
        }
        name = str(info["name"])
        self.info = SourceInfo(
            format="RLDS / TFDS",
            columns={
                feature.name: Column(feature.dtype, feature.shape)
                for feature in self._layout.features
                if feature.kind in ("number", "text")
            },
            cameras=cameras,
            fps=FREQUENCIES_HZ.get(name),
            splits=self._splits(),
            notes=tuple(self._notes(name, first)),
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._places)

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        check_index(self, index)
        record, about = self._record(index), self._about(index)
        steps = count_steps(record, self._layout, about=about)
        columns = {
            name: values_of(record, self._features[name], steps=steps, about=about)
            for name in self.info.columns
        }
        kept = self._kept_steps(columns, steps)
        if kept < steps:
            columns = {name: _without_last(name, column) for name, column in columns.items()}
        texts = (columns[name][:1] for name in _INSTRUCTIONS if _is_text(self.info, name))
        return Recording(
            name=self._name(index),
            columns=columns,
            instruction=next((str(text[0]) for text in texts if len(text) and text[0]), ""),
            evidence=_evidence_of(record),
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._frames(index, self._features[camera])

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""
        described = [self._folder / name for name in (tfds_shards.INFO, _FEATURES)]
        return tuple(
            sorted(
                [
                    *(file for file in described if file.is_file()),
                    *(shard.path for shard in self._shards),
                ]
            )
        )

    def _frames(self, index: int, feature: StepFeature) -> Iterator[Image]:
        record, about = self._record(index), self._about(index)
        steps = count_steps(record, self._layout, about=about)
        actions = {
            name: values_of(record, self._features[name], steps=steps, about=about)
            for name in self.info.columns
            if _is_action(name)
        }
        kept = self._kept_steps(actions, steps)
        camera = self.info.cameras[feature.name]
        where = f"{feature.key!r} in {about}"
        if feature.kind == "pixels" and feature.encoding == "none":
            yield from values_of(record, feature, steps=steps, about=about)[:kept]
            return
        for content in buffers_of(record, feature, steps=steps, about=where)[:kept]:
            if feature.kind == "pixels":
                yield from_buffer(content, feature, about=where)
            else:
                yield decode_image(content, height=camera.height, width=camera.width, about=where)

    def _kept_steps(self, columns: Mapping[str, NDArray[Any]], steps: int) -> int:
        """How many steps to keep, from the columns of the action: all, or all but the last."""
        actions = [
            column[-1]
            for name, column in columns.items()
            if _is_action(name) and self.info.columns[name].dtype != "string" and steps
        ]
        if not actions:
            return steps
        finite = all(np.isfinite(action).all() for action in actions)
        return steps if finite and any(action.any() for action in actions) else steps - 1

    def _record(self, index: int) -> Record:
        """The lists of an episode; the latest is kept, as its cameras are asked for one by one."""
        if self._latest is None or self._latest[0] != index:
            start, length = self._places[index].tolist()
            about = self._about(index)
            payload = read_record(self._shard(index).path, start=start, length=length, about=about)
            self._latest = index, parse_example(payload, about=about)
        return self._latest[1]

    def _shard_number(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _shard(self, index: int) -> Shard:
        return self._shards[self._shard_number(index)]

    def _about(self, index: int) -> str:
        number = index - int(self._firsts[self._shard_number(index)])
        return f"record {number} of {self._shard(index).path}"

    def _name(self, index: int) -> str:
        split = self._shard(index).split
        return f"{split}/{index - self.info.splits[split][0]}"

    def _splits(self) -> dict[str, tuple[int, ...]]:
        splits: dict[str, list[int]] = {}
        for shard, (first, end) in zip(self._shards, pairwise(self._firsts.tolist()), strict=True):
            splits.setdefault(shard.split, []).extend(range(first, end))
        return {split: tuple(episodes) for split, episodes in splits.items()}

    def _notes(self, name: str, first: Record) -> Iterator[str]:
        if name in FREQUENCIES_HZ:
            yield (
                f"the set does not store its steps per second; {FREQUENCIES_HZ[name]:g} is what "
                f"{name} was published with"
            )
        if not (self._folder / _FEATURES).is_file():
            yield "features.json is missing: shapes and types are those of the first record"
        for one in self._layout.left_out:
            yield f"{one} is neither number, text nor colour image: left out"
        rewards = first.get(f"steps/{_REWARD}")
        if (
            _evidence_of(first) is NO_EVIDENCE
            and isinstance(rewards, np.ndarray)
            and len(rewards)
            and rewards[-1] == 1
        ):
            yield (
                "a reward of 1 on the last step, as in the first episode, is no evidence of "
                "success: the usual builder writes it for every episode; label the episodes"
            )


def _index_of(shard: Shard) -> NDArray[np.int64]:
    if not shard.path.is_file():
        raise ValueError(
            f"expected the shard {shard.path}, which {tfds_shards.INFO} names, but it is missing; "
            "restore it"
        )
    places = index_records(shard.path)
    if len(places) != shard.records:
        raise ValueError(
            f"expected {shard.records} records in {shard.path}, as {tfds_shards.INFO} says, but "
            f"{len(places)} came; restore the file"
        )
    return places


def _camera_of(first: Record, feature: StepFeature, *, about: str) -> Camera:
    """Size and storage of a camera, from the first picture of the first record."""
    if feature.kind == "pixels":
        return Camera(feature.shape[0], feature.shape[1], "image")
    values = first.get(feature.key)
    sniffed = sniff_image(values[0]) if isinstance(values, list) and values else None
    if sniffed is None:
        raise ValueError(
            f"expected PNGs or JPEGs for {feature.key!r} in {about}, but none came; restore the "
            "file or take the camera out of features.json"
        )
    told = feature.shape[:2]
    if 0 not in told and told != (sniffed.height, sniffed.width):
        raise ValueError(
            f"expected frames of {told[0]}x{told[1]} for {feature.key!r} in {about}, but "
            f"{sniffed.height}x{sniffed.width} came; mend features.json"
        )
    return Camera(sniffed.height, sniffed.width, "image" if sniffed.format == "png" else "video")


def _evidence_of(record: Record) -> Evidence:
    flag = record.get(_SUCCESS)
    if isinstance(flag, np.ndarray) and len(flag) == 1 and flag[0] in (0, 1):
        return Evidence(_SUCCESS, bool(flag[0]), certain=True)
    path = record.get(_FILE_PATH)
    if isinstance(path, list) and len(path) == 1:
        folders = set(re.split(r"[/\\]", path[0].decode("utf-8", errors="replace"))[:-1])
        told = {"success", "failure"} & folders
        if len(told) == 1:
            return Evidence(_FILE_PATH, told == {"success"}, certain=True)
    return NO_EVIDENCE


def _is_action(name: str) -> bool:
    return name == "action" or name.startswith("action/")


def _is_text(info: SourceInfo, name: str) -> bool:
    return name in info.columns and info.columns[name].dtype == "string"


def _without_last(name: str, column: NDArray[Any]) -> NDArray[Any]:
    """A column without the step that has no action; how the episode ended moves one step up."""
    if name in _ENDS and len(column) > 1:
        return np.append(column[:-2], column[-1:])
    return column[:-1]
