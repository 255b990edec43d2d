"""Pictures of a MuJoCo model, drawn without what cannot be seen in them.

Shape legend: F triangles of a mesh, G geoms of the model, S pixels of a side, V its vertices.
"""

import atexit
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image
from robot_qsft.sim.robosuite.config import Rendering
from robot_qsft.sim.robosuite.engine import make_gl_context

_HIDDEN_GROUP = 5
"""A group of geoms that is not drawn, for those out of sight."""
_COLLISION_GROUP = 0
_MAX_GEOMS = 10_000
_CELL_M = 0.4
"""Detail that "fast" draws, times S: half of what a pixel of agentview covers on the table."""


class CameraRenderer:
    """Draws what the fixed cameras of a model see, square and as large as asked for.

    In software, time goes with the triangles that are drawn: an arm has 180,000, and the floor,
    which mirrors 1% of the light, has everything drawn a second time.
    """

    def __init__(self, model: Any, *, size: int, rendering: Rendering) -> None:
        """Load a model's meshes and textures.

        Args:
            model: a `mujoco.MjModel`; later changes of its meshes or textures are not seen.
            size: S.
            rendering: "exact" keeps the mirror image.

        Raises:
            ValueError: when neither EGL nor OSMesa works here.
        """
        import mujoco

        self._mujoco = mujoco
        self._model = model
        self._size = size
        self._gl = make_gl_context(size)
        # A buffer no larger than the image: it is cleared and resolved for every one.
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        with _coarse_meshes(model, cell_m=_CELL_M / size if rendering == "fast" else 0.0):
            self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._free = weakref.finalize(self, _free, self._gl, self._context)
        # Registered after EGL's own end, and therefore run before it.
        self._free.atexit = False
        atexit.register(self._free)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = rendering == "exact"
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GROUP] = 0
        self._options.geomgroup[_HIDDEN_GROUP] = 0
        self._perturbation = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._mirrors = rendering == "exact" and _mirrors(mujoco, model)

    def render(self, data: Any, camera: str) -> Image:
        """RGB uint8 (S, S, 3), top row first, of the present `mujoco.MjData`."""
        mujoco, model = self._mujoco, self._model
        self._gl.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        groups_G = model.geom_group.copy()
        if not self._mirrors:  # what a mirror shows may lie outside the view
            model.geom_group[~self._in_view(data, self._camera.fixedcamid)] = _HIDDEN_GROUP
        mujoco.mjv_updateScene(
            model,
            data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        model.geom_group[:] = groups_G
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        pixels = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Release the OpenGL context; a second time does nothing."""
        self._free()
        atexit.unregister(self._free)

    def _in_view(self, data: Any, camera: int) -> NDArray[np.bool_]:
        """Which geoms (G,) may be in a camera's view, by their bounding spheres."""
        model = self._model
        radii_G = model.geom_rbound
        axes = data.cam_xmat[camera].reshape(3, 3)
        right_G, up_G, back_G = ((data.geom_xpos - data.cam_xpos[camera]) @ axes).T
        half_rad = np.deg2rad(model.cam_fovy[camera]) / 2
        sine, cosine = np.sin(half_rad), np.cos(half_rad)
        outside_G = np.maximum(np.abs(right_G), np.abs(up_G)) * cosine + back_G * sine > radii_G
        seen: NDArray[np.bool_] = (radii_G == 0) | (~outside_G & (back_G < radii_G))
        return seen


def _free(gl: Any, context: Any) -> None:
    from OpenGL.error import Error

    try:
        gl.make_current()
    except Error:  # at the program's end robosuite's own renderer may have closed EGL, all included
        return
    context.free()
    gl.free()


@contextmanager
def _coarse_meshes(model: Any, *, cell_m: float) -> Iterator[None]:
    """Have meshes without detail finer than `cell_m` while a rendering context loads them.

    Vertices of a cell become one, and triangles that vanish with that are left out (Rossignac and
    Borrel 1993, "Multi-resolution 3D approximations"). Only what is drawn changes: contacts are
    computed from convex hulls, and the model has its meshes back afterwards.
    """
    if not cell_m:
        yield
        return
    corners = {"mesh_face", "mesh_facenormal", "mesh_facetexcoord"}
    before = {name: getattr(model, name).copy() for name in (*corners, "mesh_facenum")}
    for mesh in range(model.nmesh):
        vertices_V3 = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
        cells_V3 = np.floor(vertices_V3 / cell_m).astype(np.int64)
        _, first, cell_V = np.unique(cells_V3, axis=0, return_index=True, return_inverse=True)
        faces_F3 = first[cell_V.reshape(-1)][model.mesh_face[faces]]
        a, b, c = faces_F3.T
        kept_F = (a != b) & (b != c) & (c != a)
        count = int(kept_F.sum())
        model.mesh_face[faces][:count] = faces_F3[kept_F]
        for name in corners - {"mesh_face"}:
            getattr(model, name)[faces][:count] = before[name][faces][kept_F]
        model.mesh_facenum[mesh] = count
    try:
        yield
    finally:
        for name, values in before.items():
            getattr(model, name)[:] = values


def _mirrors(mujoco: Any, model: Any) -> bool:
    """Whether anything that is drawn shows a mirror image."""
    shapes = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX)
    flat = np.isin(model.geom_type, [int(shape) for shape in shapes])
    drawn = flat & (model.geom_group != _COLLISION_GROUP) & (model.geom_matid >= 0)
    return bool((model.mat_reflectance[model.geom_matid[drawn]] > 0).any())
