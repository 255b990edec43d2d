"""The operator's page in a real browser: what it shows, and that STOP stops."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
pytest.importorskip("viser", reason="the page's packages are not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from playwright import sync_api as playwright
from test_runtime import PANDA, Bridge

from robot_qsft.hardware.config import ControlConfig, RuntimeConfig
from robot_qsft.hardware.deployment import Deployment
from robot_qsft.hardware.page import Page
from robot_qsft.hardware.states import State
from robot_qsft.hardware.urdf import rods_urdf

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
_PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser(launch_chromium: Callable[..., Any]) -> Any:
    # The arm is WebGL.
    return launch_chromium("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Operator:
    """Someone at the page of a running bridge."""

    def __init__(self, bridge: Bridge, page: Any):
        self.bridge = bridge
        self.page = page

    def sees(self, state: State) -> None:
        where = self.page.locator("#state")
        playwright.expect(where).to_have_text(state.name, timeout=_PATIENCE_MS)

    def presses(self, key: str) -> None:
        self.page.keyboard.press(key)

    def presses_until(self, key: str, state: State) -> None:
        """Again and again: a page that is still loading does not hear keys."""
        where = self.page.locator("#state")
        end_s = time.monotonic() + _PATIENCE_MS / 1000
        while time.monotonic() < end_s:
            self.presses(key)
            with contextlib.suppress(AssertionError):
                playwright.expect(where).to_have_text(state.name, timeout=1000)
                return
        raise AssertionError(f"{where.inner_text()} instead of {state.name}")

    def starts(self) -> None:
        self.sees(State.READY)
        self.presses_until("a", State.ARMED)
        self.presses("n")
        self.presses_until("r", State.RUNNING)


@pytest.fixture
def operator(browser: Any) -> Iterator[Operator]:
    with contextlib.ExitStack() as running:
        # A browser without a graphics card leaves little of two cores to the rest.
        config = RuntimeConfig(instruction="turn", camera_stale_s=10.0)
        control = ControlConfig(stale_s=3.0, late_s=5.0)
        bridge = Bridge(running, config, control)
        bridge.policy.speed_rad = 0.003
        bridge.wait_for(lambda period: bool(bridge.cameras.newest()))
        deployment = Deployment(bridge.runtime, config, recorder=None, by="a test")
        served = Page(bridge.runtime, deployment, bridge.cameras, PANDA, port=0)
        running.callback(served.close)
        page = browser.new_page(viewport={"width": 900, "height": 700})
        running.callback(page.close)
        page.goto(served.address)
        yield Operator(bridge, page)


def shot(page: Any, name: str) -> None:
    """Keep a picture for people to look at, where they ask for it."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_the_space_bar_stops_the_arm(operator: Operator) -> None:
    operator.starts()
    operator.bridge.wait_for(lambda period: period.commanded_rad_s[0] > 0.01)
    shot(operator.page, "running")
    operator.presses("Space")
    operator.sees(State.HOLD)
    assert operator.bridge.loop.ports.newest().reason == "stopped by the operator"
    operator.bridge.rest()
    shot(operator.page, "hold")
    body = operator.page.locator("body")
    for sentence in ("stopped by the operator", "STOP here is no safety function."):
        playwright.expect(body).to_contain_text(sentence, timeout=_PATIENCE_MS)
    operator.presses("s")
    playwright.expect(body).to_contain_text("ended (success); not kept", timeout=_PATIENCE_MS)


def test_the_stop_button_stops_the_arm_while_the_server_is_gone(operator: Operator) -> None:
    operator.starts()
    operator.bridge.served.close()
    operator.page.get_by_role("button", name="STOP (space bar)").click()
    operator.sees(State.HOLD)
    playwright.expect(operator.page.locator("body")).to_contain_text(
        "no connection to ws://", timeout=_PATIENCE_MS
    )


def test_faults_are_shown_and_reset(operator: Operator) -> None:
    operator.sees(State.READY)
    operator.bridge.simulated.emergency_stop()
    operator.sees(State.FAULT)
    shot(operator.page, "fault")
    operator.bridge.simulated.release()
    operator.presses("e")
    operator.sees(State.READY)


def test_rods_make_a_urdf_with_the_same_kinematics() -> None:
    import io

    import numpy as np
    import yourdfpy

    from robot_qsft.hardware.kinematics import Chain

    drawn = yourdfpy.URDF.load(io.StringIO(rods_urdf(PANDA)))
    positions_rad = np.array([0.3, 0.4, -0.2, -1.9, 0.5, 2.2, 0.1])
    drawn.update_cfg(positions_rad)
    np.testing.assert_allclose(
        drawn.get_transform("link7", "link0"), Chain(PANDA).frames(positions_rad)[6], atol=1e-9
    )
