"""One control step of robosuite, computed as robosuite does but without its bookkeeping.

robosuite runs its controllers at every physics step, 25 times per action, and spends four fifths of
the time outside physics: it looks names up, asks for the base's pose, copies arrays, keeps records
of what nobody reads. For the controller that its tasks come with, operational space control
(Khatib 1987) with fixed gains, the same arithmetic is done here on arrays that stay; results are
the same bits. Other controllers run through robosuite.

Shape legend: J joints of the arm, V degrees of freedom of the model.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ControlLoop:
    """Applies actions to one robosuite environment."""

    def __init__(self, environment: Any) -> None:
        """Bind to an environment; again after each of its resets, which make new controllers."""
        self._environment = environment
        sim = environment.sim
        self._before_control = sim.step1 if environment.lite_physics else sim.forward
        self._after_control = sim.step2 if environment.lite_physics else sim.step
        self._substeps = int(environment.control_timestep / environment.model_timestep)
        self._osc = _FixedGainOSC(environment) if _is_fixed_gain_osc(environment) else None

    def step(self, action: NDArray[np.float64]) -> tuple[float, bool]:
        """Apply one action, float64 (A,); robosuite's reward, and whether the task is solved."""
        environment, osc = self._environment, self._osc
        environment.timestep += 1
        for substep in range(self._substeps):
            self._before_control()
            if osc is not None and substep > 0:
                osc.control()
            else:
                environment._pre_action(action, policy_step=substep == 0)
            if osc is not None and substep == 0:
                osc.begin()
            self._after_control()
        environment.cur_time += environment.control_timestep
        reward = float(environment.reward(action))
        return reward, bool(environment._check_success())


def _is_fixed_gain_osc(environment: Any) -> bool:
    if len(environment.robots) != 1 or not environment.lite_physics:
        return False
    composite = environment.robots[0].composite_controller
    if composite.name != "BASIC" or sorted(composite.part_controllers) != [
        "right",
        "right_gripper",
    ]:
        return False
    arm, gripper = composite.part_controllers["right"], composite.part_controllers["right_gripper"]
    return bool(
        arm.name == "OSC_POSE"
        and arm.impedance_mode == "fixed"
        and arm.uncoupling
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and gripper.name == "JOINT_VELOCITY"
        and gripper.interpolator is None
    )


class _FixedGainOSC:
    """What `OperationalSpaceController.run_controller` computes, while the goal stays the same."""

    def __init__(self, environment: Any) -> None:
        import mujoco
        from robosuite.utils.control_utils import (
            nullspace_torques,
            opspace_matrices,
            orientation_error,
        )

        self._jacobian, self._full_mass = mujoco.mj_jacSite, mujoco.mj_fullM
        self._nullspace_torques, self._opspace_matrices = nullspace_torques, opspace_matrices
        self._orientation_error = orientation_error
        self._model, self._data = environment.sim.model._model, environment.sim.data._data
        robot = environment.robots[0]
        self._arm = arm = robot.composite_controller.part_controllers["right"]
        self._actuators = np.array(robot._ref_actuators_indexes_dict["right"])
        self._low_J, self._high_J = self._model.actuator_ctrlrange[self._actuators].T.copy()
        self._site = self._model.site(arm.ref_name).id
        self._dofs = np.array(arm.qvel_index)
        joints, freedoms = len(self._dofs), self._model.nv
        self._positions = np.array(arm.qpos_index)
        self._moves_3V, self._turns_3V = np.zeros((3, freedoms)), np.zeros((3, freedoms))
        self._mass_VV = np.zeros((freedoms, freedoms))
        self._full_6J = np.zeros((6, joints))
        self._moves_3J, self._turns_3J = np.zeros((3, joints)), np.zeros((3, joints))
        self._wrench_6 = np.zeros(6)

    def begin(self) -> None:
        """Take over the goal that robosuite's controller has just worked out of an action."""
        arm = self._arm
        if arm.input_ref_frame == "base":
            self._goal_m = arm.origin_pos + np.dot(arm.origin_ori, arm.goal_pos)
            self._goal_33 = np.dot(arm.origin_ori, arm.goal_ori)
        else:
            self._goal_m, self._goal_33 = arm.goal_pos, arm.goal_ori

    def control(self) -> None:
        """Set the arm's torques for the present state; the gripper's command stays."""
        arm, data, dofs = self._arm, self._data, self._dofs
        self._jacobian(self._model, data, self._moves_3V, self._turns_3V, self._site)
        moves_3J, turns_3J, full_6J = self._moves_3J, self._turns_3J, self._full_6J
        np.take(self._moves_3V, dofs, axis=1, out=moves_3J)
        np.take(self._turns_3V, dofs, axis=1, out=turns_3J)
        full_6J[:3], full_6J[3:] = moves_3J, turns_3J
        self._full_mass(self._model, self._mass_VV, data.qM)
        mass_JJ = self._mass_VV[dofs, :][:, dofs]
        velocity_V, velocity_J = data.qvel, data.qvel[dofs]

        position_m = data.site_xpos[self._site]
        rotation_33 = data.site_xmat[self._site].reshape(3, 3)
        force_N = (self._goal_m - position_m) * arm.kp[:3]
        force_N += -np.dot(self._moves_3V, velocity_V) * arm.kd[:3]
        torque_Nm = self._orientation_error(self._goal_33, rotation_33) * arm.kp[3:6]
        torque_Nm += -np.dot(self._turns_3V, velocity_V) * arm.kd[3:6]
        _, mass_of_moves, mass_of_turns, nullspace_JJ = self._opspace_matrices(
            mass_JJ, full_6J, moves_3J, turns_3J
        )
        self._wrench_6[:3] = np.dot(mass_of_moves, force_N)
        self._wrench_6[3:] = np.dot(mass_of_turns, torque_Nm)
        torques_J = np.dot(full_6J.T, self._wrench_6) + data.qfrc_bias[dofs]
        torques_J += self._nullspace_torques(
            mass_JJ, nullspace_JJ, arm.initial_joint, data.qpos[self._positions], velocity_J
        )
        data.ctrl[self._actuators] = np.clip(torques_J, self._low_J, self._high_J)
        arm.new_update = True
