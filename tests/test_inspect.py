import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from robot_qsft.console import console
from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.field_map import FieldMap, Part, field_map_text, read_field_map
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.labels import Label, Labels
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.source import Column, Recording, SourceInfo
from robot_qsft.datasets.source_facts import gather_facts
from robot_qsft.datasets.suggest_map import suggest
from robot_qsft.datasets.vector_facts import BINS
from robot_qsft.inspect_findings import outliers, robust_scores, warnings
from robot_qsft.inspect_report import duration, title_of, write_inspection
from robot_qsft.inspect_source import condensed, inspect_source, screen, sparkline

EVIL = '<script>alert("1")</script>&[red]\x1b[2J\n'
MAP = FieldMap(action=(Part("a"),), cameras={"front": "front"})
HEADINGS = [
    "What it holds",
    "What the cameras saw",
    "Actions, dimension by dimension",
    "Episodes",
    "Columns and cameras",
]

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


@dataclass
class MadeUpSource:
    """Episodes that are given, all frames grey; a text in place of one is what reading it says."""

    episodes: list[Recording | str]
    info: SourceInfo = field(
        default_factory=lambda: SourceInfo(
            "made up",
            {"a": Column("float64", (2,), ("x", "y"))},
            {"front": Camera(6, 8, "video")},
            fps=10.0,
        )
    )
    frames_say: str = ""
    path: Path = Path("made_up")
    decoded: int = 0

    def __len__(self) -> int:
        return len(self.episodes)

    def recording(self, index: int) -> Recording:
        one = self.episodes[index]
        if isinstance(one, str):
            raise ValueError(one)
        return one

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        for step in range(len(self.recording(index))):
            if self.frames_say and step == 1:
                raise ValueError(self.frames_say)
            self.decoded += 1
            yield np.full((6, 8, 3), 20 * step % 256, np.uint8)

    def files(self) -> tuple[Path, ...]:
        return ()


def recorded(
    actions: np.ndarray, *, success: bool | None = None, name: str = "one", instruction: str = "go"
) -> Recording:
    evidence = NO_EVIDENCE if success is None else Evidence("flag", success, certain=True)
    return Recording(name, {"a": np.asarray(actions, np.float64)}, instruction, evidence)


def noise(steps: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 2))


def mixed(count: int = 20) -> list[Recording | str]:
    """Every other episode succeeds; all are 20 steps long."""
    return [
        recorded(noise(20, seed=index), success=index % 2 == 0, name=f"demo_{index}")
        for index in range(count)
    ]


def on_screen(source: MadeUpSource, field_map: FieldMap = MAP, *, width: int = 80) -> str:
    terminal = Console(width=width, color_system=None)
    with terminal.capture() as captured:
        terminal.print(screen(source, field_map, gather_facts(source, field_map)))
    return captured.get()


def report(tmp_path: Path, source: MadeUpSource, field_map: FieldMap = MAP) -> str:
    path = tmp_path / "report.html"
    write_inspection(path, source, field_map, gather_facts(source, field_map))
    return path.read_text(encoding="utf-8")


def test_screen_of_a_collected_set(
    demonstrations: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 200)
    assert inspect_source(demonstrations) == 0
    printed = capsys.readouterr().out
    source = open_source(demonstrations)
    steps = sum(len(source.recording(index)) for index in range(24))
    assert f"24 episodes · {steps:,} steps" in printed
    assert "10 steps/s · panda" in printed
    assert re.search(r"█ \d+ success  ▒ \d+ failure", printed)
    assert "as told by next.success (24)" in printed
    assert "front 16×16 image" in printed
    assert "train 24" in printed
    assert re.search(r"gripper_open +−1 … 1 +−1 … 1 +2 values", printed)
    body = printed[printed.index("stitch") :]
    assert max(map(len, body.splitlines())) <= 100


def test_numbers_on_the_screen() -> None:
    actions = np.zeros((200, 2))
    actions[:, 0] = np.linspace(-1, 1, 200)
    shown = on_screen(MadeUpSource([recorded(actions, success=True)]))
    assert "1 episode · 200 steps · 20.0 seconds · 10 steps/s" in shown
    (x,) = [line for line in shown.splitlines() if line.startswith("x ")]
    # Every value is on its own; those of the 1% quantiles and beyond share the outermost bins.
    assert re.search(r"−0.98 … 0.98 +−1 … 1 +\d+ +1.0%  [▁-█]{16}", x)
    (y,) = [line for line in shown.splitlines() if line.startswith("y ")]
    assert re.fullmatch(r"y +0 +constant *", y)


def test_screen_fits_and_nothing_on_it_is_obeyed() -> None:
    info = SourceInfo(
        EVIL,
        {"a": Column("float64", (2,), (EVIL, EVIL * 9))},
        {EVIL: Camera(6, 8)},
        fps=10.0,
        robot_type=EVIL,
        splits={EVIL: (0,)},
        notes=(EVIL * 40,),
    )
    source = MadeUpSource([recorded(noise(9), instruction=EVIL * 20)], info)
    source.path = Path("a\x1b[2J[red]b")
    hostile = replace(MAP, cameras={"front": EVIL})
    for width in (80, 100):
        shown = on_screen(source, hostile, width=width)
        assert max(map(len, shown.splitlines())) <= width
        assert "\x1b" not in shown
        assert "[red]" in shown
        assert len(shown.splitlines()) < 50


def test_much_of_everything_is_cut_short() -> None:
    names = tuple(f"n{index}" for index in range(60))
    info = SourceInfo(
        "made up",
        {"a": Column("float64", (60,), names)},
        {f"c{index}": Camera(6, 8) for index in range(40)},
        notes=tuple(f"note {index}" for index in range(40)),
    )
    episodes = [recorded(np.zeros((2, 60)), instruction=f"task {index}") for index in range(40)]
    cameras = {name: name for name in info.cameras}
    shown = on_screen(MadeUpSource(episodes, info), replace(MAP, cameras=cameras))
    assert "and 35 more" in shown
    assert "and 36 more" in shown
    assert shown.count("and 32 more") == 2
    assert len(shown.splitlines()) < 80


def test_suggestion_is_written_once(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "map.yaml"
    inspect_source(demonstrations, suggest=file)
    assert f"field map in {file}" in capsys.readouterr().out.replace("\n", "")
    assert read_field_map(file) == suggest(open_source(demonstrations))
    file.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        inspect_source(demonstrations, suggest=file)
    assert file.read_text() == "mine"
    with pytest.raises(ValueError, match="cannot be written"):
        inspect_source(demonstrations, suggest=file / "below" / "map.yaml")


def test_map_and_labels_count(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = replace(suggest(open_source(demonstrations)), action=(Part("action", entries=(3,)),))
    file = tmp_path / "map.yaml"
    file.write_text(field_map_text(one))
    sidecar = tmp_path / "labels.parquet"
    told = [
        Label(index, f"episode {index}", "unclear", None, "person", "me", "2025-06-01T12:00:00Z")
        for index in range(2)
    ]
    with Labels.edit(sidecar, episodes=24) as labels:
        labels.set(*told)
    inspect_source(demonstrations, map_file=file, labels=sidecar)
    printed = capsys.readouterr().out
    assert "next.success (22)" in printed
    assert "░ 2 unknown" in printed
    assert "gripper_open" in printed
    assert not re.search(r"^x ", printed, re.MULTILINE)
    with pytest.raises(ValueError, match=r"expected labels at .*lost"):
        inspect_source(demonstrations, labels=tmp_path / "lost.parquet")
    with pytest.raises(ValueError, match="expected a field map at"):
        inspect_source(demonstrations, map_file=tmp_path / "lost.yaml")


def test_own_labels_are_found(
    write_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "set", actions=[noise(3), noise(4)], successes=[True, False])
    label = Label(1, "episode 1", "success", 2, "person", "me", "2025-06-01T12:00:00Z")
    with Labels.edit(path / "labels.parquet", episodes=2) as labels:
        labels.set(label)
    inspect_source(path)
    printed = capsys.readouterr().out
    assert "█ 2 success  ▒ 0 failure" in printed
    assert "next.success (1), label (1)" in printed


def test_warnings_by_hand() -> None:
    def said(episodes: list[Recording | str], field_map: FieldMap = MAP, **info: object) -> str:
        source = MadeUpSource(episodes)
        source.info = replace(source.info, **info)
        return " ".join(warnings(gather_facts(source, field_map), field_map))

    assert said(mixed()) == ""
    unread = said([*mixed(), "episode 20 is cut off; restore it"])
    assert unread == (
        "Unreadable: 1 of 21 episodes, such as episode 20: episode 20 is cut off; restore it."
    )
    assert "How 1 of 21 episodes ended is unknown" in said([*mixed(), recorded(noise(20))])
    assert "How all 2 episodes ended is unknown" in said([recorded(noise(20))] * 2)
    assert "Every episode of known outcome succeeds" in said([recorded(noise(9), success=True)])
    assert "Every episode of known outcome fails" in said([recorded(noise(9), success=False)])
    assert "steps per second are unknown" in said(mixed(), fps=None)
    assert said(mixed(), replace(MAP, fps=5), fps=None) == ""
    unasked = said([*mixed(), recorded(noise(20), success=True, instruction="")])
    assert unasked == "There is no instruction in 1 of 21 episodes."
    broken = noise(20)
    broken[3, 1] = np.nan
    assert said([*mixed(), recorded(broken, success=True)]) == "action holds NaN or infinity in y."
    still = [recorded(np.full((9, 2), 0.5), success=index == 0) for index in range(2)]
    assert said(still) == "The action is the same number throughout in x, y."
    narrow = np.zeros((1000, 2))
    narrow[:4] = [[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]]
    narrow[4:, 1] = noise(996)[:, 1]
    rare = said([recorded(narrow, success=True), recorded(narrow, success=False)])
    assert rare.startswith("98% of the actions are one number in x:")


def test_rewards_that_training_cannot_take_are_said() -> None:
    columns = {"a": Column("float64", (2,)), "r": Column("float64")}
    info = SourceInfo("made up", columns, fps=10.0)
    episodes = [
        Recording("one", {"a": noise(2), "r": np.array([2.0, 3.0])}, "", Evidence("f", True)),
        Recording("two", {"a": noise(2), "r": np.array([0.0, -1.0])}, "", Evidence("f", False)),
    ]
    one = FieldMap(action=(Part("a"),), reward="r")
    said = warnings(gather_facts(MadeUpSource(episodes, info), one), one)
    assert said == (
        "Rewards total −1 to 5 per episode, but training needs 0 to 1: set 'reward: success' in "
        "the field map.",
    )


def test_outliers_by_hand() -> None:
    far = noise(20)
    far[7, 1] = -9
    episodes = [
        *mixed(),
        recorded(noise(3), success=True, name="short"),
        recorded(noise(90), success=False, name="long"),
        recorded(far, success=True, name="far"),
        recorded(noise(20), success=True, name="rare", instruction="something else"),
    ]
    found = outliers(gather_facts(MadeUpSource(episodes), MAP))
    told = {one.episode.name: one.reason for one in found}
    assert told["short"] == "shortest: 3 steps, where the median is 20"
    assert told["long"] == "longest: 90 steps, where the median is 20"
    assert re.fullmatch(
        r"action y reaches −9, where 98% of all are −0\.9\d+ to 0\.9\d+", told["far"]
    )
    assert told["rare"] == "the only one asked for 'something else'"
    assert len(found) == 4
    assert outliers(gather_facts(MadeUpSource(mixed()), MAP)) == ()


def test_robust_scores_by_hand() -> None:
    # The median is 2, the median distance from it 1.
    scores = robust_scores(np.array([1.0, 2.0, 2.0, 3.0, 12.0, 0.0]))
    assert scores == pytest.approx(np.array([-1, 0, 0, 1, 10, -2]) / 1.4826)
    assert robust_scores(np.array([1.0, 1.0, 3.0]), smallest_scale=0.5).tolist() == [0, 0, 4]
    assert np.isnan(robust_scores(np.array([1.0, 1.0, 3.0]))).all()
    assert np.isnan(robust_scores(np.array([np.nan]))).all()


def test_sparkline_by_hand() -> None:
    bins = np.zeros(BINS, np.int64)
    bins[0], bins[16], bins[255] = 64, 16, 1
    # Heights go with the root: 8, 4 and 1 of 8.
    assert sparkline(bins) == "█▄" + 13 * " " + "▁"
    assert sparkline(np.zeros(BINS, np.int64)) == 16 * " "


def test_condensed_names_by_hand() -> None:
    assert condensed(["q_0", "q_1", "q_2", "x", "p_7", "p_9", "_3", "q_3"]) == [
        *("q_0 … 2", "x", "p_7", "p_9", "_3", "q_3"),
    ]
    assert condensed([]) == []


def test_title_by_hand() -> None:
    assert title_of(Path("/data/bridge/1.0.0")) == "bridge/1.0.0"
    assert title_of(Path("/data/door/human-v2")) == "door/human-v2"
    assert title_of(Path("/data/demo.hdf5")) == "demo.hdf5"


def test_duration_by_hand() -> None:
    assert duration(5400) == ("1.50", "hours")
    assert duration(90) == ("1.5", "minutes")
    assert duration(59.9) == ("59.9", "seconds")


def test_report_needs_nothing_else(tmp_path: Path) -> None:
    html = report(tmp_path, MadeUpSource(mixed()))
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    sources = re.findall(r'(?:src|href)="([^"]{0,16})', html)
    assert len(sources) > 10
    assert all(source.startswith("data:") for source in sources)
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", html) == HEADINGS
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_report_shows_first_middle_and_last_frame(tmp_path: Path) -> None:
    source = MadeUpSource(mixed())
    html = report(tmp_path, source)
    # Two episodes of each outcome that there is.
    assert re.findall(r"front at step (\d+) of (demo_\d+)", html) == [
        (step, demo)
        for demo in ("demo_0", "demo_2", "demo_1", "demo_3")
        for step in ("0", "10", "19")
    ]
    assert source.decoded == 4 * 20


def test_a_broken_video_is_said_in_the_report(tmp_path: Path) -> None:
    html = report(tmp_path, MadeUpSource(mixed(), frames_say="frame 1 is <damaged>; restore it"))
    assert html.count("front: frame 1 is &lt;damaged&gt;; restore it") == 4
    assert len(re.findall(r"front at step 0 of", html)) == 4


def test_report_of_little_or_nothing(tmp_path: Path) -> None:
    one = recorded(np.full((1, 2), np.nan), instruction="")
    source = MadeUpSource([one, "lost"], SourceInfo("made up", {"a": Column("float64", (2,))}))
    html = report(tmp_path, source, replace(MAP, cameras={}))
    body = re.sub(r"<[^>]*>", "", html[html.index("<body>") :])
    assert not re.search(r"\b(nan|inf|None|undefined)\b", body)
    assert "Neither a label nor the recording tells how the episodes ended." in body
    assert "none recorded" in body
    assert "What the cameras saw" not in body
    assert "Cannot be read" in body


def test_report_of_huge_numbers(tmp_path: Path) -> None:
    huge = np.array([[1e308, 1e16], [-1e308, 1e16 + 2], [0, 1e16 + 4], [1, 1e16 + 6]])
    html = report(tmp_path, MadeUpSource([recorded(huge)]))
    assert "x: its numbers leave no room for a histogram." in html


def test_text_is_escaped(tmp_path: Path) -> None:
    columns = {"a": Column("float64", (2,), (EVIL, EVIL)), EVIL: Column("float64", (), ())}
    info = SourceInfo(
        EVIL,
        columns,
        {EVIL: Camera(6, 8)},
        fps=10.0,
        robot_type=EVIL,
        splits={EVIL: (0,)},
        notes=(EVIL,),
    )
    evidence = Evidence(EVIL, True, certain=True)
    shapes = {"a": noise(9), EVIL: np.zeros(9)}
    source = MadeUpSource([Recording(EVIL, shapes, EVIL, evidence), EVIL], info)
    html = report(tmp_path, source, replace(MAP, cameras={"front": EVIL}, state=(Part(EVIL),)))
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") > 15


def test_text_that_is_no_unicode_can_be_reported(tmp_path: Path) -> None:
    html = report(tmp_path, MadeUpSource([recorded(noise(9), instruction="caf\udce9")]))
    assert "caf?" in html


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = MadeUpSource(mixed())
    with pytest.raises(ValueError, match="cannot be written"):
        write_inspection(tmp_path / "file" / "r.html", source, MAP, gather_facts(source, MAP))


@needs_chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_report_in_a_browser(tmp_path: Path, width: int, demonstrations: Path) -> None:
    inspect_source(demonstrations, html=tmp_path / "report.html")
    ran = subprocess.run(
        [
            "chromium",
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", "--enable-logging=stderr"),
            "--blink-settings=preferredColorScheme=1",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'report.png'}",
            f"--window-size={width},2400",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    picture = cv2.imread(str(tmp_path / "report.png")).astype(int)
    # `--solved` and `--failed` of the style sheet, as OpenCV reads them: the bar of outcomes is as
    # long as there are episodes.
    lengths = [
        int((np.abs(picture - bgr) <= 2).all(-1)[:900].sum(1).max())
        for bgr in ([0x76, 0x7F, 0x2F], [0xC1, 0xCB, 0xCF])
    ]
    source = open_source(demonstrations)
    found = gather_facts(source, suggest(source)).outcomes
    share = found["success"] / (found["success"] + found["failure"])
    assert lengths[0] / sum(lengths) == pytest.approx(share, abs=0.05)
    # Nothing sticks out of the page on either side.
    margins = np.concatenate([picture[:, :10], picture[:, -10:]], axis=1)
    # Cards cast a slight shadow on them.
    assert (np.abs(margins - picture[0, 0]) < 20).all()
