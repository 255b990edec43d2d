"""What a result was computed on, and what it took."""

import contextlib
import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path

_PACKAGES = ("robot-qsft", "torch", "numpy", "pybullet", "gymnasium", "opencv-python-headless")
_EXTRAS = ("robosuite", "mujoco")


def versions() -> dict[str, str]:
    """Versions of everything that decides a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    for package in _EXTRAS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout that runs, "-dirty" where files differ; "unknown" elsewhere."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def peak_memory_bytes(workers: int) -> int:
    """Largest resident memory of this process and of `workers` children at once, at most.

    The kernel remembers the peak of this process and that of its largest finished child; the sum
    assumes that all peaks fell together, so it errs on the high side.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if platform.system() == "Darwin" else 1024
    return (own + workers * child) * unit
