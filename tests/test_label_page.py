"""The labelling page in a browser, by keyboard alone, and the server behind it."""

import http.client
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.labels import Labels
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.source import Column, Recording, SourceInfo
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.label_reader import LabelReader, Unavailable
from robot_qsft.label_server import serve_labels

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
STEPS = (12, 30, 8, 20, 10, 16)
SUCCESSES = (True, False, False, True, False, False)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes; in frame t both cameras show the grey 8 t."""
    path = tmp_path_factory.mktemp("demos") / "set"
    info = DatasetInfo(
        fps=20,
        action_names=("x",),
        state_names=("p",),
        cameras={"front": Camera(96, 128), "wrist": Camera(64, 64, "image")},
    )
    with DatasetWriter(path, info=info) as writer:
        for steps, success in zip(STEPS, SUCCESSES, strict=True):
            rewards = np.zeros(steps, np.float32)
            rewards[-1] = success
            grey = (8 * np.arange(steps, dtype=np.uint8))[:, None, None, None]
            writer.add_episode(
                Episode(
                    states=np.zeros((steps, 1), np.float32),
                    actions=np.zeros((steps, 1), np.float32),
                    rewards=rewards,
                    successes=rewards > 0,
                    terminated=success,
                    truncated=not success,
                    instruction="put the <b>cube</b> into the bin",
                    images={
                        "front": np.broadcast_to(grey, (steps, 96, 128, 3)),
                        "wrist": np.broadcast_to(grey, (steps, 64, 64, 3)),
                    },
                    environment_states=np.zeros((steps, 0), np.float32),
                )
            )
    return path


MADE_UP = "episode <img src=x onerror=alert(1)> {}"


@dataclass
class MadeUpSource:
    """Any number of episodes of which none is on disk; frame t shows the grey t."""

    episodes: int = 3
    steps: int = 5
    cameras: dict[str, Camera] = field(default_factory=dict)
    reading_s: float = 0.0
    broken: tuple[int, ...] = ()
    short: tuple[int, ...] = ()
    noise: bool = False
    path: Path = Path("/made/up")

    def __post_init__(self) -> None:
        self.info = SourceInfo("made up", {"x": Column("float32")}, cameras=self.cameras)
        self.threads: set[int] = set()
        self.read: list[int] = []
        self.decoded = 0

    def __len__(self) -> int:
        return self.episodes

    def recording(self, index: int) -> Recording:
        self.threads.add(threading.get_ident())
        self.read.append(index)
        time.sleep(self.reading_s)
        if index in self.broken:
            raise ValueError(f"episode {index} of {self.path} is damaged; drop it")
        return Recording(
            MADE_UP.format(index),
            {"x": np.zeros(self.steps, np.float32)},
            "lift",
            Evidence("next.success", index % 2 == 0),
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        self.threads.add(threading.get_ident())
        stored = self.cameras[camera]
        shape = (stored.height, stored.width, 3)
        rng = np.random.default_rng(0)
        for step in range(3 if index in self.short else self.steps):
            self.decoded += 1
            if self.noise:
                yield rng.integers(0, 256, shape, np.uint8)
            else:
                yield np.full(shape, step, np.uint8)

    def files(self) -> tuple[Path, ...]:
        return ()


@dataclass
class Served:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").split(":")[-1])

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content; header names are given with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, **body: Any) -> tuple[int, dict[str, Any]]:
        status, _, content = self.ask(
            "POST", "/api/label", json.dumps(body).encode(), Content_Type="application/json"
        )
        return status, json.loads(content)


SERVE = """
import sys
from pathlib import Path
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.label_server import serve_labels

sys.path.insert(0, str(Path({tests!r})))
if {made_up!r} is None:
    source = LeRobotSource(Path({demos!r}))
else:
    from test_label_page import MadeUpSource, Camera
    source = MadeUpSource(**eval({made_up!r}))
serve_labels(
    source, labels_file=Path({labels!r}), port={port}, by="ada",
    ready=lambda url: print(url, flush=True),
)
"""

Serve = Callable[..., Served]


@pytest.fixture
def serve(demos: Path, process_environment: dict[str, str]) -> Iterator[Serve]:
    """Starts servers of `demos`, or of a source that is made up by the arguments in a text."""
    with ExitStack() as stack:

        def start(labels: Path, *, port: int = 0, made_up: str | None = None) -> Served:
            script = SERVE.format(
                tests=str(Path(__file__).parent),
                made_up=made_up,
                demos=str(demos),
                labels=str(labels),
                port=port,
            )
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script],
                    stdout=subprocess.PIPE,
                    text=True,
                    env=process_environment,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the server did not start"
            return Served(url, process)

        yield start


@pytest.fixture(scope="module")
def browser(launch_chromium: Callable[..., Any]) -> Any:
    return launch_chromium("--disable-gpu")


class Hands:
    """Someone at the keyboard, who reads what the page says."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self._note(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))

    def _note(self, message: str) -> None:
        if not message.startswith("Canvas2D: Multiple readback"):  # it is `greys` that reads
            self.complaints.append(message)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready=true]")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def sees(self, selector: str, text: str) -> None:
        """Waits until an element says exactly this."""
        playwright.expect(self.page.locator(selector)).to_have_text(text, timeout=40_000)

    def sees_saved(self, what: str) -> None:
        self.sees("#status[data-state=saved]", f"Saved: {what}.")

    def rows(self) -> list[str]:
        """The list as it stands: name and state of each row."""
        names = self.page.locator(".row .name").all_inner_texts()
        states = self.page.locator(".row .state").all_inner_texts()
        return [f"{name} | {state}" for name, state in zip(names, states, strict=True)]

    def greys(self) -> list[int]:
        """The middle of every camera's picture."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("canvas")].map((canvas) => canvas
                .getContext("2d")
                .getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[0])"""
        )

    def sees_frame(self, step: int) -> None:
        """Waits until all cameras show a frame, 8 grey levels from the next."""
        self.sees("#frame", str(step))
        deadline_s = time.monotonic() + 40
        while any(abs(grey - 8 * step) > 3 for grey in self.greys()):
            assert time.monotonic() < deadline_s, (step, self.greys())
            time.sleep(0.02)


@pytest.fixture
def hands(browser: Any) -> Iterator[Hands]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    yield Hands(page)
    page.close()


def stored(labels: Path) -> dict[int, tuple[str, int | None]]:
    return {
        row["episode"]: (row["outcome"], row["success_frame"])
        for row in pq.read_table(labels).to_pylist()
    }


@needs_chromium
def test_labels_by_keyboard_and_a_killed_server_loses_nothing(
    serve: Serve, hands: Hands, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.parquet"
    served = serve(labels)
    hands.open(served.url)
    hands.sees("#progress-text", "0 of 6 labelled")
    hands.sees("#name", "episode 0")
    hands.sees("#instruction", "“put the <b>cube</b> into the bin”")
    hands.sees("#recorded", "✓ success")
    hands.sees("#recorded-note", "next.success, frame 11")
    hands.sees("#label", "no label")

    hands.press("s")
    hands.sees_saved("episode 0 is success")
    assert stored(labels) == {0: ("success", None)}
    hands.sees("#name", "episode 1")
    hands.sees("#recorded", "✕ failure")
    hands.press("f")
    hands.sees_saved("episode 1 is failure")
    hands.press("u")
    hands.sees_saved("episode 2 is unclear")
    assert stored(labels) == {0: ("success", None), 1: ("failure", None), 2: ("unclear", None)}
    hands.sees("#progress-text", "3 of 6 labelled")

    hands.press("Shift+ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    hands.sees_frame(11)
    hands.press("m")
    hands.sees_saved("episode 3 is success at frame 11")
    assert stored(labels)[3] == ("success", 11)
    hands.sees("#name", "episode 3")  # a mark may yet be moved
    hands.sees("#label", "✓ success at frame 11")
    hands.press("s")
    hands.sees_saved("episode 3 is success at frame 11")  # and stays when success is confirmed
    hands.sees("#name", "episode 4")
    assert hands.rows()[:5] == [
        "episode 0 | success",
        "episode 1 | failure",
        "episode 2 | unclear",
        "episode 3 | success at frame 11",
        "episode 4 | no label",
    ]

    hands.press("z")
    hands.sees_saved("episode 3 has no label again")
    assert 3 not in stored(labels)
    hands.press("n", "f")
    hands.sees_saved("episode 4 is failure")
    hands.sees("#name", "episode 5")
    hands.sees_frame(0)  # or the killed server would leave its pictures half sent
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    assert stored(labels) == {
        0: ("success", None),
        1: ("failure", None),
        2: ("unclear", None),
        4: ("failure", None),
    }
    row = pq.read_table(labels).to_pylist()[0]
    assert (row["name"], row["source"], row["by"]) == ("episode 0", "person", "ada")

    hands.press("s")
    hands.sees(
        "#status[data-state=error]",
        "Not saved: the server does not answer; start robot-qsft label again.",
    )
    hands.sees("#name", "episode 5")
    assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in hands.complaints)
    serve(labels, port=served.port)
    hands.sees("#status", "The server is back.")
    hands.press("s")
    hands.sees_saved("episode 5 is success. That was the last one")
    hands.open(served.url + "?again")
    hands.sees("#name", "episode 3")  # the first without a label
    hands.sees("#progress-text", "5 of 6 labelled")
    assert hands.rows()[4:] == ["episode 4 | failure", "episode 5 | success"]


@needs_chromium
def test_undo_goes_back_to_the_beginning_of_the_session(
    serve: Serve, hands: Hands, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.parquet"
    served = serve(labels)
    hands.open(served.url)
    hands.press("s")
    hands.sees_saved("episode 0 is success")
    hands.press("ArrowUp", "ArrowRight", "m")
    hands.sees_saved("episode 0 is success at frame 1")
    hands.press("f")
    hands.sees_saved("episode 0 is failure")
    hands.press("f")
    hands.sees_saved("episode 1 is failure")
    hands.page.reload()
    hands.page.wait_for_selector("html[data-ready=true]")
    hands.sees("#name", "episode 2")
    hands.press("z")
    hands.sees_saved("episode 1 has no label again")
    hands.sees("#name", "episode 1")
    hands.press("z")
    hands.sees_saved("episode 0 is success at frame 1 again")
    assert stored(labels) == {0: ("success", 1)}
    hands.press("z")
    hands.sees_saved("episode 0 is success again")
    hands.press("z")
    hands.sees_saved("episode 0 has no label again")
    assert stored(labels) == {}
    assert hands.page.locator("#undo").is_disabled()
    hands.press("z")
    hands.sees(
        "#status[data-state=error]",
        "Not saved: there is nothing to undo in this session; label an episode.",
    )
    assert stored(labels) == {}


@needs_chromium
def test_only_the_unlabelled(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    hands.open(serve(labels).url)
    hands.press("n", "f")
    hands.sees_saved("episode 1 is failure")
    hands.press("p", "g")
    hands.sees("#name", "episode 2")  # 1 has a label
    open_rows = [f"episode {episode} | no label" for episode in (0, 2, 3, 4, 5)]
    assert hands.rows() == open_rows
    hands.press("ArrowUp")
    hands.sees("#name", "episode 0")
    hands.press("ArrowDown", "n")
    hands.sees("#name", "episode 3")
    hands.press("s", "s", "s")
    hands.sees_saved("episode 5 is success")
    hands.sees("#name", "episode 0")  # from the end to the first that is left
    assert hands.rows() == ["episode 0 | no label", "episode 2 | no label"]
    hands.press("u", "u")
    hands.sees_saved("episode 2 is unclear. Every episode has a label")
    hands.sees("#progress-text", "6 of 6 labelled")
    hands.press("z")
    hands.sees_saved("episode 2 has no label again")
    hands.press("/")
    assert len(hands.rows()) == 6
    assert stored(labels) == {
        0: ("unclear", None),
        1: ("failure", None),
        3: ("success", None),
        4: ("success", None),
        5: ("success", None),
    }
    assert hands.complaints == []


@needs_chromium
def test_a_key_that_is_held_labels_one_episode(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    hands.open(serve(labels).url)
    for _ in range(4):
        hands.page.keyboard.down("s")
    hands.page.keyboard.up("s")
    hands.press("f")
    hands.sees_saved("episode 1 is failure")
    assert stored(labels) == {0: ("success", None), 1: ("failure", None)}
    hands.press("Control+s", "Alt+f", "Meta+u")
    hands.press("u")
    hands.sees_saved("episode 2 is unclear")
    assert len(stored(labels)) == 3


@needs_chromium
def test_frames_by_step_by_slider_and_played(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    hands.open(serve(tmp_path / "labels.parquet").url)
    hands.press("n")
    hands.sees_frame(0)
    hands.sees("#frames", "/ 29")
    hands.sees("#time", "0.00 s / 1.45 s")
    hands.press("ArrowRight", "ArrowRight", "ArrowRight")
    hands.sees_frame(3)
    hands.press("Shift+ArrowRight")
    hands.sees_frame(13)
    hands.sees("#time", "0.65 s / 1.45 s")
    hands.press("Shift+ArrowLeft", "Shift+ArrowLeft")
    hands.sees_frame(0)
    hands.press("End")
    hands.sees_frame(29)
    scrubber = hands.page.locator("#scrubber")
    assert scrubber.input_value() == "29"
    assert scrubber.get_attribute("aria-valuetext") == "frame 29 of 29"
    scrubber.focus()
    hands.press("ArrowLeft")
    hands.sees_frame(28)  # one frame with the slider in focus too
    hands.press("Home")
    hands.sees_frame(0)
    begun_s = time.monotonic()
    hands.press("Space")
    hands.sees("#play .word", "Pause")
    hands.sees("#play .word", "Play")  # again, at the end
    hands.sees_frame(29)
    assert time.monotonic() - begun_s > 1.3  # 29 frames at 20 per second
    hands.press("n")  # the next one plays by itself
    hands.sees("#name", "episode 2")
    hands.sees_frame(7)
    assert hands.complaints == []


@needs_chromium
def test_help_and_focus(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    hands.open(serve(labels).url)
    hands.press("?")
    helped = hands.page.locator("#help")
    playwright.expect(helped).to_be_visible()
    hands.press("s")  # labels nothing meanwhile
    hands.press("Escape")
    playwright.expect(helped).to_be_hidden()
    hands.press("?", "?")
    playwright.expect(helped).to_be_hidden()
    assert not labels.exists()

    reached = []
    for _ in range(10):
        hands.press("Tab")
        name, outline = hands.page.evaluate(
            """() => [document.activeElement.id || document.activeElement.dataset.key,
                getComputedStyle(document.activeElement).outlineStyle]"""
        )
        assert outline == "solid", name
        reached.append(name)
        if name == "f":
            hands.press("Enter")
            hands.sees_saved("episode 0 is failure")
    assert reached == ["filter", "list", "scrubber", "play", "s", "f", "u", "m", "undo", "?"]
    unnamed = hands.page.evaluate(
        """() => [...document.querySelectorAll("button, canvas, input, [role]")].filter((one) =>
            !["presentation", "status", "note"].includes(one.role) &&
            !one.ariaLabel && !one.innerText.trim() && one.checkVisibility()).length"""
    )
    assert unnamed == 0
    assert hands.complaints == []


@needs_chromium
def test_ten_thousand_episodes(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    made_up = "dict(episodes=10_000, reading_s=0.01, cameras={'top': Camera(48, 64)})"
    served = serve(labels, made_up=made_up)
    hands.open(served.url + "#9998")
    hands.sees("#name", MADE_UP.format(9998))  # as text, not as an image
    hands.sees("#frames", "/ 4")
    # To read them all takes at least 100 s; nobody waits for that.
    assert "of 10000 episodes" in hands.page.locator("#reading").inner_text()
    hands.sees("#recorded", "reading …")  # a set is judged whole
    assert 0 < hands.page.locator(".row").count() < 40
    hands.press("s", "f")
    hands.sees_saved(f"{MADE_UP.format(9999)} is failure. That was the last one")
    assert "of 10000 episodes" in hands.page.locator("#reading").inner_text()
    assert stored(labels) == {9998: ("success", None), 9999: ("failure", None)}
    assert hands.complaints == []


@needs_chromium
def test_what_cannot_be_read_is_told(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    made_up = "dict(broken=(0,), short=(1,), cameras={'top': Camera(48, 64)})"
    hands.open(serve(labels, made_up=made_up).url)
    hands.sees("#notice", "episode 0 of /made/up is damaged; drop it")
    hands.press("s")
    hands.sees("#status", "Not saved: episode 0 of /made/up is damaged; drop it.")
    assert not labels.exists()
    hands.press("n")
    hands.sees(
        "#notice",
        "camera 'top' of episode 1 has 3 frames, but the episode has 5 steps; mend or drop the "
        "episode",
    )
    hands.press("n")
    playwright.expect(hands.page.locator("#notice")).to_be_hidden()
    hands.sees("#recorded", "✓ success")
    assert hands.rows()[0] == "episode 0 | cannot be labelled"


@needs_chromium
def test_demonstrations_without_a_camera(serve: Serve, hands: Hands, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    hands.open(serve(labels, made_up="dict()").url)
    hands.sees("#notice", "These demonstrations have no camera.")
    hands.sees("#time", "frame rate unknown, played at 10 per second")
    hands.press("ArrowRight", "ArrowRight", "m")
    hands.sees_saved(f"{MADE_UP.format(0)} is success at frame 2")
    assert stored(labels) == {0: ("success", 2)}
    assert hands.complaints == []


def test_other_pages_and_other_names_are_refused(serve: Serve, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    served = serve(labels)
    own = f"127.0.0.1:{served.port}"
    body = json.dumps(
        {"action": "set", "episode": 0, "outcome": "success", "success_frame": None}
    ).encode()
    kind = "application/json"
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"127.0.0.1.evil.example:{served.port}"},
        {"Host": f"127.0.0.1:{served.port}@evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://{own}"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        status, _, content = served.ask("POST", "/api/label", body, Content_Type=kind, **headers)
        assert status == 403 and b"error" in content, headers
        assert served.ask("GET", "/api/episodes?since=0", **headers)[0] == 403, headers
    assert not labels.exists()
    assert (
        served.ask("POST", "/api/label", body, Content_Type=kind, Origin=f"http://{own}")[0] == 200
    )
    assert served.ask("GET", "/", Host="localhost", Sec_Fetch_Site="cross-site")[0] == 200
    assert stored(labels) == {0: ("success", None)}


def test_bodies_and_addresses_that_are_refused(serve: Serve, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    served = serve(labels)
    kind = "application/json"
    for status, body, headers in (
        (415, b"{}", {"Content_Type": "text/plain"}),
        (415, b"{}", {}),
        (413, b" " * 5000, {"Content_Type": kind}),
        (411, None, {"Content_Type": kind, "Content_Length": "-1"}),
        (411, None, {"Content_Type": kind, "Transfer_Encoding": "chunked"}),
        (400, b"{", {"Content_Type": kind}),
        (400, b"[]", {"Content_Type": kind}),
        (400, b"[" * 4000, {"Content_Type": kind}),
        (400, b"\xff", {"Content_Type": kind}),
        (400, b'{"action": "remove"}', {"Content_Type": kind}),
    ):
        answer, _, content = served.ask("POST", "/api/label", body, **headers)
        assert answer == status and "error" in json.loads(content), (status, body)
    label = {"action": "set", "episode": 0, "outcome": "success", "success_frame": None}
    for status, wrong in (
        (404, {"episode": 6}),
        (404, {"episode": -1}),
        (400, {"episode": "0"}),
        (400, {"episode": True}),
        (400, {"action": "steal"}),
        (409, {"outcome": "won"}),
        (409, {"outcome": ["success"]}),
        (409, {"success_frame": 12}),
        (409, {"success_frame": -1}),
        (409, {"success_frame": 1.5}),
        (409, {"outcome": "failure", "success_frame": 1}),
    ):
        answer, content = served.post(**(label | wrong))
        assert answer == status and "\n" not in content["error"], wrong
    for status, path in (
        (404, "/etc/passwd"),
        (404, "/../label_server.py"),
        (404, "/api/frames?episode=0&camera=left&first=0"),
        (404, "/api/frames?episode=9&camera=front&first=0"),
        (400, "/api/frames?episode=0&camera=front&first=-1"),
        (400, "/api/frames?episode=x&camera=front&first=0"),
        (409, "/api/frames?episode=0&camera=front&first=12"),
        (400, "/api/episodes"),
        (404, "/api/label"),
    ):
        answer, headers, content = served.ask("GET", path)
        assert answer == status and "error" in json.loads(content), path
        assert headers["Content-Type"] == "application/json"
    assert served.ask("DELETE", "/api/label")[0] == 501
    assert not labels.exists()


def test_answers_bind_the_browser(serve: Serve, tmp_path: Path) -> None:
    served = serve(tmp_path / "labels.parquet")
    for path in ("/", "/label.js", "/label.css", "/api/source", "/favicon.ico", "/nothing"):
        _, headers, content = served.ask("GET", path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(rb"https?://|innerHTML|insertAdjacentHTML|document\.write", content)


def test_frames_come_in_strips(serve: Serve, tmp_path: Path) -> None:
    served = serve(tmp_path / "labels.parquet")
    frames: list[Image] = []
    while len(frames) < 30:
        status, _, content = served.ask(
            "GET", f"/api/frames?episode=1&camera=front&first={len(frames)}"
        )
        assert status == 200 and content
        while content:
            (size,) = struct.unpack(">I", content[:4])
            jpeg, content = content[4 : 4 + size], content[4 + size :]
            frames.append(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 30
    greys = [int(frame[48, 64, 0]) for frame in frames]
    np.testing.assert_allclose(greys, 8 * np.arange(30), atol=3)


def test_an_interrupted_server_ends_quietly(serve: Serve, tmp_path: Path) -> None:
    served = serve(tmp_path / "labels.parquet")
    assert served.post(action="set", episode=1, outcome="unclear", success_frame=None)[0] == 200
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=30) == 0
    Labels.edit(tmp_path / "labels.parquet", episodes=6).close()


def test_what_keeps_the_page_from_being_served(serve: Serve, demos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    source = LeRobotSource(demos)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be had .*--port"):
            serve_labels(source, labels_file=labels, port=port, by="ada")
    with pytest.raises(ValueError, match="port should be from 0 to 65535, but 70000 came"):
        serve_labels(source, labels_file=labels, port=70_000, by="ada")
    with pytest.raises(ValueError, match="expected episodes to label in /made/up, but it has none"):
        serve_labels(MadeUpSource(episodes=0), labels_file=labels, port=0, by="ada")
    served = serve(labels)
    with pytest.raises(ValueError, match="another process is changing the labels"):
        serve_labels(source, labels_file=labels, port=0, by="ada")
    served.process.kill()
    served.process.wait()
    Labels.edit(labels, episodes=6).close()  # a lock dies with its process


def test_labels_of_another_source_are_told_and_left_alone(serve: Serve, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    label = {"action": "set", "episode": 0, "outcome": "failure", "success_frame": None}
    first = serve(labels, made_up="dict()")
    assert first.post(**label)[0] == 200
    first.process.kill()
    first.process.wait()
    before = labels.read_bytes()
    status, answer = serve(labels).post(**label)
    assert status == 409 and "but the source calls it 'episode 0'" in answer["error"]
    assert labels.read_bytes() == before


CAMERAS = {"left": Camera(48, 64), "right": Camera(32, 32)}


def test_one_thread_reads_and_what_is_waited_for_goes_first() -> None:
    source = MadeUpSource(episodes=400, reading_s=0.005, cameras=CAMERAS)
    told: list[int] = []
    with LabelReader(source, report=told.append) as reader:
        assert reader.facts(399).name == MADE_UP.format(399)
        assert reader.strip(398, camera="right", first=0, count=2, ahead=False)
        assert len(source.read) < 100 and reader.known(300) is None
        assert len(source.threads) == 1 and threading.get_ident() not in source.threads
    assert told == source.read[: len(told)] and len(set(told)) == len(told)


def test_frames_are_decoded_once() -> None:
    source = MadeUpSource(steps=20, cameras=CAMERAS)
    with LabelReader(source, report=lambda episode: None) as reader:
        for camera in ("left", "right", "left"):
            greys: list[int] = []
            while len(greys) < 20:
                for jpeg in reader.strip(1, camera=camera, first=len(greys), count=7, ahead=False):
                    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
                    greys.append(int(image[0, 0, 0]))
            np.testing.assert_allclose(greys, np.arange(20), atol=2)
    assert source.decoded == 40


def test_frames_get_smaller_so_that_any_length_fits() -> None:
    budget = 10_000_000  # noise of 64x64 takes about 6 kB: 6,000 frames of it 36 MB
    source = MadeUpSource(
        episodes=6, steps=500, cameras={"a": Camera(64, 64), "b": Camera(64, 64)}, noise=True
    )
    with LabelReader(source, report=lambda episode: None, budget=budget) as reader:
        for episode in range(6):
            for step in (0, 250, 499):
                while not reader.strip(episode, camera="b", first=step, count=1, ahead=False):
                    pass
            kept = sum(film.size for film in reader._films.values())
            assert kept <= budget
        jpegs = reader.strip(5, camera="a", first=499, count=1, ahead=False)
        assert 32 <= cv2.imdecode(np.frombuffer(jpegs[0], np.uint8), 1).shape[0] < 64


def test_an_episode_beyond_any_bound_is_told() -> None:
    source = MadeUpSource(steps=400, cameras={"a": Camera(64, 64)}, noise=True)
    with (
        LabelReader(source, report=lambda episode: None, budget=40_000) as reader,
        pytest.raises(ValueError, match="episode 0 has too many frames to be shown, 400 of each"),
    ):
        for step in range(400):
            reader.strip(0, camera="a", first=step, count=1, ahead=False)


def test_a_request_does_not_wait_for_ever() -> None:
    source = MadeUpSource(reading_s=0.5, cameras=CAMERAS)
    with LabelReader(source, report=lambda episode: None) as reader:
        with pytest.raises(Unavailable, match="episode 2 is still being read"):
            reader.facts(2, timeout_s=0.05)
        assert reader.facts(2).length == 5


def test_a_reader_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = MadeUpSource(cameras=CAMERAS)
    whole = source.recording
    source.recording = lambda index: whole(index) if index else {}["demo_0"]  # type: ignore
    with LabelReader(source, report=lambda episode: None) as reader:
        assert reader.facts(0).problem == "the episode cannot be read (KeyError: 'demo_0'); drop it"
        assert reader.facts(1).problem == ""
    assert "a reader failed" in caplog.text
