import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from robot_qsft.calibration import Calibration
from robot_qsft.intervals import Estimate, paired_difference, spearman, wilson
from robot_qsft.report import (
    DataSummary,
    Difference,
    Example,
    Film,
    Method,
    Outcomes,
    ReportContents,
    ValueTrace,
    write_report,
)
from robot_qsft.report_figures import (
    histogram,
    number,
    outcome_strip,
    reliability_bins,
    reliability_chart,
    ticks,
    trace_chart,
)

NAN = float("nan")
HEADINGS = [
    "Who solves the task",
    "The difference, start state by start state",
    "One episode of each",
    "The value along an episode",
    "Predicted against actual",
    "What the data looked like",
    "Facts",
]
SUCCESSES = {"BC sampled": 16, "BC greedy": 28, "Filtered BC": 0, "Q-SFT": 90}
# `--method-…` of the style sheet, as OpenCV reads a screenshot.
COLOURS_BGR = {"BC sampled": 0xE9B456, "BC greedy": 0xB27200, "Q-SFT": 0x005ED5}

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


def make_contents() -> ReportContents:
    rng = np.random.default_rng(0)
    start_states = np.arange(100)
    methods = tuple(
        Method(name, f"description of {name}", start_states < count, wilson(start_states < count))
        for name, count in SUCCESSES.items()
    )
    difference = paired_difference(methods[3].successes, methods[1].successes)
    frames = rng.integers(0, 255, (9, 32, 32, 3), np.uint8)
    trace = ValueTrace(
        "start state 7", np.linspace(0.5, 1, 9), 0.97 ** np.arange(9)[::-1], frames[::4], (0, 4, 8)
    )
    episodes = np.repeat(np.arange(20), 9)
    returns = np.tile(trace.returns, 20) * (episodes % 2)
    values = np.clip(returns + rng.normal(scale=0.1, size=180), 0, 1)
    return ReportContents(
        title="Stitching",
        summary="Q-SFT solves 90% and BC 28%.",
        methods=methods,
        difference=Difference("Q-SFT", "BC greedy", difference),
        films=tuple(Film(name, frames, name == "Q-SFT", 7, 10.0) for name in SUCCESSES),
        value_method="Q-SFT",
        succeeding=trace,
        failing=replace(trace, returns=np.zeros(9)),
        calibration=Calibration(
            values, returns, episodes, spearman(values, returns, episodes, rng)
        ),
        data=DataSummary(
            fps=10.0,
            outcomes=(Outcomes("stitch/prior", 0, 600, 0), Outcomes("stitch/task", 246, 350, 4)),
            lengths=np.full(1200, 20),
            actions=rng.uniform(-1, 1, (500, 2)),
            action_names=("x", "gripper_open"),
            examples=(Example(frames[0], "before the grasp"),),
        ),
        facts={"training": "6 min 12 s", "commit": "3f9c2ab"},
    )


def written(tmp_path: Path, contents: ReportContents) -> str:
    path = tmp_path / "report.html"
    write_report(path, contents)
    return path.read_text(encoding="utf-8")


def chromium(tmp_path: Path, *options: str) -> str:
    """What headless Chromium prints for the report in `tmp_path`; fails where it refuses a part."""
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    ran = subprocess.run(
        ["chromium", *quiet, *options, (tmp_path / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Only lines of the page's own console: Chromium complains of other things, too.
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return ran.stdout


class VisibleText(HTMLParser):
    def __init__(self):
        super().__init__()
        self.words, self._hidden = [], False

    def handle_starttag(self, tag, attrs):
        self._hidden = tag in ("style", "script")
        self.words += [value for name, value in attrs if name in ("alt", "aria-label")]

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)


def visible_text(html: str) -> str:
    parser = VisibleText()
    parser.feed(html)
    return " ".join(" ".join(parser.words).split())


@needs_chromium
def test_report_in_a_browser(tmp_path):
    write_report(tmp_path / "report.html", make_contents())
    html = chromium(tmp_path, "--dump-dom")
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", html) == HEADINGS
    assert re.findall(r'class="fill" style="width:([\d.]+)%', html) == [
        "16.00",
        "28.00",
        "0.00",
        "90.00",
    ]
    assert html.count("<video ") == 4
    text = visible_text(html)
    assert "Q-SFT: 90% of 100 start states, 95% interval 83% to 94%" in text
    assert "+62 points" in text
    assert "both solve 28, only Q-SFT solves 62, only BC greedy 0, neither 10" in text
    assert "0.67 hours at 10 Hz" in text
    assert not re.search(r"\b(nan|inf|None|undefined)\b", text, re.IGNORECASE)


@needs_chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_bars_are_as_long_as_the_success_is_large(tmp_path, width):
    write_report(tmp_path / "report.html", replace(make_contents(), films=()))
    screenshot = tmp_path / "report.png"
    light = "--blink-settings=preferredColorScheme=1"
    chromium(tmp_path, f"--screenshot={screenshot}", f"--window-size={width},2400", light)
    picture = cv2.imread(str(screenshot)).astype(int)
    assert picture.shape == (2400, width, 3)
    lengths = {}
    for name, colour in COLOURS_BGR.items():
        bgr = [colour >> 16, colour >> 8 & 255, colour & 255]
        painted = (np.abs(picture - bgr) <= 2).all(-1)[:800].sum(1)
        lengths[name] = painted.max()
    assert lengths["BC greedy"] / lengths["BC sampled"] == pytest.approx(28 / 16, rel=0.1)
    assert lengths["Q-SFT"] / lengths["BC greedy"] == pytest.approx(90 / 28, rel=0.1)


def test_report_needs_no_network(tmp_path):
    html = written(tmp_path, make_contents())
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    sources = re.findall(r'(?:src|href)="([^"]{0,16})', html)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", html)) == html.count("<img ")


def test_report_appears_whole_or_not_at_all(tmp_path):
    contents = make_contents()
    written(tmp_path, contents)
    broken = replace(
        contents, films=(replace(contents.films[0], frames=np.zeros((0, 8, 8, 3), np.uint8)),)
    )
    with pytest.raises(ValueError, match="frames must be"):
        written(tmp_path, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "Stitching" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_text_is_escaped(tmp_path):
    contents = make_contents()
    evil = '<script>alert("1")</script>&'
    methods = (*contents.methods[:3], replace(contents.methods[3], name=evil, description=evil))
    data = replace(
        contents.data,
        action_names=(evil, evil),
        outcomes=(Outcomes(evil, 1, 2, 3),),
        examples=(Example(contents.data.examples[0].image, evil),),
    )
    html = written(
        tmp_path,
        replace(
            contents,
            title=evil,
            summary=evil,
            methods=methods,
            difference=replace(contents.difference, first=evil),
            films=(replace(contents.films[3], method=evil),),
            value_method=evil,
            succeeding=replace(contents.succeeding, label=evil),
            data=data,
            facts={evil: evil},
        ),
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") > 15


def test_what_is_not_finite_or_not_there_is_said(tmp_path):
    contents = make_contents()
    nothing = np.full(180, NAN)
    unknown = Estimate(NAN, NAN, NAN, 0)
    data = replace(
        contents.data,
        outcomes=(Outcomes("", 0, 0, 0),),
        lengths=np.zeros(0, int),
        actions=np.full((3, 2), NAN),
        examples=(),
    )
    html = written(
        tmp_path,
        replace(
            contents,
            methods=tuple(replace(method, rate=unknown) for method in contents.methods),
            difference=replace(contents.difference, estimate=unknown),
            films=(),
            succeeding=None,
            failing=replace(contents.failing, values=np.full(9, NAN)),
            calibration=replace(contents.calibration, values=nothing, rank_correlation=unknown),
            data=data,
        ),
    )
    text = visible_text(html)
    assert "There was no such episode." in text
    assert "No step has both a predicted value and a return." in text
    assert "One episode of each" not in text
    body = html[html.index("<body>") :]
    assert not re.search(r"\b(nan|inf|None)\b", body)


def test_names_must_be_those_of_the_methods():
    with pytest.raises(AssertionError, match="not among the methods"):
        replace(make_contents(), value_method="Q-learning")


def test_reliability_bins_by_hand():
    predicted = np.array([0.11, 0.15, 0.19, 0.15, 0.95, 1.0])
    actual = np.array([0.0, 0.0, 0.4, 0.4, 0.9, 1.0])
    episodes = np.array([0, 0, 1, 1, 2, 2])
    low, high = reliability_bins(predicted, actual, episodes)
    # Mean 0.2; deviations of the two episodes −0.4 and +0.4; √(2/1·(0.16 + 0.16))/4 = 0.2.
    assert (low.predicted, low.actual, low.steps) == pytest.approx((0.15, 0.2, 4))
    assert (low.low, low.high) == pytest.approx((0.2 - 1.96 * 0.2, 0.2 + 1.96 * 0.2), abs=1e-4)
    # One episode tells nothing of how episodes differ.
    assert (high.predicted, high.actual, high.steps) == pytest.approx((0.975, 0.95, 2))
    assert np.isnan([high.low, high.high]).all()


def test_reliability_chart_leaves_out_what_is_not_finite():
    values, episodes = np.array([0.2, NAN, 0.8]), np.arange(3)
    chart = reliability_chart(values, np.array([0.0, 1.0, 1.0]), episodes, colour="red")
    assert chart is not None
    assert chart.count("<circle") == 2
    assert reliability_chart(values[:1], np.array([NAN]), episodes[:1], colour="red") is None


def test_trace_breaks_where_a_value_is_missing():
    chart = trace_chart(np.array([0.2, NAN, 0.4, 0.5]), np.zeros(4), [0], colour="red")
    (path,) = re.findall(r'class="series" d="([^"]*)"', chart)
    assert [command[0] for command in path.split() if not command[0].isdigit()] == ["M", "M", "L"]


def test_trace_of_one_step():
    assert "<svg" in trace_chart(np.array([1.0]), np.array([1.0]), [0], colour="red")


@pytest.mark.parametrize(
    ("samples", "counts"),
    [([-1.0, 1.0, 1.0], [1, 0, 2]), ([0.5], [1]), ([3.0, 3.0], [2]), ([], [0]), ([NAN], [0])],
)
def test_histogram_counts(samples, counts):
    chart = histogram(np.array(samples), name="x", colour="red")
    shown = [int(count) for count in re.findall(r": (\d+)</title>", chart)]
    assert sum(shown) == sum(counts)
    if len(samples) != 1:
        assert shown == counts


def test_outcome_strip_has_one_cell_per_start_state():
    strip = outcome_strip(np.array([True, False, True]), name="BC", colour="red")
    assert re.findall(r'rect class="(\w+)" x="(\d)"', strip) == [
        ("solved", "0"),
        ("unsolved", "1"),
        ("solved", "2"),
    ]


def test_numbers_are_written_for_reading():
    assert [number(0.126), number(-3.0, ".0f"), number(NAN)] == ["0.13", "−3", "–"]
    assert [text for _, text in ticks((-0.2, 0.5), count=5)] == ["−0.2", "0", "0.2", "0.4"]
    assert [text for _, text in ticks((0.0, 2.0), count=8, whole=True)] == ["0", "1", "2"]
