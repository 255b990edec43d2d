"""What of this machine works, and how to mend what does not."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import torch
from rich.markup import escape
from rich.table import Table

from robot_qsft.console import console
from robot_qsft.precision import cpu_has_amx

_PYTHON = (3, 11)
_PACKAGES = ("torch", "numpy", "pybullet", "gymnasium", "av", "opencv-python-headless", "pyarrow")
_CODECS: tuple[tuple[str, Literal["r", "w"], bool, str], ...] = (
    ("libx264", "w", True, "writes the films of a report"),
    ("h264", "r", True, "reads H.264 data sets"),
    ("libsvtav1", "w", False, "writes AV1 data sets; without it they are H.264"),
    ("libdav1d", "r", False, "reads AV1 data sets, LeRobot's default"),
)
_MEMORY_GB = 4.0
_DISK_GIB = 2.0
_SHARED_MEMORY_GIB = 0.25
_RENDERER_TIMEOUT_S = 60

# Runs in a process of its own: a broken graphics driver may end it, and prints what it likes.
# EGL names its renderer only while it is loaded.
_RENDER = """
import importlib.util, os, sys
renderer = sys.argv[1]
if renderer == "robosuite":
    from robot_qsft.sim.robosuite.config import RobosuiteConfig
    from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment
    environment = RobosuiteEnvironment(RobosuiteConfig(image_size=64))
    image = environment.reset(seed=0)[0]["images"]["agentview"]
    assert image.std() > 1, "the image is blank"
    print("GL_RENDERER=" + os.environ["MUJOCO_GL"])
    print("DRAWN", flush=True)
    raise SystemExit
if renderer == "egl":
    import pybullet
    server = pybullet.connect(pybullet.DIRECT)
    plugin = importlib.util.find_spec("eglRenderer").origin
    pybullet.loadPlugin(plugin, "_eglRendererPlugin", physicsClientId=server)
    pybullet.disconnect(server)
from robot_qsft.sim.pybullet.scene import Scene
image = Scene(renderer=renderer, low_poly=True).render("front", 64)
assert image.std() > 1, "the image is blank"
print("DRAWN", flush=True)
"""


_RENDERER_MENDS = {
    "tiny": "reinstall pybullet",
    "egl": "install libegl1 and a graphics driver; renderer 'tiny' works without",
    "robosuite": "pip install 'robot-qsft[robosuite]' for its tasks, apt-get install libegl1",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        what: its name.
        works: whether it does.
        detail: version, name or amount found; what is missing otherwise.
        mend: what to do where it does not work; "" where it does.
        required: whether the main job needs it.
    """

    what: str
    works: bool
    detail: str
    mend: str
    required: bool


def examine() -> list[Finding]:
    """Examine the machine; takes a few seconds, and changes nothing."""
    return [
        _python(),
        *(_package(name) for name in _PACKAGES),
        _renderer("tiny"),
        _renderer("egl"),
        _renderer("robosuite"),
        _bfloat16(),
        _gpu(),
        *(_codec(name, mode, needed, use) for name, mode, needed, use in _CODECS),
        _program("ffmpeg", "looks into videos by hand"),
        _program("chromium", "opens the report in the tests"),
        _cores(),
        _memory(),
        _disk("disk here", Path.cwd(), _DISK_GIB, required=True),
        _disk("/dev/shm", Path("/dev/shm"), _SHARED_MEMORY_GIB, required=False),
    ]


def print_findings(findings: Sequence[Finding]) -> int:
    """Print a table; the exit status is 1 when something required does not work, else 0."""
    table = Table(title="robot-qsft doctor", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("to mend it", overflow="fold")
    for finding in findings:
        mark = "[green]works[/]"
        if not finding.works:
            mark = "[bold red]missing[/]" if finding.required else "[yellow]absent[/]"
        table.add_row(escape(finding.what), mark, escape(finding.detail), escape(finding.mend))
    console.print(table)
    broken = [finding.what for finding in findings if finding.required and not finding.works]
    if broken:
        console.print(f"[bold red]Required and not working:[/] {escape(', '.join(broken))}")
    else:
        console.print("[green]Everything that the main job needs works.[/]")
    return 1 if broken else 0


def _found(what: str, works: bool, detail: str, mend: str, required: bool) -> Finding:
    return Finding(what, works, detail, "" if works else mend, required)


def _python() -> Finding:
    works = sys.version_info >= _PYTHON
    wanted = ".".join(map(str, _PYTHON))
    return _found("python", works, platform.python_version(), f"install Python {wanted}+", True)


def _package(name: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install {name}", True)
    return Finding(name, True, version, "", True)


def _renderer(renderer: Literal["tiny", "egl", "robosuite"]) -> Finding:
    required = renderer == "tiny"
    mend = _RENDERER_MENDS[renderer]
    try:
        drawn = subprocess.run(
            [sys.executable, "-c", _RENDER, renderer],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RENDERER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        detail = f"drew nothing within {_RENDERER_TIMEOUT_S} s"
        return Finding(f"renderer {renderer}", False, detail, mend, required)
    lines = [line.strip() for line in drawn.stdout.splitlines()]
    works = "DRAWN" in lines
    if works:
        names = [line.removeprefix("GL_RENDERER=") for line in lines if "GL_RENDERER=" in line]
        detail = names[0] if names else "draws on the CPU"
    else:
        errors = drawn.stderr.strip().splitlines()
        detail = errors[-1] if errors else f"crashed with exit status {drawn.returncode}"
    return _found(f"renderer {renderer}", works, detail, mend, required)


def _bfloat16() -> Finding:
    works = cpu_has_amx()
    detail = "AMX" if works else "no AMX known; float32 is used"
    mend = "a CPU with AMX trains several times as fast"
    return _found("bfloat16 on the CPU", works, detail, mend, False)


def _gpu() -> Finding:
    works = torch.cuda.is_available()
    if not works:
        mend = "none needed for the demo; a CUDA build of torch where there is a GPU"
        return Finding("GPU", False, "none that torch can use", mend, False)
    free, total = torch.cuda.mem_get_info()
    detail = f"{torch.cuda.get_device_name()}, {_gib(free)} of {_gib(total)} GiB free"
    return Finding("GPU", True, detail, "", False)


def _codec(name: str, mode: Literal["r", "w"], required: bool, use: str) -> Finding:
    what = f"{name} {'encoder' if mode == 'w' else 'decoder'}"
    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        mend = "install the `av` wheel from PyPI"
        return Finding(what, False, f"not in this PyAV; {use}", mend, required)
    return Finding(what, True, use, "", required)


def _program(name: str, use: str) -> Finding:
    path = shutil.which(name)
    return _found(name, path is not None, path or f"not found; {use}", f"install {name}", False)


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return _found("CPU cores", usable >= 2, f"{usable}", "the demo takes longer on one core", False)


def _memory() -> Finding:
    if not hasattr(os, "sysconf"):
        return Finding("memory", True, "unknown on this system", "", True)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Where a container sets a lower limit, that counts.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
    mend = f"the demo needs {_MEMORY_GB:.0f} GB"
    return _found("memory", total >= _MEMORY_GB * 1e9, f"{_gib(total)} GiB", mend, True)


def _disk(what: str, folder: Path, wanted_gib: float, *, required: bool) -> Finding:
    if not folder.is_dir():
        return Finding(what, False, "not there", "mount it (Linux only)", required)
    free = shutil.disk_usage(folder).free
    mend = f"free at least {wanted_gib:g} GiB"
    return _found(what, free >= wanted_gib * 2**30, f"{_gib(free)} GiB free", mend, required)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"
