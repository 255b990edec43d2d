"""The command line: its help, its way through a small job, and what it says to bad input."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_qsft.command_line import run as run_command
from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.worker import WorkerDiedError

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def trained(demonstrations, tiny_arguments, tmp_path_factory) -> Path:
    """A finished run on `demonstrations`."""
    from robot_qsft.cli import main

    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("train", "--data", str(demonstrations), "--image-size", "16", "--run", str(run)),
                *(*tiny_arguments, "--steps", "6"),
            ]
        )
    assert ended.value.code == 0
    return run


@pytest.fixture
def train_arguments(tiny_arguments, tmp_path):
    """The command that trains a little on some data set, as `tmp_path / "run"`."""

    def arguments(data: Path, *more: str) -> list[str]:
        run = ["--run", str(tmp_path / "run"), "--image-size", "16"]
        return ["train", "--data", str(data), *run, *tiny_arguments, "--steps", "4", *more]

    return arguments


@pytest.fixture
def two_outcomes(write_dataset, tmp_path) -> Path:
    """Ten episodes of ten steps with two-dimensional actions, every other one successful."""
    rng = np.random.default_rng(0)
    return write_dataset(
        tmp_path / "data",
        actions=[rng.normal(size=(10, 2)) for _ in range(10)],
        successes=[episode % 2 == 0 for episode in range(10)],
    )


def replace_column(file: Path, name: str, change) -> None:
    """Rewrite one column of a parquet file, which our writer would refuse to hold."""
    table = pq.read_table(file)
    column = table.column(name).to_pylist()
    changed = pa.array(change(column), table.schema.field(name).type)
    index = table.schema.get_field_index(name)
    pq.write_table(table.set_column(index, table.schema.field(name), changed), file)


def test_help_of_the_program_names_every_command(process_environment):
    """As a real process; `python -m robot_qsft` is run by tests/test_train.py."""
    process = subprocess.run(
        [Path(sys.executable).with_name("robot-qsft"), "--help"],
        env=process_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("collect", "train", "eval", "demo", "doctor"):
        assert re.search(rf"• {name} +[A-Z]", process.stdout)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (("collect",), {"--episodes INT": "2400", "--workers INT": "0", "--seed INT": "0"}),
        (
            ("collect", "pybullet"),
            {"--max-steps INT": "50", "--image-size INT": "64"},
        ),
        (("eval", "robosuite"), {"--max-steps INT": "200", "--robot {Panda,Sawyer,UR5e}": "Panda"}),
        (("train",), {"--image-size INT": "64", "--cameras": "None"}),
        (("train", "images"), {"--steps INT": "", "--objective.discount FLOAT": "0.97"}),
        (("train", "rt1-images"), {"--network.layers INT": "8"}),
        (("train", "state"), {"--sampler.batch-size INT": "256"}),
        (("train", "paper-images"), {"--objective.form {reject,spread}": "spread"}),
        (("train", "paper-state"), {"--objective.backup {soft,max}": "max"}),
        (("eval",), {"--episodes INT": "100", "--first-seed INT": "10000000"}),
        (("demo",), {"--out PATH": "runs/demo", "--evaluation.episodes INT": "100"}),
        (("doctor",), {}),
    ],
)
def test_help_of_a_command_shows_every_default(command_line, command, defaults):
    status, printed = command_line(*command, "--help")
    assert status == 0
    # Boxes may stand side by side; what is said of an option follows its name in the same box.
    printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed).split())
    for option, default in defaults.items():
        assert option in printed
        assert re.search(re.escape(option) + rf".*?\(default: {re.escape(default)}", printed)
    options = re.findall(r" (--[a-z][a-z.-]*) [A-Z{]", printed)
    told = printed.count("(default: ") + printed.count("(required)")
    assert told >= len(options) >= len(defaults)


def test_collect_train_evaluate_compare(command_line, tmp_path, tiny_arguments):
    data, run = tmp_path / "data", tmp_path / "run"
    status, printed = command_line(
        *("collect", "--out", data, "--episodes", "24", "--workers", "1"),
        *("pybullet", "--image-size", "16"),
    )
    assert status == 0, printed
    assert re.search(r"24 episodes, \d+ frames in .*data", printed)
    status, printed = command_line(
        *("train", "--data", data, "--run", run, "--image-size", "16"),
        *(*tiny_arguments, "--steps", "6"),
    )
    assert status == 0, printed
    assert f"policy in {run}/checkpoints/step-000006" in printed

    evaluate = ["eval", "--run", run, "--episodes", "2", "--workers", "1"]
    where = ["pybullet", "--max-steps", "3"]
    bc = ["--name", "bc", "--beta", "0", "--videos", "1"]
    status, printed = command_line(*evaluate, *bc, *where)
    assert status == 0, printed
    assert "0.0%" in printed
    against = run / "evaluations/bc"
    assert len(list((against / "videos").glob("*.mp4"))) == 1
    status, printed = command_line(*evaluate, "--name", "qsft", "--against", against, *where)
    assert status == 0, printed
    assert re.search(r"difference .*0\.0%.* 2 ", printed)
    settings = [
        json.loads((run / "evaluations" / name / "result.json").read_text())["decoding"]["beta"]
        for name in ("bc", "qsft")
    ]
    assert settings[0] == 0 < settings[1]


def test_clipped_actions_are_counted(command_line, write_dataset, train_arguments, tmp_path):
    """Of 200 values of x two lie far out, and none of the two values of y."""
    x = np.linspace(-1, 1, 200)
    x[[3, 77]] = [-50, 40]
    y = np.sign(np.sin(np.arange(200)))
    data = write_dataset(
        tmp_path / "data",
        actions=np.split(np.stack([x, y], axis=1), 10),
        successes=[episode % 2 == 0 for episode in range(10)],
    )
    bounds = ["--tokenizer.low-quantile", "0.005", "--tokenizer.high-quantile", "0.995"]
    status, printed = command_line(*train_arguments(data, "--validation-share", "0", *bounds))
    assert status == 0, printed
    expected = "2 of 400 action values lie beyond the bins' bounds and are clipped (x: 2)"
    assert printed.splitlines().count(expected) == 1
    shutil.rmtree(tmp_path / "run")
    bounds = ["--tokenizer.low-quantile", "0", "--tokenizer.high-quantile", "1"]
    status, printed = command_line(*train_arguments(data, *bounds))
    assert status == 0, printed
    assert "action values" not in printed


def test_missing_and_empty_data_are_refused(refused, train_arguments, tmp_path):
    assert "there is no such folder" in refused(*train_arguments(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no meta/info.json" in refused(*train_arguments(tmp_path / "empty"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def no_reward(data: Path) -> str:
    replace_column(data / DATA, "next.reward", lambda rewards: [0.0] * len(rewards))
    replace_column(data / DATA, "next.success", lambda flags: [False] * len(flags))
    return "Q-SFT needs some episodes with a reward, but all 10 have none"


def no_reward_column(data: Path) -> str:
    info = json.loads((data / "meta/info.json").read_text())
    for key in ("next.reward", "next.success"):
        del info["features"][key]
    (data / "meta/info.json").write_text(json.dumps(info))
    return "the data set has neither next.reward nor next.success"


def one_outcome(data: Path) -> str:
    replace_column(
        data / DATA,
        "next.reward",
        lambda rewards: [float(row % 10 == 9) for row in range(len(rewards))],
    )
    return "but all 10 have one outcome only, a return of 1"


@pytest.mark.parametrize("change", [no_reward, no_reward_column, one_outcome])
def test_without_outcomes_to_tell_apart_only_behaviour_cloning_runs(
    refused, command_line, train_arguments, two_outcomes, tmp_path, change
):
    expected = change(two_outcomes)
    sentence = refused(*train_arguments(two_outcomes))
    assert expected in sentence
    assert "behaviour cloning" in sentence
    assert not (tmp_path / "run").exists()
    status, printed = command_line(*train_arguments(two_outcomes, "--method", "bc"))
    assert status == 0, printed
    assert (tmp_path / "run/checkpoints/step-000004/policy.safetensors").is_file()


def nan_action(data: Path) -> str:
    def change(actions):
        actions[23][1] = float("nan")
        return actions

    replace_column(data / DATA, "action", change)
    return "'action' holds NaN or infinity in episode 2 at step 3"


def cut_off(data: Path) -> str:
    content = (data / DATA).read_bytes()
    (data / DATA).write_bytes(content[: len(content) // 2])
    return "file-000.parquet"


def without_data_file(data: Path) -> str:
    (data / DATA).unlink()
    return "it is missing; restore it or record again"


def half_an_info(data: Path) -> str:
    content = (data / "meta/info.json").read_text()
    (data / "meta/info.json").write_text(content[: len(content) // 2])
    return "info.json is not JSON"


@pytest.mark.parametrize("change", [nan_action, cut_off, without_data_file, half_an_info])
def test_damaged_data_is_refused(refused, train_arguments, two_outcomes, tmp_path, change):
    expected = change(two_outcomes)
    for method in ("qsft", "bc"):
        assert expected in refused(*train_arguments(two_outcomes, "--method", method))
    assert not (tmp_path / "run").exists()


def test_missing_and_cut_off_video_are_refused(refused, train_arguments, write_dataset, tmp_path):
    data = write_dataset(
        tmp_path / "data",
        actions=[np.random.default_rng(0).normal(size=(10, 2))] * 2,
        successes=[True, False],
        camera=Camera(64, 64),
    )
    content = (data / VIDEO).read_bytes()
    (data / VIDEO).write_bytes(content[: len(content) // 2])
    assert "file-000.mp4" in refused(*train_arguments(data))
    (data / VIDEO).unlink()
    assert f"expected the file {VIDEO}" in refused(*train_arguments(data))
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / ".cache").iterdir()) == []


def test_training_that_does_not_fit_the_data_is_refused(
    refused, train_arguments, demonstrations, tmp_path
):
    more = train_arguments(demonstrations, "--sampler.batch-size", "100000")
    assert "fewer than one batch of 100000; collect more episodes or lower" in refused(*more)
    command, *rest = train_arguments(demonstrations)
    sentence = refused(command, "--cameras", "overhead", *rest)
    assert "camera 'overhead' asked for, but" in sentence
    assert "has front; choose one of these" in sentence
    odd = train_arguments(demonstrations)
    odd[odd.index("--image-size") + 1] = "20"
    assert "image_size must be a multiple of 8, got 20" in refused(*odd)
    odd[odd.index("--image-size") + 1] = "0"
    assert "image_size must be at least 1 pixel, got 0" in refused(*odd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("collect", "--out", "x", "--episodes", "0"), "episodes must be at least 1, got 0"),
        (
            ("collect", "--out", "x", "pybullet", "--task", "Lift"),
            "the stitch recipe needs the Stitch task, got Lift",
        ),
        (("eval", "--run", "x"), "x holds no checkpoint; train it first"),
        (("eval", "--run", "x", "--against", "y"), "y holds no finished evaluation"),
    ],
)
def test_impossible_settings_are_refused(refused, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("collect", "--out", "x", "pybullet", "--cameras", "overhead"),
            "cameras are front, wrist, got ['overhead']",
        ),
        (
            ("collect", "--out", "x", "robosuite", "--cameras", "overhead"),
            "cameras are agentview, wrist, front, side, bird, got ['overhead']",
        ),
        (("train", "state", "--steps", "0"), "steps must be at least 1, got 0"),
        (("train", "state", "--tokenizer.bins", "1"), "bins must be at least 2, got 1"),
        (("train", "state", "--sampler.batch-size", "1"), "batch_size must be at least 2, got 1"),
        (("eval", "--run", "x", "--beta", "-1"), "beta must be finite and at least 0, got -1.0"),
    ],
)
def test_values_out_of_range_are_refused(command_line, tmp_path, monkeypatch, arguments, sentence):
    """Whether tyro or we say so, in a box or in a line."""
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    where = ["--data", "x", "--run", "y"] if command == "train" else []
    status, printed = command_line(command, *where, *rest)
    assert status in (1, 2)
    assert printed.count(sentence) == 1
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_complaints_go_to_standard_error(capfd, monkeypatch, tmp_path):
    from robot_qsft.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["eval", "--run", "nowhere"])
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.out == ""


@pytest.mark.parametrize("arguments", [(), ("fly",), ("train", "--data", "x"), ("eval", "--who")])
def test_what_is_no_command_is_explained(command_line, arguments):
    status, printed = command_line(*arguments)
    assert status == 2
    assert "Traceback" not in printed


def test_run_is_not_trained_twice_nor_with_other_bins(
    refused, command_line, demonstrations, trained, tiny_arguments
):
    arguments = ["--data", demonstrations, "--image-size", "16", "--run", trained]
    more = [*tiny_arguments, "--steps", "6"]
    assert "exists already; add --resume" in refused("train", *arguments, *more)
    sentence = refused("train", "--resume", *arguments, *more, "--tokenizer.bins", "9")
    assert "was started with another tokenizer" in sentence
    status, printed = command_line("train", "--resume", *arguments, *more)
    assert status == 0, printed


def change_bins(description: dict) -> None:
    description["spec"]["bins"][0] = 9


def change_bins_and_tokenizer(description: dict) -> None:
    """Both say nine, so that only the weights tell."""
    description["spec"]["bins"] = [9] * len(description["spec"]["bins"])
    for dimension in description["action_tokenizer"]:
        dimension["edges"] = list(range(10))
        dimension["centres"] = [edge + 0.5 for edge in range(9)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_bins, "but a tokenizer of"),
        (change_bins_and_tokenizer, "policy.safetensors does not fit its configuration"),
    ],
)
def test_checkpoint_of_another_k_is_refused(refused, trained, tmp_path, change, sentence):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    file = run / "checkpoints/step-000006/policy.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    assert sentence in refused("eval", "--run", run, "--episodes", "2")
    assert not (run / "evaluations").exists()


def test_damaged_checkpoint_is_refused(refused, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    file = run / "checkpoints/step-000006/policy.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "is cut off or damaged" in refused("eval", "--run", run, "--episodes", "2")
    file.unlink()
    assert "is missing; restore it" in refused("eval", "--run", run, "--episodes", "2")
    assert not (run / "evaluations").exists()


def test_policy_for_another_robot_is_refused(
    refused, command_line, train_arguments, two_outcomes, tmp_path
):
    status, printed = command_line(*train_arguments(two_outcomes))
    assert status == 0, printed
    sentence = refused("eval", "--run", tmp_path / "run", "--episodes", "2", "--workers", "1")
    assert re.search(r"seed 10000000 in Stitch failed: state must have 1 entries", sentence)


@dataclass(frozen=True)
class Dying:
    """Gives up after some workers died."""

    def run(self) -> int:
        raise WorkerDiedError("3 worker processes in a row died at the episode with seed 7")


def test_dying_workers_end_in_one_sentence(capfd):
    with pytest.raises(SystemExit) as ended:
        run_command(Dying, [])
    assert ended.value.code == 1
    sentence = "3 worker processes in a row died at the episode with seed 7"
    assert capfd.readouterr().err.splitlines() == [f"error: {sentence}"]


def test_collect_does_not_touch_what_is_there(refused, demonstrations):
    before = Dataset.open(demonstrations).frame_count
    assert "exists already; add --resume" in refused("collect", "--out", demonstrations)
    sentence = refused("collect", "--resume", "--out", demonstrations, "--seed", "3")
    assert "was collected with other settings" in sentence
    assert Dataset.open(demonstrations).frame_count == before
