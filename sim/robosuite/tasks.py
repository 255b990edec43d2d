"""robosuite's tasks as environments that can be rolled out, recorded and rewound.

Shape legend: A action dimensions, D simulator-state dimensions, E environment-state dimensions,
S state dimensions.
"""

from dataclasses import dataclass
from string import printable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.interface import Vector
from robot_qsft.sim.contract import checked_action, observation_space
from robot_qsft.sim.environment import observation_of
from robot_qsft.sim.robosuite.camera import CameraRenderer
from robot_qsft.sim.robosuite.config import CAMERAS, RobosuiteConfig, Task
from robot_qsft.sim.robosuite.control import ControlLoop
from robot_qsft.sim.robosuite.demonstrators import PickDemonstrator, Script
from robot_qsft.sim.robosuite.engine import import_robosuite
from robot_qsft.sim.robosuite.env_args import EnvArgs, env_args_of
from robot_qsft.sim.robosuite.variation import (
    CUBE_HALF_HIGH_M,
    CUBE_HALF_LOW_M,
    Variation,
    model_xml,
    resize_cube,
)

_PICK_UP_STEPS = 150
_PROPRIOCEPTION = ("eef_pos", "eef_quat", "gripper_qpos")
_AXES = ("x", "y", "z")
_INSTRUCTIONS = {
    "Lift": "lift the red cube",
    "PickPlaceCan": "put the can into its bin",
    "NutAssemblySquare": "put the square nut onto the square peg",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
}


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that decides how an episode goes on."""

    data: Any
    """A copy of the `mujoco.MjData`."""
    variation: Variation
    control: dict[str, dict[str, Any]]
    """Numbers that controllers and grippers keep, by part of the robot."""
    steps: int
    finished: bool
    random: tuple[dict[str, Any], dict[str, Any]]
    """States of the generators that draw the next start state: Gymnasium's and robosuite's."""


class RobosuiteEnvironment(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One task of robosuite.

    Actions are robosuite's, in [-1, 1]; the gripper closes above 0. The state is robosuite's
    `eef_pos`, `eef_quat` (xyzw) and `gripper_qpos`, the environment state its `object-state`; both
    belong to the very simulator state that a snapshot keeps, as in robomimic's data sets. Success
    ends an episode; a time-out truncates.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, config: RobosuiteConfig, render_mode: str | None = None):
        """Compile the model; later resets go on with it.

        Raises:
            ValueError: when robosuite is not installed or does not know what `config.demos` asks
                for.
        """
        robosuite = import_robosuite(log=config.log)
        import mujoco

        self._mujoco = mujoco
        self.config = config
        self.render_mode = render_mode
        self.env_args: EnvArgs = env_args_of(config)
        self.robosuite = self.env_args.make(robosuite)
        self._check_cameras()
        # What a fresh compilation gives; everything an episode changes is told from it.
        self._compiled_xml = self._compile_again()
        self._cube = self.env_args.env_name == "Lift"
        self._before = Variation.of(self._model, cube=self._cube)
        self._renderer: CameraRenderer | None = None
        self._loaded_xml = ""
        self._control = ControlLoop(self.robosuite)
        self._steps, self._finished = 0, True
        self._instruction = _INSTRUCTIONS.get(self.env_args.env_name, self.env_args.env_name)
        self._sensors = self._choose_sensors()
        self.robosuite.reset()
        state, truth = self._low_dimensional()
        self.state_names = self._entries(self._sensors[0], state)
        self.environment_state_names = self._entries(self._sensors[1], truth)
        self.action_names = self._action_names()
        self.observation_space = observation_space(
            state=len(self.state_names),
            environment_state=len(self.environment_state_names),
            cameras=config.cameras,
            image_size=config.image_size,
            instruction=gymnasium.spaces.Text(128, charset=printable),
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode from a start state that follows from the seed alone.

        robosuite's own distribution: object poses, noise on the arm's joints, the size of the cube.
        """
        super().reset(seed=seed, options=options)
        self._draw_start()
        while self.config.start == "gripper" and not self._pick_up():
            self._draw_start()
        return self._observe(render=True), {"is_success": False}

    def step(
        self, action: NDArray[np.float32], *, render: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action, float (A,); values beyond [-1, 1] are clipped.

        Args:
            action: what to do for a twentieth of a second.
            render: whether the observation has images, which is what takes the time.

        Raises:
            ValueError: when the action has another shape or holds NaN, or the episode is over.
        """
        if self._finished:
            raise ValueError("the episode is over; call reset first")
        reward, success = self.apply(action)
        self._steps += 1
        truncated = not success and self._steps >= self.config.max_steps
        self._finished = success or truncated
        observation = self._observe(render=render)
        return observation, reward, success, truncated, {"is_success": success}

    def apply(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one action, whether or not the episode is over; gives reward and success.

        Raises:
            ValueError: when the action has another shape or holds NaN.
        """
        reward, success = self._control.step(checked_action(action, self.action_names))
        return (float(success) if self.config.reward == "sparse" else reward), success

    def render(self) -> NDArray[np.uint8]:
        """The image of agentview."""
        return self._image(self.config.film_camera)

    def close(self) -> None:
        """Release the simulator and the renderer."""
        self._close_renderer()
        self.robosuite.close()

    def snapshot(self) -> Snapshot:
        """The full present state."""
        data = self._mujoco.MjData(self._model)
        self._mujoco.mj_copyData(data, self._model, self._data)
        return Snapshot(
            data=data,
            variation=Variation.of(self._model, cube=self._cube),
            control={part: _numbers_of(holder) for part, holder in self._holders().items()},
            steps=self._steps,
            finished=self._finished,
            random=(
                dict(self.np_random.bit_generator.state),
                dict(self.robosuite.rng.bit_generator.state),
            ),
        )

    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return to a snapshot of this environment; gives the observation there."""
        snapshot.variation.apply(self._model)
        self._mujoco.mj_copyData(self._data, self._model, snapshot.data)
        for part, holder in self._holders().items():
            for name, value in snapshot.control[part].items():
                setattr(holder, name, np.copy(value) if isinstance(value, np.ndarray) else value)
        self._steps, self._finished = snapshot.steps, snapshot.finished
        self.np_random.bit_generator.state, self.robosuite.rng.bit_generator.state = snapshot.random
        return self._observe(render=True)

    def load(self, state: NDArray[np.float64], *, model: str) -> dict[str, Any]:
        """Begin at a recorded simulator state; gives the observation there.

        Args:
            state: float64 (D,), as `simulator_state` gives it.
            model: the recorded episode's XML; "" for the present model.

        Raises:
            ValueError: when the model cannot be compiled, or the state is not one of it.
        """
        if model and model != self._loaded_xml:
            self._compile(model)
        expected = len(self.simulator_state())
        if state.shape != (expected,) or not np.isfinite(state).all():
            raise ValueError(
                f"a simulator state of {self.env_args.env_name} is {expected} finite numbers, got "
                f"shape {state.shape}; the demonstrations were made with another model"
            )
        self._begin(state)
        return self._observe(render=True)

    def go_to(self, state: NDArray[np.float64]) -> tuple[dict[str, Any], float, bool]:
        """Put the simulator into a state (D,) of the present model.

        Returns:
            The observation there, and the reward and success of an action that leads there.
        """
        self.robosuite.sim.set_state_from_flattened(state)
        self.robosuite.sim.forward()
        success = bool(self.robosuite._check_success())
        sparse = self.config.reward == "sparse"
        reward = float(success) if sparse else float(self.robosuite.reward(None))
        return self._observe(render=True), reward, success

    def observation_columns(self, episode: Episode) -> dict[str, Vector]:
        """An episode's states as robomimic keeps them: sensor name to (T, ...), and "object"."""
        names = [name.rpartition("_") for name in self.state_names]
        columns: dict[str, list[int]] = {}
        for entry, (sensor, _, _) in enumerate(names):
            columns.setdefault(sensor, []).append(entry)
        seen = {sensor: episode.states[:, entries] for sensor, entries in columns.items()}
        return {**seen, "object": episode.environment_states}

    def simulator_state(self) -> NDArray[np.float64]:
        """Time, positions and velocities, float64 (D,), as robomimic's data sets store them."""
        state: NDArray[np.float64] = self.robosuite.sim.get_state().flatten()
        return state

    def model_xml(self) -> str:
        """The present model, from which robosuite's `reset_from_xml_string` makes the same one."""
        return model_xml(self._compiled_xml, self._model, before=self._before, cube=self._cube)

    @property
    def _model(self) -> Any:
        return self.robosuite.sim.model._model

    @property
    def _data(self) -> Any:
        return self.robosuite.sim.data._data

    def _compile_again(self) -> str:
        """Undo what making the environment has changed of the model; gives the model's XML."""
        xml: str = self.robosuite.model.get_xml()
        for process in self.robosuite._xml_processors:
            xml = process(xml)
        fresh = self._mujoco.MjModel.from_xml_string(xml)
        self._model.body_pos[:], self._model.body_quat[:] = fresh.body_pos, fresh.body_quat
        return xml

    def _check_cameras(self) -> None:
        """Refuse cameras that this task's arena does not have."""
        theirs = {self._model.camera(index).name for index in range(self._model.ncam)}
        present = [name for name, own in CAMERAS.items() if own in theirs]
        missing = [name for name in self.config.cameras if name not in present]
        if missing:
            self.robosuite.close()
            raise ValueError(
                f"{self.env_args.env_name} has the cameras {', '.join(present)}, got {missing}"
            )

    def _draw_start(self) -> None:
        """Put everything where robosuite's distribution has it."""
        robosuite = self.robosuite
        fresh = np.random.PCG64(int(self.np_random.integers(2**63)))
        robosuite.rng.bit_generator.state = fresh.state  # one generator, which samplers share
        self._before.apply(self._model)
        if self._cube:
            half_m = robosuite.rng.uniform(CUBE_HALF_LOW_M, CUBE_HALF_HIGH_M, 3)
            resize_cube(self._model, half_m)
            robosuite.cube.size = half_m
        robosuite.reset()
        self._begin(self.simulator_state())

    def _pick_up(self) -> bool:
        """Let a demonstrator take the object up; whether it did."""
        demonstrator = PickDemonstrator(Script(self.config.task))
        demonstrator.reset(seed=int(self.np_random.integers(2**31)))
        for _ in range(_PICK_UP_STEPS):
            action = demonstrator.act(observation_of(self._observe(render=False))).actions[0]
            if demonstrator.carries:
                return True
            self.apply(action)
        return False

    def _compile(self, model: str) -> None:
        """Go on with another model of the same environment."""
        self._close_renderer()
        try:
            self.robosuite.reset_from_xml_string(self.robosuite.edit_model_xml(model))
        except Exception as error:  # whatever robosuite and MuJoCo stumble over in a file
            raise ValueError(
                f"the recorded model of {self.env_args.env_name} cannot be loaded "
                f"({type(error).__name__}: {error!s:.200}); it may be of another robosuite"
            ) from error
        self._loaded_xml = self._compiled_xml = model
        self._before = Variation.of(self._model, cube=self._cube)

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _begin(self, state: NDArray[np.float64]) -> None:
        """Start from a simulator state (D,), so that actions alone lead to the same again.

        As robosuite's own collector and playback do: controllers and grippers begin at the arm's
        nominal posture, and the solver with nothing of an earlier solution.
        """
        robosuite = self.robosuite
        robosuite.sim.reset()
        for robot in robosuite.robots:
            robot.reset(deterministic=True, rng=robosuite.rng)
        robosuite.sim.set_state_from_flattened(state)
        robosuite.sim.forward()
        self._control = ControlLoop(robosuite)
        self._steps, self._finished = 0, False

    def _observe(self, *, render: bool) -> dict[str, Any]:
        # What robosuite sees after a step lags a physics step behind: positions of bodies are those
        # before the last integration. These are of the state itself; the next step computes them
        # again in any case.
        for compute in (
            self._mujoco.mj_kinematics,
            self._mujoco.mj_comPos,
            self._mujoco.mj_camlight,
        ):
            compute(self._model, self._data)
        state, truth = self._low_dimensional()
        observation: dict[str, Any] = {
            "state": np.concatenate([*state.values()]).astype(np.float32),
            "environment_state": np.concatenate([*truth.values()]).astype(np.float32),
            "instruction": self._instruction,
        }
        if self.config.cameras and render:
            observation["images"] = {name: self._image(name) for name in self.config.cameras}
        return observation

    def _image(self, camera: str) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = CameraRenderer(
                self._model, size=self.config.image_size, rendering=self.config.rendering
            )
        return self._renderer.render(self._data, CAMERAS[camera])

    def _choose_sensors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of robosuite's sensors that make up the state and the environment state."""
        observables = self.robosuite._observables
        state = [
            f"{arm}{name}"
            for index, robot in enumerate(self.robosuite.robots)
            for arm in self.robosuite._get_arm_prefixes(robot)
            for name in _PROPRIOCEPTION
            if f"{arm}{name}" in observables
        ]
        truth = [name for name, one in observables.items() if one.modality == "object"]
        return tuple(state), tuple(truth)

    def _low_dimensional(self) -> tuple[dict[str, Vector], dict[str, Vector]]:
        """Sensor name to numbers, of the state and the environment state.

        Asked of the sensors themselves: robosuite's `_get_observations` reads all it has. Some
        compute from what others found before them, whichever comes first, so that one pass would
        mix two states.
        """
        observables, cache = self.robosuite._observables, dict[str, Any]()
        state, truth = self._sensors
        for name in (*state, *truth, *truth):
            if observables[name].is_enabled():
                cache[name] = observables[name]._sensor(cache)

        def found(names: tuple[str, ...]) -> dict[str, Vector]:
            return {
                name: np.atleast_1d(np.asarray(cache[name], np.float64))
                for name in names
                if observables[name].is_enabled() and observables[name].is_active()
            }

        return found(state), found(truth)

    def _entries(self, names: tuple[str, ...], values: dict[str, Vector]) -> tuple[str, ...]:
        return tuple(
            f"{name}_{index}" if len(values[name]) > 1 else name
            for name in names
            if name in values
            for index in range(len(values[name]))
        )

    def _action_names(self) -> tuple[str, ...]:
        names: list[str] = []
        several = len(self.robosuite.robots) > 1
        for index, robot in enumerate(self.robosuite.robots):
            composite = robot.composite_controller
            for part, controller in composite.part_controllers.items():
                start, end = composite._action_split_indexes[part]
                before = f"robot{index}_" if several else ""
                before += f"{part}_" if len(robot.arms) > 1 else ""
                names += [before + one for one in _entries_of(controller, part, end - start)]
        return tuple(names)

    def _holders(self) -> dict[str, Any]:
        """Everything that keeps numbers from one control step to the next."""
        holders: dict[str, Any] = {}
        for index, robot in enumerate(self.robosuite.robots):
            for part, controller in robot.composite_controller.part_controllers.items():
                holders[f"robot{index}/{part}"] = controller
            for arm, gripper in robot.gripper.items():
                holders[f"robot{index}/{arm}/gripper"] = gripper
        return holders


def make_task(task: Task, render_mode: str | None = None, **options: Any) -> RobosuiteEnvironment:
    """What `gymnasium.make("robot_qsft/robosuite/TASK-v0", **options)` builds."""
    return RobosuiteEnvironment(RobosuiteConfig(task=task, **options), render_mode)


def _entries_of(controller: Any, part: str, count: int) -> list[str]:
    if "gripper" in part:
        return ["gripper_close"] if count == 1 else [f"gripper_{index}" for index in range(count)]
    if controller.name in ("OSC_POSE", "IK_POSE") and count == 6:
        return [*_AXES, *(f"rotation_{axis}" for axis in _AXES)]
    if controller.name == "OSC_POSITION" and count == 3:
        return [*_AXES]
    if controller.name.startswith("JOINT"):
        return [f"joint_{index + 1}" for index in range(count)]
    return [f"{part}_{index}" for index in range(count)]


def _numbers_of(holder: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, value in vars(holder).items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            numbers[name] = value.copy(order="K")  # layout decides products' last bits
        elif value is None or isinstance(value, (bool, int, float)):
            numbers[name] = value
    return numbers
