"""Arrows between folders run down only (docs/design: data is the ground, the method the roof)."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "robot_qsft": {"robot_qsft", "policies", "sim", "hardware", "datasets"},
    "policies": {"policies", "datasets"},
    "sim": {"sim", "datasets"},
    "hardware": {"hardware", "datasets"},
    "datasets": {"datasets"},
}
"""Which rooms a file of each room may import from."""


def modules() -> list[Path]:
    return sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported_names(source: str, package: str) -> Iterator[str]:
    """Absolute names of everything that a module of `package` imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room that an absolute name lies in; None for other people's packages."""
    first, *rest = name.split(".")
    if first != "robot_qsft":
        return None
    return rest[0] if rest and rest[0] in MAY_IMPORT else "robot_qsft"


def forbidden(source: str, *, room: str, package: str) -> list[str]:
    """Imports that point upwards or sideways, or that reach a room other than by robot_qsft."""
    return [
        name
        for name in imported_names(source, package)
        if room_of(name) not in {None, *MAY_IMPORT[room]}
        or name.split(".")[0] in MAY_IMPORT.keys() - {"robot_qsft"}
    ]


def package_of(path: Path) -> str:
    """Import name of the package that a file of the checkout stands in."""
    folders = path.relative_to(ROOT).parent.parts
    return ".".join(folders if folders[0] == "robot_qsft" else ("robot_qsft", *folders))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert forbidden(path.read_text(), room=room, package=package_of(path)) == []


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("datasets", "import robot_qsft.policies.values"),
        ("datasets", "from robot_qsft import objective"),
        ("datasets", "from .. import sim"),
        ("policies", "from robot_qsft.sim.environment import make_environment"),
        ("policies", "from robot_qsft import hardware"),
        ("policies", "from robot_qsft.objective import reject_loss"),
        ("sim", "def f():\n    import robot_qsft.policies"),
        ("hardware", "from ..sim import environment"),
        ("robot_qsft", "from policies import values"),
        ("sim", "import datasets"),
    ],
)
def test_forbidden_import_is_found(room: str, statement: str) -> None:
    package = room if room == "robot_qsft" else f"robot_qsft.{room}"
    assert forbidden(statement, room=room, package=package) != []


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("policies", "from robot_qsft.datasets.interface import Vector"),
        ("sim", "from .rollouts import run_attempt"),
        ("hardware", "from ..datasets import interface"),
        ("robot_qsft", "from robot_qsft.sim.environment import make_environment"),
        ("robot_qsft", "from robot_qsft import recipes"),
        ("datasets", "import numpy"),
    ],
)
def test_allowed_import_is_let_through(room: str, statement: str) -> None:
    package = room if room == "robot_qsft" else f"robot_qsft.{room}"
    assert forbidden(statement, room=room, package=package) == []


def test_every_room_was_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(MAY_IMPORT)


def test_datasets_has_no_init() -> None:
    """With one, our folder would shadow Hugging Face's package of that name."""
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_every_folder_with_modules_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {package_of(path) for path in modules()}
    assert set(settings["packages"]) == folders
    for room in MAY_IMPORT.keys() - {"robot_qsft"}:
        assert settings["package-dir"][f"robot_qsft.{room}"] == room


def test_tests_are_flat() -> None:
    """pytest runs with --import-mode=importlib and test files without a package."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
