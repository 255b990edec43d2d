"""Cameras beside the arm: each has a thread of its own, and the newest picture is what counts."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from robot_qsft.datasets.interface import Image
from robot_qsft.hardware.arms.simulated import SimulatorClient
from robot_qsft.hardware.robot import RobotError

_AGAIN_S = 0.2


class Camera(Protocol):
    """Something that takes pictures; used by one thread."""

    def picture(self) -> Image:
        """The next picture, RGB uint8 (H, W, 3); may wait for it.

        Raises:
            RobotError: when there is none.
        """

    def close(self) -> None:
        """Let go of the device."""


class OpenCVCamera:
    """A camera that the system knows, by OpenCV."""

    def __init__(self, device: str):
        """Open it: a number, a device file, or an address that OpenCV reads.

        Raises:
            RobotError: when it cannot be opened.
        """
        # What it complains of, RobotError says.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._device = device
        self._capture = cv2.VideoCapture(int(device) if device.isdecimal() else device)
        if not self._capture.isOpened():
            raise RobotError(
                f"the camera {device!r} cannot be opened; is it plugged in, or in use?"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not the oldest

    def picture(self) -> Image:
        """See `Camera`."""
        fine, bgr = self._capture.read()
        if not fine:
            raise RobotError(f"the camera {self._device!r} gives no pictures")
        rgb: Image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        return rgb

    def close(self) -> None:
        """See `Camera`."""
        self._capture.release()


class SimulatedCamera:
    """A camera of `robot-qsft simulate`."""

    def __init__(self, address: str, name: str):
        """Connect to the simulated arm at host:port.

        Raises:
            RobotError: when nothing answers there.
        """
        self._client = SimulatorClient(address)
        self._name = name

    def picture(self) -> Image:
        """See `Camera`."""
        image: Image = self._client.ask("image", camera=self._name)["image"]
        return image

    def close(self) -> None:
        """See `Camera`."""
        self._client.close()


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and when it was taken, by `time.monotonic`."""

    image: Image
    taken_s: float


class Cameras:
    """Several cameras, each read by a thread as fast as it gives pictures."""

    def __init__(self, cameras: Mapping[str, Camera], *, hz: float):
        """Begin to read, each camera at most `hz` times a second."""
        self._cameras = dict(cameras)
        self._period_s = 1 / hz
        self._newest: dict[str, Picture] = {}
        self._trouble: dict[str, str] = {}
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=(name,), name=f"camera {name}", daemon=True)
            for name in cameras
        ]
        for thread in self._threads:
            thread.start()

    def newest(self) -> Mapping[str, Picture]:
        """The newest picture of every camera that has given one."""
        return dict(self._newest)

    def objection(self, now_s: float, *, stale_s: float) -> str:
        """Why the pictures are of no use, such as a camera that froze; "" where they are."""
        for name in self._cameras:
            picture = self._newest.get(name)
            if picture is None or now_s - picture.taken_s > stale_s:
                why = self._trouble.get(name, "no new picture")
                return f"the camera {name!r} has frozen: {why}"
        return ""

    def close(self) -> None:
        """Stop reading and let go of the devices."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for camera in self._cameras.values():
            with suppress(RobotError):
                camera.close()

    def _read(self, name: str) -> None:
        camera = self._cameras[name]
        next_s = time.monotonic()
        while not self._ended.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + self._period_s, time.monotonic())
            try:
                image = camera.picture()
            except RobotError as error:
                self._trouble[name] = str(error)
                next_s = time.monotonic() + _AGAIN_S
                continue
            self._trouble.pop(name, None)
            self._newest[name] = Picture(image, time.monotonic())
