import ctypes.util
import gc
import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.robosuite import engine
from robot_qsft.sim.robosuite.camera import CameraRenderer
from robot_qsft.sim.robosuite.config import CAMERAS, TASKS, RobosuiteConfig

if importlib.util.find_spec("robosuite") is None:
    pytest.skip("robosuite is not installed", allow_module_level=True)

MESHES = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum", "mesh_vert")
BOTH = ("agentview", "wrist")
KEPT = 6
"""Environments that are open at a time: each takes 300 MB."""


@pytest.fixture(scope="module")
def environment_of():
    """Makes environments, which the tests of this file share; loading meshes takes the time."""
    made = {}

    def environment(config):
        made[config] = made.pop(config, None) or make_environment(config)
        if len(made) > KEPT:
            made.pop(next(iter(made))).close()
        return made[config]

    yield environment
    for one in made.values():
        one.close()


@pytest.fixture
def _opengl():
    if engine._choose_renderer() is None:
        pytest.skip("neither EGL nor OSMesa on this machine")


opengl = pytest.mark.usefixtures("_opengl")


def somewhere(environment, *, seed, steps=12):
    """Moves the arm about, with the gripper closing; gives the last observation."""
    rng = np.random.default_rng(seed)
    environment.reset(seed=seed)
    push = rng.uniform(-1, 1, environment.action_space.shape)
    for step in range(steps):
        observation = environment.step(push, render=step == steps - 1)[0]
    return observation


def cameras_of(environment):
    """Those of our cameras that a task has."""
    model = environment.robosuite.sim.model._model
    present = {model.camera(index).name for index in range(model.ncam)}
    return [name for name, own in CAMERAS.items() if own in present]


def difference(image, other):
    return float(np.abs(image.astype(int) - other).mean())


@contextmanager
def drawn_by_robosuite(environment):
    """Draws what `environment` is at, by robosuite's own means: a function of camera and size."""
    robosuite = engine.import_robosuite(log=False)
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    own = environment.env_args.make(robosuite)
    own.reset_from_xml_string(own.edit_model_xml(environment.model_xml()))
    own.sim.set_state_from_flattened(environment.simulator_state())
    own.sim.forward()
    contexts = [MjRenderContextOffscreen(own.sim, device_id=-1)]
    contexts[0].vopt.geomgroup[:2] = (0, 1)  # as robosuite does: no collision shapes

    def draw(camera, size):
        contexts[0].gl_ctx.make_current()
        return own.sim.render(size, size, camera_name=camera)[::-1]  # it has its last row first

    yield draw
    # robosuite frees its context without making it the current one, and so, else, in another.
    contexts[0].gl_ctx.make_current()
    contexts.clear()
    own.close()


@opengl
@pytest.mark.parametrize(
    ("task", "size"), [("Lift", 84), ("Lift", 64), ("Lift", 200), ("Can", 84), ("Door", 84)]
)
def test_exact_is_pixel_for_pixel_what_robosuite_draws(environment_of, task, size):
    config = RobosuiteConfig(task, cameras=BOTH, image_size=size, rendering="exact")
    environment = environment_of(config)
    observation = somewhere(environment, seed=size)
    with drawn_by_robosuite(environment) as draw:
        for camera in BOTH:
            image = observation["images"][camera]
            assert image.shape == (size, size, 3)
            assert image.std() > 10
            np.testing.assert_array_equal(image, draw(CAMERAS[camera], size))
    # robosuite's context disturbed nothing.
    np.testing.assert_array_equal(environment.render(), observation["images"]["agentview"])


@opengl
@pytest.mark.parametrize("task", TASKS)
def test_leaving_out_what_is_not_in_view_changes_no_pixel(environment_of, monkeypatch, task):
    environment = environment_of(RobosuiteConfig(task, cameras=BOTH))
    in_view = CameraRenderer._in_view
    seen = []

    def noted(renderer, data, camera):
        seen.append(in_view(renderer, data, camera))
        return seen[-1]

    def everything(renderer, data, camera):
        return np.ones_like(in_view(renderer, data, camera))

    for seed in range(3):
        somewhere(environment, seed=seed, steps=4 + 12 * seed)
        model, data = environment.robosuite.sim.model._model, environment.robosuite.sim.data._data
        groups = model.geom_group.copy()
        for camera in cameras_of(environment):
            images = []
            for choose in (noted, everything):
                monkeypatch.setattr(CameraRenderer, "_in_view", choose)
                images.append(environment._renderer.render(data, CAMERAS[camera]))
                np.testing.assert_array_equal(model.geom_group, groups)
            np.testing.assert_array_equal(*images)
    # Something is left out, and in the closest view much.
    assert min(mask.mean() for mask in seen) < 0.6


@opengl
@pytest.mark.parametrize("task", ["Lift", "Can", "Door"])
def test_fast_looks_like_exact(environment_of, task):
    fast, exact = (
        environment_of(RobosuiteConfig(task, cameras=BOTH, rendering=rendering))
        for rendering in ("fast", "exact")
    )
    for seed in range(2):
        images = [somewhere(environment, seed=seed)["images"] for environment in (fast, exact)]
        for camera in BOTH:
            ours, theirs = images[0][camera], images[1][camera]
            assert 0 < difference(ours, theirs) < 5
            assert difference(ours, theirs[::-1]) > 15  # what is really different


@opengl
@pytest.mark.parametrize("rendering", ["fast", "exact"])
def test_meshes_are_coarse_only_while_they_are_loaded(environment_of, monkeypatch, rendering):
    import mujoco

    blind = environment_of(RobosuiteConfig(cameras=()))
    blind.reset(seed=0)
    model = blind.robosuite.sim.model._model
    before = {name: getattr(model, name).copy() for name in MESHES}
    loaded = []
    load = mujoco.MjrContext

    def noted(of, *arguments):
        loaded.append({name: getattr(of, name).copy() for name in MESHES})
        return load(of, *arguments)

    monkeypatch.setattr(mujoco, "MjrContext", noted)
    renderer = CameraRenderer(model, size=84, rendering=rendering)
    released = renderer._free
    for name in MESHES:
        np.testing.assert_array_equal(getattr(model, name), before[name], err_msg=name)
    faces, faces_before = loaded[0]["mesh_facenum"], before["mesh_facenum"]
    if rendering == "exact":
        np.testing.assert_array_equal(faces, faces_before)
    else:
        assert (faces <= faces_before).all()
        assert faces.sum() < faces_before.sum() / 2
        # No triangle of a mesh refers to what is not the mesh's.
        for mesh in range(model.nmesh):
            corners = loaded[0]["mesh_face"][model.mesh_faceadr[mesh] :][: faces[mesh]]
            assert ((corners >= 0) & (corners < model.mesh_vertnum[mesh])).all()
    # A renderer that is forgotten gives its context back.
    assert released.alive
    del renderer
    gc.collect()
    assert not released.alive


@opengl
def test_meshes_are_whole_again_when_loading_fails(environment_of, monkeypatch):
    import mujoco

    blind = environment_of(RobosuiteConfig(cameras=()))
    blind.reset(seed=0)
    model = blind.robosuite.sim.model._model
    before = {name: getattr(model, name).copy() for name in MESHES}

    def broken(of, *_):
        assert of.mesh_facenum.sum() < before["mesh_facenum"].sum()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mujoco, "MjrContext", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        CameraRenderer(model, size=84, rendering="fast")
    for name in MESHES:
        np.testing.assert_array_equal(getattr(model, name), before[name], err_msg=name)


def red(image):
    return (image[..., 0] > 2.5 * image[..., 1]) & (image[..., 0] > 80)


@opengl
@pytest.mark.parametrize("rendering", ["fast", "exact"])
def test_images_are_upright_and_not_mirrored(environment_of, rendering):
    environment = environment_of(RobosuiteConfig(cameras=BOTH, rendering=rendering))
    environment.reset(seed=0)
    start = environment.snapshot()
    height_m = start.data.joint("cube_joint0").qpos[2]
    places = []
    for x_m in (-0.1, 0.05, 0.2):
        for y_m in (-0.2, 0.0, 0.2):
            for above_m in (0.0, 0.15):
                start.data.joint("cube_joint0").qpos[:3] = (x_m, y_m, height_m + above_m)
                image = environment.restore(start)["images"]["agentview"].astype(int)
                rows, columns = np.nonzero(red(image))
                assert len(rows) >= 6
                places.append((x_m, y_m, above_m, rows.mean(), columns.mean()))
    x, y, above, row, column = np.array(places).T
    # Agentview faces the robot from in front of it: what is nearer to it (x) is further down, what
    # is higher is further up, and the robot's left (y) is on the right.
    effects = np.linalg.lstsq(np.stack([x, y, above, np.ones(len(x))], 1), row, rcond=None)[0]
    assert effects[0] > 50
    assert effects[2] < -50
    assert abs(effects[1]) < 10
    assert np.corrcoef(y, column)[0, 1] > 0.95


@opengl
def test_wrist_camera_moves_with_the_hand(environment_of):
    environment = environment_of(RobosuiteConfig(cameras=BOTH))
    observation, _ = environment.reset(seed=0)
    for _ in range(12):
        nearer = environment.step(np.array([0, 0, -1, 0, 0, 0, -1.0]), render=True)[0]
    cubes = [red(one["images"]["wrist"].astype(int)).sum() for one in (observation, nearer)]
    assert cubes[0] > 25
    assert cubes[1] > 2.5 * cubes[0]
    # What does not move with the hand sees the cube as before.
    cubes = [red(one["images"]["agentview"].astype(int)).sum() for one in (observation, nearer)]
    assert cubes[1] == pytest.approx(cubes[0], abs=0.5 * cubes[0])


@opengl
def test_each_camera_gives_another_image(environment_of):
    environment = environment_of(RobosuiteConfig(cameras=tuple(CAMERAS), image_size=48))
    images = environment.reset(seed=0)[0]["images"]
    assert list(images) == list(CAMERAS)
    for name, image in images.items():
        assert image.shape == (48, 48, 3)
        assert image.std() > 10
        for other in images.keys() - {name}:
            assert difference(image, images[other]) > 10
    np.testing.assert_array_equal(environment.render(), images["agentview"])


def test_camera_that_a_task_does_not_have_is_refused():
    """The arena of Can has no side view."""
    with pytest.raises(ValueError, match="side"):
        make_environment(RobosuiteConfig("Can", cameras=("agentview", "side"))).reset(seed=0)


@opengl
def test_images_stay_as_they_were_given(environment_of):
    environment = environment_of(RobosuiteConfig(cameras=BOTH))
    image = environment.reset(seed=0)[0]["images"]["agentview"]
    before = image.copy()
    somewhere(environment, seed=1)
    np.testing.assert_array_equal(image, before)
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags["OWNDATA"]


def run_apart(code, *arguments, mujoco_gl=""):
    """Runs code in a process of its own, as a renderer is chosen once in each."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    variables.pop("MUJOCO_GL", None)
    variables.pop("PYOPENGL_PLATFORM", None)
    if mujoco_gl:
        variables["MUJOCO_GL"] = mujoco_gl
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


DRAW = """
import sys
import numpy as np
from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.robosuite import engine
from robot_qsft.sim.robosuite.config import RobosuiteConfig
environment = make_environment(RobosuiteConfig(image_size=64))
np.save(sys.argv[1], environment.reset(seed=0)[0]["images"]["agentview"])
print(engine._choose_renderer(), sys.modules.keys() & {"mujoco.egl", "mujoco.osmesa"})
"""


def test_egl_and_osmesa_draw_the_same(tmp_path):
    present = {"egl": engine._egl_works(), "osmesa": bool(ctypes.util.find_library("OSMesa"))}
    if not all(present.values()):
        pytest.skip(f"not both on this machine: {present}")
    images = {}
    for renderer in ("egl", "osmesa"):
        target = tmp_path / f"{renderer}.npy"
        result = run_apart(DRAW, target, mujoco_gl=renderer)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == f"{renderer} {{'mujoco.{renderer}'}}"
        images[renderer] = np.load(target)
        assert images[renderer].std() > 10
    assert difference(images["egl"], images["osmesa"]) < 3


WITHOUT_LIBRARIES = """
import ctypes, ctypes.util
# A stand-in for a machine without OpenGL, whose libraries cannot be taken away from this one:
# every way in which Python and PyOpenGL find and load them says that they are not there.
load, find = ctypes.CDLL.__init__, ctypes.util.find_library
def load_another(self, name, *arguments, **options):
    if name and any(part in str(name) for part in ("EGL", "OSMesa", "libGL", "OpenGL", "GLX")):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")
    load(self, name, *arguments, **options)
def find_another(name):
    return None if "GL" in name or "OSMesa" in name else find(name)
ctypes.CDLL.__init__, ctypes.util.find_library = load_another, find_another

from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.robosuite.config import RobosuiteConfig
environment = make_environment(RobosuiteConfig(cameras=()))
environment.reset(seed=0)
observation, *_ = environment.step(environment.action_space.sample())
print(*sorted(observation))
try:
    environment.render()
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("mujoco_gl", ["", "egl", "osmesa"])
def test_without_opengl_all_but_images_works_and_the_packages_are_named(mujoco_gl):
    result = run_apart(WITHOUT_LIBRARIES, mujoco_gl=mujoco_gl)
    assert result.returncode == 0, result.stderr
    seen, refused = result.stdout.splitlines()
    assert seen == "environment_state instruction state"
    assert refused.startswith("refused: robosuite cannot render here: ")
    assert "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)" in refused


def test_where_neither_works_the_packages_are_named(monkeypatch):
    # A mock: what the two probes answer where nothing is installed, as they were asked already in
    # this process, and their answer is kept.
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(engine, "_egl_works", lambda: False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    engine._choose_renderer.cache_clear()
    try:
        environment = make_environment(RobosuiteConfig())
        with pytest.raises(ValueError, match=r"neither EGL nor OSMesa works") as refused:
            environment.reset(seed=0)
        environment.close()
    finally:
        engine._choose_renderer.cache_clear()
    assert "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)" in str(refused.value)
    assert "\n" not in str(refused.value)


@opengl
def test_environments_made_and_closed_leave_nothing_behind():
    process = psutil.Process()
    files, memory = [], []
    for _ in range(12):
        environment = make_environment(RobosuiteConfig(image_size=32))
        environment.reset(seed=0)
        environment.close()
        environment.close()  # a second time does nothing
        del environment
        gc.collect()
        files.append(process.num_fds())
        memory.append(process.memory_info().rss / 2**20)
    assert len(set(files[2:])) == 1
    # One that stays open takes several times as much by itself.
    assert memory[-1] - memory[2] < 30
