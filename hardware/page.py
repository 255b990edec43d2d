"""The operator's page: what the arm and the policy do, and a big STOP.

It is drawn by viser, on this machine, and needs no network to the policy's server.
"""

import io as text_io
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import viser
import yourdfpy
from viser import uplot
from viser.extras import ViserUrdf

from robot_qsft.datasets.interface import Image
from robot_qsft.hardware.cameras import Cameras
from robot_qsft.hardware.deployment import Deployment
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.loop_ports import Period
from robot_qsft.hardware.runtime import Runtime
from robot_qsft.hardware.states import State
from robot_qsft.hardware.urdf import rods_urdf

_HZ = 10.0
_HISTORY_S = 20.0
_LEAST_PIXELS = 320
_COMMANDED = (0.1, 0.6, 0.9, 0.35)
_AHEAD = (230, 120, 20)
_NO_SAFETY = (
    "**STOP here is no safety function.** It asks software to bring the arm to rest. For safety "
    "use the arm's emergency stop and what your risk assessment asks for."
)
_BIG_STOP = (
    '<style>button[style*="mantine-color-red-filled"]'
    "{height:4.5em!important;font-size:1.5em}#state{margin-bottom:.6em}</style>"
)
"""viser has buttons of one size; STOP is the only red one."""
_COLOURS = {
    State.DISCONNECTED: "#777777",
    State.READY: "#3b6ea5",
    State.ARMED: "#b07a00",
    State.RUNNING: "#1c8a3b",
    State.HOLD: "#b05000",
    State.FAULT: "#b00020",
}


class Page:
    """The page of one arm."""

    def __init__(
        self,
        runtime: Runtime,
        deployment: Deployment,
        cameras: Cameras,
        description: RobotDescription,
        *,
        port: int,
    ):
        """Serve the page at 127.0.0.1.

        Args:
            runtime: of the arm.
            deployment: that the buttons speak to.
            cameras: to show.
            description: of the arm.
            port: to listen on.
        """
        self._runtime = runtime
        self._deployment = deployment
        self._cameras = cameras
        self._chain = Chain(description)
        self._server = viser.ViserServer("127.0.0.1", port, label="robot_qsft", verbose=False)
        self.address = f"http://127.0.0.1:{self._server.get_port()}"
        rows = int(_HISTORY_S * _HZ)
        self._times_s: deque[float] = deque(maxlen=rows)
        self._curves = {
            name: deque[float](maxlen=rows)
            for name in ("value", "log likelihood", "late ms", "age ms")
        }
        self._begin_s = time.monotonic()
        self._draw_arm(description)
        self._add_controls()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the page down."""
        self._ended.set()
        self._thread.join()
        self._server.stop()

    def _draw_arm(self, description: RobotDescription) -> None:
        scene = self._server.scene
        scene.add_grid("/floor", width=2.0, height=2.0, cell_size=0.1)
        self._server.initial_camera.position = (1.6, -1.2, 1.0)
        self._server.initial_camera.look_at = (0.3, 0.0, 0.4)
        text = Path(description.urdf).read_text() if description.urdf else rods_urdf(description)
        arms = [yourdfpy.URDF.load(text_io.StringIO(text)) for _ in range(2)]
        self._measured = ViserUrdf(self._server, arms[0], root_node_name="/measured")
        self._commanded = ViserUrdf(
            self._server, arms[1], root_node_name="/commanded", mesh_color_override=_COMMANDED
        )
        inside = description.workspace.inside
        low_m, high_m = np.array(inside.low_m), np.array(inside.high_m)
        scene.add_box(
            "/workspace",
            dimensions=tuple(high_m - low_m),
            position=tuple((low_m + high_m) / 2),
            color=(90, 160, 90),
            wireframe=True,
        )

    def _add_controls(self) -> None:
        gui, deployment = self._server.gui, self._deployment
        # No share button: it would send the page to somebody else's server.
        gui.configure_theme(control_width="large", show_share_button=False, show_logo=False)
        gui.main_panel.dock_right()
        gui.add_html(_BIG_STOP)
        self._banner = gui.add_html("")
        self._button("STOP (space bar)", deployment.stop, "space", colour="red")
        gui.add_markdown(_NO_SAFETY)
        self._said = gui.add_markdown("")
        with gui.add_folder("Episode"):
            self._button("New episode (n)", deployment.begin, "N")
            self._button("Arm (a)", deployment.arm, "A", colour="yellow")
            self._button("Run (r)", deployment.run, "R", colour="green")
            self._button("Disarm (d)", deployment.disarm, "D")
            self._button("Reset a fault (e)", deployment.reset, "E")
            self._button("It succeeded (s)", lambda: deployment.end("success"), "S")
            self._button("It failed (f)", lambda: deployment.end("failure"), "F")
            self._button("Cannot be told (u)", lambda: deployment.end("unclear"), "U")
        with gui.add_folder("Cameras"):
            self._images = {
                name: gui.add_image(_enlarged(picture.image), label=name, format="jpeg")
                for name, picture in self._cameras.newest().items()
            }
        with gui.add_folder("Policy"):
            self._plots = {
                title: gui.add_uplot(
                    (np.zeros(1), *(np.zeros(1) for _ in names)),
                    (
                        uplot.Series(label="s"),
                        *(
                            uplot.Series(label=name, stroke=colour, width=2)
                            for name, colour in names.items()
                        ),
                    ),
                    title=title,
                    scales={"x": uplot.Scale(time=False)},
                    aspect=2.5,
                )
                for title, names in _PLOTS.items()
            }

    def _button(
        self, label: str, do: Callable[[], None], key: str, *, colour: str | None = None
    ) -> None:
        """A button, and the key that does the same."""
        button = self._server.gui.add_button(label, color=colour)  # type: ignore[arg-type]
        command = self._server.gui.add_command(label, hotkey=key)  # type: ignore[arg-type]
        button.on_click(lambda _: do())
        command.on_trigger(lambda _: do())

    def _run(self) -> None:
        while not self._ended.wait(1 / _HZ):
            self._show(self._runtime.newest())

    def _show(self, period: Period) -> None:
        self._measured.update_cfg(period.measured.positions_rad)
        if np.isfinite(period.commanded_rad).all():
            self._commanded.update_cfg(period.commanded_rad)
        targets_CX = self._runtime.ahead()
        if len(targets_CX) > 1:
            points = np.array([self._chain.tool(one[:-1])[:3, 3] for one in targets_CX])
            self._server.scene.add_line_segments(
                "/ahead",
                np.stack([points[:-1], points[1:]], axis=1),
                _AHEAD,
                thickness=4.0,
                thickness_units="screen",
            )
        for name, picture in self._cameras.newest().items():
            if name in self._images:
                self._images[name].image = _enlarged(picture.image)
        self._banner.content = (
            f'<div id="state" style="background:{_COLOURS[period.state]};color:white;'
            f'font:bold 1.4em sans-serif;padding:.5em;text-align:center">{period.state.name}</div>'
        )
        told = [period.reason, self._deployment.said, self._runtime.trouble, period.objection]
        told.append(f"answers take {self._runtime.latency_s * 1e3:.0f} ms")
        self._said.content = "\n\n".join(dict.fromkeys(line for line in told if line))
        self._plot(period)

    def _plot(self, period: Period) -> None:
        self._times_s.append(time.monotonic() - self._begin_s)
        self._curves["value"].append(period.value)
        self._curves["log likelihood"].append(self._runtime.log_likelihood)
        self._curves["late ms"].append(period.late_s * 1e3)
        self._curves["age ms"].append(period.age_s * 1e3)
        times_s = np.array(self._times_s)
        for title, names in _PLOTS.items():
            self._plots[title].data = (times_s, *(np.array(self._curves[name]) for name in names))


def _enlarged(image: Image) -> Image:
    """An image that people can see something in, however small the policy's are."""
    times = max(1, _LEAST_PIXELS // image.shape[1])
    return image.repeat(times, axis=0).repeat(times, axis=1)


_PLOTS = {
    "value": {"value": "#1c8a3b"},
    "behaviour log likelihood": {"log likelihood": "#3b6ea5"},
    "lateness and age": {"late ms": "#b00020", "age ms": "#b07a00"},
}
"""Title to curves and their colours."""
