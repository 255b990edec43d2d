"""Labels beside a source: kept, refused, applied, and passed on as CSV."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.labels import (
    SCHEMA,
    Label,
    Labels,
    apply_labels,
    labels_path,
    now_utc,
)
from robot_qsft.datasets.labels_csv import export_csv, import_csv
from robot_qsft.datasets.outcomes import Evidence, judge

WHEN = "2025-06-01T12:00:00+00:00"
NAMES = ("demo_0", "demo_1", "demo_2", "demo_3")
LENGTHS = (10, 10, 10, 10)


def label(episode: int, outcome: Any = "success", frame: int | None = None, **other: Any) -> Label:
    fields = {"name": f"demo_{episode}", "source": "person", "by": "ada", "when": WHEN} | other
    return Label(episode=episode, outcome=outcome, success_frame=frame, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.parquet"


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def test_a_folder_holds_its_labels_and_a_file_has_them_beside_it(tmp_path: Path) -> None:
    assert labels_path(tmp_path) == tmp_path / "labels.parquet"
    assert labels_path(tmp_path / "demo.hdf5") == tmp_path / "demo.labels.parquet"


def test_every_change_is_on_disk_when_the_call_returns(path: Path) -> None:
    given_label, other = label(2, "success", 7), label(0, "failure")
    with Labels.edit(path, episodes=4) as labels:
        assert len(labels) == 0 and not path.exists()
        labels.set(given_label)
        assert dict(Labels.read(path, episodes=4)) == {2: given_label}
        labels.set(other)
        labels.set(label(2, "unclear"))
        stored = Labels.read(path, episodes=4)
        assert list(stored) == [0, 2] and stored[2] == label(2, "unclear")
        labels.remove(0)
        labels.remove(3)  # has none
        assert dict(Labels.read(path, episodes=4)) == {2: label(2, "unclear")}
    table = pq.read_table(path)
    assert table.column_names == list(asdict(given_label))
    assert table.to_pylist() == [asdict(label(2, "unclear"))]


def test_nothing_but_the_labels_and_the_lock_is_left_behind(path: Path) -> None:
    with Labels.edit(path, episodes=4) as labels:
        labels.set(label(1))
    assert sorted(file.name for file in path.parent.iterdir()) == [
        ".labels.parquet.lock",
        "labels.parquet",
    ]


def test_a_second_writer_is_kept_out_and_readers_are_not(path: Path) -> None:
    with Labels.edit(path, episodes=4) as labels:
        labels.set(label(1))
        with pytest.raises(ValueError, match=r"another process is changing the labels in .*--labe"):
            Labels.edit(path, episodes=4)
        assert len(Labels.read(path, episodes=4)) == 1
    Labels.edit(path, episodes=4).close()


def test_damaged_labels_leave_no_lock(path: Path) -> None:
    path.write_bytes(b"PAR1")
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be read"):
            Labels.edit(path, episodes=4)


def test_a_label_that_cannot_be_written_is_not_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Labels.edit(path, episodes=4) as labels:
        labels.set(label(1))
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda descriptor: os.write(-1, b""))
            with pytest.raises(ValueError, match=r"labels.parquet cannot be written \(Bad file"):
                labels.set(label(2))
        assert list(labels) == [1] and path.read_bytes() == before
        assert sorted(path.parent.glob("*")) == [path.with_name(".labels.parquet.lock"), path]
        labels.set(label(2))
    assert list(Labels.read(path, episodes=4)) == [1, 2]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be written \(No such file"):
        Labels.edit(tmp_path / "none" / "labels.parquet", episodes=4)


WRITER = """
import sys
from pathlib import Path
from robot_qsft.datasets.labels import Label, Labels, now_utc

with Labels.edit(Path(sys.argv[1]), episodes=10_000) as labels:
    for n in range(10_000):
        label = Label(n, f"demo_{n}", "success", None, source="person", by="ada", when=now_utc())
        labels.set(label)
        print(n, flush=True)
"""


def test_a_killed_writer_loses_nothing(path: Path) -> None:
    for lines in (1, 7, 23):
        arguments = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline() for _ in range(lines)]
            writer.kill()
            said += writer.stdout.readlines()
        last = int("".join(said).split()[-1])
        with Labels.edit(path, episodes=10_000) as labels:
            assert last >= lines - 1 and set(range(last + 1)) <= set(labels)
            labels.set(label(9_999))


def test_ten_thousand_labels_are_saved_within_50_ms_each(path: Path) -> None:
    with Labels.edit(path, episodes=10_000) as labels:
        labels.set(*(label(episode, "success", episode % 7) for episode in range(9_999)))
        times_s = []
        for _ in range(7):
            begun_s = time.perf_counter()
            labels.set(label(9_999, "failure"))
            times_s.append(time.perf_counter() - begun_s)
    assert min(times_s) < 0.05  # the others may have waited for the machine
    begun_s = time.perf_counter()
    assert len(Labels.read(path, episodes=10_000)) == 10_000
    assert time.perf_counter() - begun_s < 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episode": -1}, "episode should be a number from 0, but -1 came"),
        ({"episode": True}, "episode should be a number from 0, but True came"),
        ({"outcome": "maybe"}, "outcome should be one of success, failure, unclear, but 'maybe'"),
        ({"outcome": None}, "outcome should be text, but None came"),
        ({"success_frame": -3}, "success_frame should be a number from 0, but -3 came"),
        ({"success_frame": 1.0}, "success_frame should be a number from 0, but 1.0 came"),
        ({"outcome": "failure", "success_frame": 3}, "only a success has a success_frame, but 3"),
        ({"when": "yesterday"}, "when should be a time in UTC such as .* but 'yesterday' came"),
        ({"when": "2025-06-01T12:00:00"}, "when should be a time in UTC"),
        ({"when": "2025-06-01T12:00:00+02:00"}, "when should be a time in UTC"),
        ({"name": "x" * 1001}, "name should be at most 1000 characters"),
        ({"by": "\ud800"}, "by should be at most 1000 characters of Unicode"),
    ],
)
def test_what_no_label_can_say(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(label(1), **wrong)


def test_now_is_a_time_that_a_label_takes() -> None:
    assert label(1, when=now_utc()).when.endswith("+00:00")


def without(name: str) -> pa.Schema:
    return pa.schema([field for field in SCHEMA if field.name != name])


def retyped(name: str, kind: pa.DataType) -> pa.Schema:
    return pa.schema([field if field.name != name else pa.field(name, kind) for field in SCHEMA])


ROW = asdict(label(1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "that is no file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "that is no file"),
        (lambda path: write(path, [ROW], without("by")), "has not one column 'by'"),
        (lambda path: write(path, [ROW | {"outcome": "won"}]), "row 0: outcome should be one of"),
        (lambda path: write(path, [ROW | {"outcome": None}]), "row 0: outcome should be text"),
        (lambda path: write(path, [ROW | {"success_frame": -1}]), "row 0: success_frame should be"),
        (lambda path: write(path, [ROW, ROW]), "row 1: episode 1 has a label in an earlier row"),
        (lambda path: write(path, [ROW | {"episode": 4}]), "episode 4 came, but the source has 4"),
        (lambda path: write(path, [ROW | {"episode": None}]), "episode should be a number"),
        (lambda path: write(path, [ROW] * 5), "it has 5 rows and the source 4 episodes"),
        (
            lambda path: write(path, [ROW | {"name": "x" * 9000}]),
            "'name' holds text longer than labels ever are",
        ),
        (
            lambda path: write(path, [ROW | {"episode": 1.5}], retyped("episode", pa.float64())),
            "'episode' holds double, not int64",
        ),
        (
            lambda path: write(path, [ROW | {"name": 7}], retyped("name", pa.int64())),
            "'name' holds int64, not string",
        ),
        (
            lambda path: write(path, [ROW | {"by": b"\xff"}], retyped("by", pa.binary())),
            "'by' holds binary, not string",
        ),
        (
            lambda path: write(path, [ROW | {"by": ["a"]}], retyped("by", pa.list_(pa.string()))),
            "'by' holds list.*, not string",
        ),
    ],
)
def test_damage_is_told_in_one_sentence(
    path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write(path, [ROW])
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        Labels.read(path, episodes=4)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_text_that_repeats_without_bound_is_not_unpacked(path: Path) -> None:
    """2000 rows of one text of 8 MB are 16 GB unpacked and a few kB packed."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 2**23])
    columns = [rows if field.name == "name" else pa.nulls(2000, field.type) for field in SCHEMA]
    pq.write_table(pa.table(columns, names=SCHEMA.names), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="'name' holds text longer than labels ever are"):
        Labels.read(path, episodes=2000)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_and_missing_bytes_are_refused_or_read(path: Path, data: st.DataObject) -> None:
    write(path, [asdict(label(episode, "success", 3)) for episode in range(4)])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        labels = Labels.read(path, episodes=4)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= episode < 4 for episode in labels)


def test_a_label_for_no_episode_is_refused(path: Path) -> None:
    with Labels.edit(path, episodes=4) as labels:
        with pytest.raises(ValueError, match="a label came for episode 4, but there are 4"):
            labels.set(label(0), label(4))
        assert len(labels) == 0 and not path.exists()


def test_labels_override_what_the_source_says() -> None:
    evidences = [
        Evidence("next.success", True, 9),
        Evidence("next.success", False),
        Evidence("next.success", False),
        Evidence("next.success", False),
    ]
    labels = {0: label(0, "failure"), 1: label(1, "success", 4), 2: label(2, "unclear")}
    merged = apply_labels(evidences, labels, names=NAMES, lengths=LENGTHS)
    assert merged == [
        Evidence("label", False, certain=True),
        Evidence("label", True, 4, certain=True),
        Evidence("label", None, certain=True),
        Evidence("next.success", False),
    ]
    # Nothing but the label says success now: the column of episode 3 may be a placeholder.
    assert judge(merged) == ("failure", "success", "unknown", "unknown")
    assert len(evidences) == 4 and evidences[0].source == "next.success"


def test_unclear_does_not_silence_other_labels() -> None:
    evidences = [Evidence("none", None)] * 4
    labels = {0: label(0, "unclear"), 1: label(1, "failure"), 2: label(2, "success")}
    merged = apply_labels(evidences, labels, names=NAMES, lengths=LENGTHS)
    assert judge(merged) == ("unknown", "failure", "success", "unknown")


@pytest.mark.parametrize(
    ("given_label", "message"),
    [
        (label(1, name="demo_7"), "is for 'demo_7', but the source calls it 'demo_1'"),
        (label(1, "success", 10), "success at frame 10, but 'demo_1' has 10 frames"),
        (label(4), "a label is for episode 4, but there are 4"),
    ],
)
def test_labels_of_another_source_are_not_applied(given_label: Label, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_labels(
            [Evidence("none", None)] * 4,
            {given_label.episode: given_label},
            names=NAMES,
            lengths=LENGTHS,
        )


def take(path: Path, text: str | bytes, names: tuple[str, ...] = NAMES) -> dict[int, Label]:
    """What is there after an import over one label."""
    table = path.with_name("labels.csv")
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    with Labels.edit(path, episodes=4) as labels:
        labels.set(label(3, "unclear"))
        import_csv(labels, table, names=names, lengths=LENGTHS, by="grace")
        return dict(labels)


def test_csv_by_episode_or_name(path: Path) -> None:
    taken = take(
        path,
        "\ufeffname,outcome,success_frame,episode\r\n"
        "demo_2, Success ,4,\r\n"
        ",failure,,0\r\n"
        "\r\n"
        "demo_1,unclear,,1\r\n",
    )
    assert [(one.episode, one.name, one.outcome, one.success_frame) for one in taken.values()] == [
        (0, "demo_0", "failure", None),
        (1, "demo_1", "unclear", None),
        (2, "demo_2", "success", 4),
        (3, "demo_3", "unclear", None),
    ]
    assert {(one.source, one.by) for one in taken.values()} == {("csv", "grace"), ("person", "ada")}
    assert dict(Labels.read(path, episodes=4)) == taken


def test_csv_there_and_back(path: Path) -> None:
    table = path.with_name("out.csv")
    odd = 'a "quoted", name\nof two lines'
    stored = {0: label(0, "success", 0, name=odd), 2: label(2, "failure"), 3: label(3, "unclear")}
    with Labels.edit(path, episodes=4) as labels:
        labels.set(*stored.values())
        export_csv(labels, table)
        for episode in stored:
            labels.remove(episode)
        names = (odd, *NAMES[1:])
        assert import_csv(labels, table, names=names, lengths=LENGTHS, by="grace") == 3
        assert dict(labels) == stored
    header, *_ = table.read_text().splitlines()
    assert header == "episode,name,outcome,success_frame,source,by,when"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header of outcome, .* but nothing came; mend the header"),
        ("episode\n1\n", "expected a header of outcome"),
        ("outcome\nsuccess\n", "expected a header of outcome"),
        ("episode,outcome,sucess_frame\n", "mend 'sucess_frame'"),
        ("episode,outcome,outcome\n", "mend 'outcome'"),
        ("episode,outcome\n0,success\n1,won\n", "line 3: outcome should be one of .* 'won' came"),
        ("episode,outcome\n0,\n", "line 2: outcome should be one of"),
        ("episode,outcome\n0,success\n4,failure\n", "line 3: episode 4 came, but the source has 4"),
        ("episode,outcome\n-1,failure\n", "line 2: episode should be a number from 0, but '-1'"),
        ("episode,outcome\n1.0,failure\n", "line 2: episode should be a number"),
        ("name,outcome\ndemo_9,failure\n", "line 2: the source has no episode named 'demo_9'"),
        ("episode,name,outcome\n1,demo_2,failure\n", "calls episode 1 'demo_1', but 'demo_2' came"),
        ("episode,outcome\n1,success\n1,failure\n", "line 3: episode 1 has a label in line 2"),
        ("episode,outcome\n1,success,7\n", "line 2: expected 2 fields, but 3 came"),
        ("episode,outcome,success_frame\n1,success,10\n", "line 2: .* at frame 10, but 'demo_1'"),
        ("episode,outcome,success_frame\n1,failure,1\n", "line 2: only a success has a success_fr"),
        (
            "episode,outcome,success_frame\n1,success,x\n",
            "line 2: success_frame should be",
        ),
        ("episode,outcome,when\n1,success,noon\n", "line 2: when should be a time in UTC"),
        (b"episode,outcome\n1,succ\xff\n", "expected a CSV table in UTF-8"),
        ('episode,outcome\n1,"success\n', "it cannot be read"),
        ("episode,outcome\n1," + "x" * 200_000 + "\n", "it cannot be read"),
    ],
)
def test_one_wrong_line_and_no_label_is_taken(path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        take(path, text)
    assert "\n" not in str(caught.value)
    assert dict(Labels.read(path, episodes=4)) == {3: label(3, "unclear")}


def test_csv_by_a_name_that_several_episodes_have(path: Path) -> None:
    names = ("demo_0", "demo_0", "demo_2", "demo_3")
    with pytest.raises(ValueError, match="several episodes are named 'demo_0'; tell which"):
        take(path, "name,outcome\ndemo_0,failure\n", names)
    assert take(path, "episode,outcome\n1,failure\n", names)[1].name == "demo_0"


def test_csv_that_is_not_there(path: Path) -> None:
    with (
        Labels.edit(path, episodes=4) as labels,
        pytest.raises(ValueError, match=r"expected a CSV file at .* but there is none"),
    ):
        import_csv(labels, path.with_name("no.csv"), names=NAMES, lengths=LENGTHS, by="grace")
