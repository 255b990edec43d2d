"""Figures that a benchmark measured: a table for the eye, a JSON file for the record."""

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robot_qsft.json_file import write_json
from robot_qsft.machine import commit, processor, versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        figure: what was measured, with its unit.
        value: the estimate.
        low: lower end of its 95% interval.
        high: upper end.
        n: number of samples behind it (episodes, blocks, steps).
        seeds: the seeds that were used.
        bar: what it has to reach, such as "≥ 250"; "" where it is for information.
        ok: whether `value` reaches the bar; None without one.
    """

    figure: str
    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    bar: str = ""
    ok: bool | None = None


def at_least(bar: float, **parts: Any) -> Figure:
    """A figure that has to be `bar` or more; `parts` are its other fields."""
    return Figure(**parts, bar=f"≥ {bar:g}", ok=bool(parts["value"] >= bar))


def at_most(bar: float, **parts: Any) -> Figure:
    """A figure that has to be `bar` or less; `parts` are its other fields."""
    return Figure(**parts, bar=f"≤ {bar:g}", ok=bool(parts["value"] <= bar))


def mean_interval(samples: Sequence[float], *, draws: int = 4000) -> tuple[float, float, float]:
    """Mean of independent samples and its 95% interval by percentile bootstrap."""
    values = np.asarray(samples, np.float64)
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def quick_from_command_line(description: str) -> bool:
    """Read `--quick`, which every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute, wider intervals")
    return bool(parser.parse_args().quick)


def publish(
    name: str,
    figures: Sequence[Figure],
    extra: dict[str, Any] | None = None,
    *,
    quick: bool = False,
) -> bool:
    """Print the figures and write `benchmarks/results/NAME.json`; whether all bars are met.

    Args:
        name: of the benchmark.
        figures: what it measured.
        extra: more that belongs in the file, such as curves.
        quick: rough figures, which are printed but not recorded.
    """
    table = Table("figure", "value", "95% interval", "n", "bar", "", title=name)
    for figure in figures:
        mark = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[figure.ok]
        interval = f"{figure.low:.4g} … {figure.high:.4g}"
        row = (figure.figure, f"{figure.value:.4g}", interval, str(figure.n), figure.bar, mark)
        table.add_row(*row)
    Console().print(table)
    if not quick:
        record = {
            "machine": _machine(),
            "versions": versions(),
            "commit": commit(),
            "figures": [asdict(figure) for figure in figures],
            **(extra or {}),
        }
        write_json(RESULTS / f"{name}.json", record)
    return all(figure.ok is not False for figure in figures)


def _machine() -> dict[str, Any]:
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
