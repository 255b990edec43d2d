"""The demo in miniature: everything it does, on very little of everything."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from robot_qsft.collect import CollectConfig
from robot_qsft.demo import DemoConfig, run_demo
from robot_qsft.evaluate import EvaluationConfig, compare, read_evaluation
from robot_qsft.sim.pybullet.config import PyBulletConfig

METHODS = ("BC", "BC sampled", "filtered BC", "Q-SFT")


@pytest.fixture(scope="module")
def config(tiny) -> DemoConfig:
    return DemoConfig(
        demonstrations=CollectConfig(
            "stitch", episodes=24, environment=PyBulletConfig("Stitch", cameras=())
        ),
        training=replace(tiny, environment_state=True),
        evaluation=EvaluationConfig(episodes=2, workers=1),
    )


@pytest.fixture(scope="module")
def out(config, tmp_path_factory) -> Path:
    """The folder of a finished demo."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(config, folder)
    return folder


def test_result_tells_every_method_and_the_difference(out):
    result = json.loads((out / "result.json").read_text())
    assert tuple(result["methods"]) == METHODS
    for name, method in result["methods"].items():
        folder = out / "evaluations" / name.lower().replace(" ", "-")
        evaluation = read_evaluation(folder)
        assert evaluation.seeds == (10_000_000, 10_000_001)
        assert method["n"] == 2
        assert method["success"] == evaluation.successes.mean()
        assert 0 <= method["low"] <= method["success"] <= method["high"] <= 1
        assert method["description"]
    difference = result["difference"]
    assert (difference["first"], difference["second"]) == ("Q-SFT", "BC")
    expected = compare(
        read_evaluation(out / "evaluations/q-sft"), read_evaluation(out / "evaluations/bc")
    )
    assert difference["value"] == pytest.approx(expected.value, abs=1e-4)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["n"] == 2
    assert 0 < result["seconds"] < 600
    assert 5e7 < result["peak_memory_bytes"] < 64e9
    assert "torch" in result["facts"]


def test_report_is_one_file_that_shows_every_method(out):
    report = (out / "report.html").read_text()
    assert report.lower().startswith("<!doctype html")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", report), "it must not need other files"
    for name in METHODS:
        assert name in report
    assert report.count("data:video/mp4") == len(METHODS)


def test_again_nothing_is_made_twice(config, out):
    made = [
        *(out / "data").rglob("*.parquet"),
        *out.glob("*/checkpoints/*/*.safetensors"),
        *out.glob("evaluations/*/episodes.jsonl"),
    ]
    assert len(made) > 10
    before = {file: file.stat().st_mtime_ns for file in made}
    first = json.loads((out / "result.json").read_text())
    run_demo(config, out)
    assert {file: file.stat().st_mtime_ns for file in made} == before
    again = json.loads((out / "result.json").read_text())
    assert again["methods"] == first["methods"]
    assert again["difference"] == first["difference"]
    assert again["seconds"] > first["seconds"], "the time of all attempts counts"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demonstrations": {"seed": 1}}, "collected with other settings"),
        ({"training": {"seed": 1}}, "started with another seed"),
    ],
)
def test_other_settings_are_refused(config, out, changes, message):
    result = (out / "result.json").read_bytes()
    changed = {name: replace(getattr(config, name), **fields) for name, fields in changes.items()}
    with pytest.raises(ValueError, match=message):
        run_demo(replace(config, **changed), out)
    assert (out / "result.json").read_bytes() == result
