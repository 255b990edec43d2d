"""robosuite and MuJoCo, imported so that they render without a display and say nothing unasked."""

import ctypes
import ctypes.util
import functools
import importlib
import logging
import os
import warnings
from typing import Any

_PACKAGES = "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)"
_EGL_PLATFORM_DEVICE_EXT = 0x313F


def import_robosuite(*, log: bool) -> Any:
    """The package robosuite.

    Args:
        log: whether its own warnings are printed, from now on.

    Raises:
        ValueError: when it is not installed, or not in a version that works.
    """
    logging.getLogger("robosuite_logs").disabled = not log
    renderer = _choose_renderer()
    # MuJoCo loads the library as it is imported, and fails where there is none.
    os.environ["MUJOCO_GL"] = renderer or "disabled"
    try:
        with warnings.catch_warnings():
            if not log:
                warnings.simplefilter("ignore")
            robosuite = importlib.import_module("robosuite")
    except ImportError as error:
        raise ValueError(
            f"robosuite cannot be imported ({error}); pip install 'robot-qsft[robosuite]'"
        ) from error
    finally:
        # robosuite puts "egl" here, which worker processes would inherit.
        os.environ["MUJOCO_GL"] = renderer or "disabled"
    if not robosuite.__version__.startswith("1.5"):
        raise ValueError(
            f"robosuite 1.5 is needed, got {robosuite.__version__}; "
            "pip install 'robot-qsft[robosuite]'"
        )
    return robosuite


def make_gl_context(size: int) -> Any:
    """An OpenGL context without a display, of at least `size` pixels.

    Raises:
        ValueError: naming the packages, when neither EGL nor OSMesa works here.
    """
    renderer = _choose_renderer()
    if renderer is None:
        raise ValueError(
            "robosuite cannot render here: neither EGL nor OSMesa works (if MUJOCO_GL names one, "
            f"only that is tried); install them with {_PACKAGES}, or ask for no cameras"
        )
    try:
        context = importlib.import_module(f"mujoco.{renderer}").GLContext(size, size)
        context.make_current()
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"robosuite cannot render here: {renderer} fails ({error}); mend it with {_PACKAGES}, "
            "or set MUJOCO_GL to osmesa or egl"
        ) from error
    return context


@functools.cache
def _choose_renderer() -> str | None:
    """What the user set, else EGL where it works, else OSMesa; None where neither does."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    works = {"egl": _egl_works, "osmesa": _osmesa_works}
    for renderer in (asked,) if asked in works else works:
        if works[renderer]():
            return renderer
    return None


def _osmesa_works() -> bool:
    return ctypes.util.find_library("OSMesa") is not None


def _egl_works() -> bool:
    """Whether EGL offers a device that can be initialised, as MuJoCo will ask of it.

    Asked of the library itself: once MuJoCo tried EGL in vain, this process cannot have OSMesa.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_of = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    signature = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    if not signature(query)(16, ctypes.addressof(devices), ctypes.addressof(count)):
        return False
    get_display = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
    )(display_of)
    egl.eglInitialize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    displays = (
        get_display(_EGL_PLATFORM_DEVICE_EXT, device, None) for device in devices[: count.value]
    )
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
