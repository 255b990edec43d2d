"""Ingestion over a Ray cluster: the same files, also when a worker dies on the way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.suggest_map import suggest

pytest.importorskip("ray", reason="Ray is not installed")


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.filterwarnings("default")  # Ray's own
def test_result_is_that_of_one_machine_though_a_worker_dies(
    cluster, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path = write_dataset(
        tmp_path / "set",
        actions=[rng.normal(size=(50, 3)) for _ in range(200)],
        successes=[episode % 3 == 0 for episode in range(200)],
    )
    source = open_source(path)
    mapped = MappedSource(source, suggest(source))
    ingest(mapped, tmp_path / "one", IngestConfig(workers=1))
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    dead = []

    def kill_the_second(what: str, done: int, total: int) -> None:
        if what == "frames" and done > total / 3 and not dead:
            cluster.remove_node(second, allow_graceful=False)
            dead.append(second)

    config = IngestConfig(ray=cluster.address)
    ingest(mapped, tmp_path / "ray", config, progress=kill_the_second)
    assert dead, "the second worker was killed midway"
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def test_no_cluster(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", actions=[np.zeros((5, 1))] * 2, successes=[True, False])
    source = open_source(path)
    mapped = MappedSource(source, suggest(source))
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        ingest(mapped, tmp_path / "out", IngestConfig(ray="127.0.0.1:1"))
