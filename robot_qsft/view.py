"""One episode in the Rerun viewer, with what a trained policy thinks of it.

Shape legend: T steps, X curves.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import ACTION, REWARD, STATE
from robot_qsft.datasets.field_map import FieldMap
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.labels import Labels, apply_labels, labels_path
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.set_checks import Roles
from robot_qsft.datasets.source import EpisodeSource, Recording
from robot_qsft.datasets.suggest_map import suggest

if TYPE_CHECKING:
    from robot_qsft.readings import Readings

_JPEG_QUALITY = 90
_MOST_CURVES = 256
"""Entries of a column that is still shown as curves; a depth picture has more."""

Curves = tuple[tuple[str, ...], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Shown:
    """What of an episode is shown.

    Attributes:
        about: it, in a few lines of Markdown.
        steps: rows of the source, int64 (T,).
        fps: of these rows; None where nobody tells.
        curves: role ("state", "action", "reward", "success") or name of a column to the names of
            its curves (X) and their values (T, X).
        cameras: names.
        frames: reads those of a camera, T in all.
    """

    about: str
    steps: NDArray[np.int64]
    fps: float | None
    curves: Mapping[str, Curves]
    cameras: tuple[str, ...]
    frames: Callable[[str], Iterator[Image]]


def view_episode(
    source: EpisodeSource,
    episode: int,
    *,
    field_map: FieldMap | None = None,
    checkpoint: Path | None = None,
    labels: Path | None = None,
    save: Path | None = None,
    spawn: bool = True,
) -> None:
    """Show images, state, action, reward and success of an episode over time.

    Args:
        source: of the demonstrations.
        episode: its index.
        field_map: to show the episode as training sees it; None for everything as recorded.
        checkpoint: of a policy (or a run, whose last one counts), to show its values as well.
        labels: sidecar of outcomes; None for the one beside the source, if there is any.
        save: recording file (.rrd) to write; the viewer stays closed then.
        spawn: whether to open the viewer where nothing is saved.

    Raises:
        ValueError: when Rerun is not installed, there is no such episode, it is damaged, the
            checkpoint does not fit it, or the recording can go nowhere.
    """
    rerun = _import_rerun()
    if save is not None and (save.suffix != ".rrd" or not save.parent.is_dir()):
        raise ValueError(
            f"expected a recording file such as episode.rrd in a folder that is there, but "
            f"{save} came; choose another --save"
        )
    if save is None and not spawn:
        raise ValueError("the recording goes nowhere; name a file to --save, or open the viewer")
    if not 0 <= episode < len(source):
        raise ValueError(
            f"episode {episode} asked for, but {source.path} has {len(source)}, counted from 0; "
            "choose one of these"
        )
    recording = source.recording(episode)
    evidence = _evidence(source, episode, recording, field_map, labels)
    shown = (
        _as_recorded(source, episode, recording, evidence)
        if field_map is None
        else _as_mapped(MappedSource(source, field_map), episode, recording, evidence)
    )
    readings = None
    if checkpoint is not None:
        # Only here is PyTorch needed, which takes seconds to load.
        from robot_qsft.readings import read_values

        mapped = MappedSource(source, field_map or suggest(source))
        whole = mapped.episode(recording, evidence)
        readings = (whole.steps, read_values(checkpoint, mapped, episode, whole))
    stream = rerun.RecordingStream("robot-qsft")
    blueprint = _blueprint(shown, readings is not None)
    if save is None:
        _open_viewer(rerun, stream, blueprint)
        _log(rerun, stream, shown, readings)
        stream.flush()
        return
    partial = save.with_name(f".{os.getpid()}.{save.name}")
    try:
        try:
            stream.save(partial, default_blueprint=blueprint)
        except RuntimeError as error:
            raise ValueError(f"{save} cannot be written ({_first_line(error)})") from error
        _log(rerun, stream, shown, readings)
        stream.flush()
        stream.disconnect()
        partial.rename(save)
    finally:
        stream.disconnect()
        partial.unlink(missing_ok=True)


def _import_rerun() -> Any:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise ValueError(
            "viewing needs the package 'rerun-sdk', which is not installed; "
            "pip install 'robot-qsft[view]'"
        ) from error
    return rerun


def _evidence(
    source: EpisodeSource,
    episode: int,
    recording: Recording,
    field_map: FieldMap | None,
    labels: Path | None,
) -> Evidence:
    """How the episode ended, by its label or else by its own record."""
    evidence = recording.evidence
    if field_map is not None:
        evidence = MappedSource(source, field_map).evidence(recording)
    label = Labels.read(labels or labels_path(source.path), episodes=len(source)).get(episode)
    if label is not None:
        (evidence,) = apply_labels(
            [evidence], {0: label}, names=[recording.name], lengths=[len(recording)]
        )
    elif evidence.success is None and field_map is not None and field_map.assume is not None:
        return Evidence("assumed", field_map.assume == "success")
    return evidence


def _about(source: EpisodeSource, episode: int, recording: Recording, evidence: Evidence) -> str:
    outcome = {True: "success", False: "no success", None: "unknown"}[evidence.success]
    return "\n".join(
        (
            f"**{source.path.name}**, episode {episode} ({recording.name}), {source.info.format}",
            "",
            f"- {len(recording)} steps",
            f"- instruction: {recording.instruction or 'none'}",
            f"- outcome: {outcome} (by {evidence.source})",
        )
    )


def _success(evidence: Evidence, rows: int) -> dict[str, Curves]:
    """0 before the first success and 1 from there; nothing where the outcome is unknown."""
    if evidence.success is None:
        return {}
    solved = np.zeros((rows, 1))
    if evidence.success:
        solved[rows - 1 if evidence.frame is None else evidence.frame :] = 1
    return {"success": (("",), solved)}


def _as_recorded(
    source: EpisodeSource, episode: int, recording: Recording, evidence: Evidence
) -> Shown:
    """Every column of numbers at every row."""
    roles = Roles(source, None)
    actions, states = roles.vectors(recording)
    curves: dict[str, Curves] = {}
    taken = {part.column for part in (*roles.actions, *roles.states)}
    for role, names, values in (
        ("state", roles.state_names, states),
        ("action", roles.action_names, actions),
    ):
        if names:
            curves[role] = (names, values)
    for name, column in recording.columns.items():
        flat = column.reshape(len(recording), -1)
        if name in roles.rewards[:1]:
            curves["reward"] = (("",), flat)
        elif name not in taken and column.dtype != object and flat.shape[1] <= _MOST_CURVES:
            own = source.info.columns[name].names
            entries = own if len(own) == flat.shape[1] else map(str, range(flat.shape[1]))
            curves[name] = (("",) if flat.shape[1] == 1 else tuple(entries), flat)
    return Shown(
        about=_about(source, episode, recording, evidence),
        steps=np.arange(len(recording)),
        fps=source.info.fps,
        curves=curves | _success(evidence, len(recording)),
        cameras=tuple(source.info.cameras),
        frames=lambda camera: source.frames(episode, camera),
    )


def _as_mapped(
    mapped: MappedSource, episode: int, recording: Recording, evidence: Evidence
) -> Shown:
    """State, action, reward and success, at the rows that training sees."""
    seen = mapped.episode(recording, evidence)
    curves: dict[str, Curves] = {}
    for role, name in (("state", STATE), ("action", ACTION)):
        if name in seen.columns:
            curves[role] = (mapped.columns[name].names, seen.columns[name])
    curves["reward"] = (("",), seen.columns[REWARD].reshape(-1, 1))
    return Shown(
        about=_about(mapped.source, episode, recording, evidence),
        steps=seen.steps,
        fps=mapped.field_map.fps or mapped.source.info.fps,
        curves=curves | _success(seen.evidence, len(seen)),
        cameras=tuple(mapped.cameras),
        frames=lambda camera: mapped.frames(episode, camera, seen.steps),
    )


def _open_viewer(rerun: Any, stream: Any, blueprint: Any) -> None:
    # Beside the interpreter first: an environment's programs need not be on the path.
    beside = str(Path(sysconfig.get_path("scripts")))
    path = shutil.which("rerun", path=beside) or shutil.which("rerun")
    try:
        rerun.spawn(executable_path=path, recording=stream, default_blueprint=blueprint)
    except RuntimeError as error:
        raise ValueError(
            f"the Rerun viewer cannot be opened ({_first_line(error)}); write a file with --save"
        ) from error


def _log(
    rerun: Any,
    stream: Any,
    shown: Shown,
    readings: "tuple[NDArray[np.int64], Readings] | None",
) -> None:
    def send(entity: str, steps: NDArray[np.int64], columns: Any) -> None:
        indexes = [rerun.TimeColumn("step", sequence=steps)]
        if shown.fps is not None:
            indexes.append(rerun.TimeColumn("time", duration=steps / shown.fps))
        rerun.send_columns(entity, indexes=indexes, columns=columns, recording=stream)

    def send_curve(entity: str, steps: NDArray[np.int64], values: NDArray[Any]) -> None:
        send(entity, steps, rerun.Scalars.columns(scalars=values.astype(np.float64)))

    markdown = rerun.TextDocument(shown.about, media_type=rerun.MediaType.MARKDOWN)
    stream.log("about", markdown, static=True)
    for role, (names, values) in shown.curves.items():
        for name, column in zip(names, values.T, strict=True):
            send_curve(_entity(rerun, *role.split("/"), name), shown.steps, column)
    if readings is not None:
        steps, read = readings
        for name, reading in (
            ("value/action", read.action_values),
            ("value/state", read.state_values),
            ("behaviour_log_likelihood", read.behaviour_log_likelihoods),
        ):
            if reading is not None:
                send_curve(name, steps, reading)
    for camera in shown.cameras:
        entity = _entity(rerun, "cameras", camera)
        images = shown.frames(camera)
        for row, step in enumerate(shown.steps.tolist()):
            image = next(images, None)
            if image is None:
                raise ValueError(
                    f"camera {camera!r} has no frame at step {step}; drop or mend the episode"
                )
            encoded = rerun.EncodedImage.columns(blob=[_jpeg(image)], media_type=["image/jpeg"])
            send(entity, shown.steps[row : row + 1], encoded)


def _jpeg(image: Image) -> bytes:
    written, content = cv2.imencode(
        ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    assert written
    return content.tobytes()


def _blueprint(shown: Shown, has_readings: bool) -> Any:
    """Cameras on top, curves below."""
    import rerun as rr
    import rerun.blueprint as rrb

    cameras = [
        rrb.Spatial2DView(origin=_entity(rr, "cameras", camera), name=camera)
        for camera in shown.cameras
    ]
    roles = [role for role in ("state", "action", "reward", "success") if role in shown.curves]
    if has_readings:
        roles += ["value", "behaviour_log_likelihood"]
    curves = [rrb.TimeSeriesView(origin=f"/{role}", name=role.replace("_", " ")) for role in roles]
    about = rrb.TextDocumentView(origin="/about", name="about")
    return rrb.Blueprint(
        rrb.Vertical(rrb.Horizontal(*cameras, about), rrb.Grid(*curves), row_shares=[1, 1]),
        rrb.TimePanel(timeline="step"),
        collapse_panels=True,
    )


def _entity(rerun: Any, *parts: str) -> str:
    path: str = rerun.new_entity_path([part for part in parts if part])
    return path


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].strip()
