"""Small data sets in the layouts that robomimic, robosuite, LIBERO and D4RL write, by h5py."""

import json
from pathlib import Path

import h5py
import numpy as np
from small_content import LENGTHS, frames, numbers

_ROBOSUITE = {"robots": ["Panda"], "control_freq": 20}


def write_robomimic(folder: Path) -> Path:
    """As robomimic writes what it rendered from raw demos, one camera packed by gzip."""
    with h5py.File(folder / "image.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        env_args = {"env_name": "Lift", "type": 1, "env_kwargs": _ROBOSUITE}
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        for episode, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["ep_meta"] = json.dumps({"lang": "lift the cube"})
            demo["actions"] = numbers(episode, length, 7)
            demo["states"] = numbers(episode, length, 12)
            demo["rewards"] = np.eye(length)[-1] * (episode != 1)
            demo["dones"] = np.eye(length, dtype=int)[-1]
            turned = numbers(episode, length, 4)
            turned /= np.linalg.norm(turned, axis=1, keepdims=True)
            demo["obs/object"] = numbers(episode, length, 10)
            demo["obs/robot0_eef_pos"] = numbers(episode, length, 3)
            demo["obs/robot0_eef_quat"] = turned
            demo["obs/robot0_gripper_qpos"] = numbers(episode, length, 2)
            demo["obs/agentview_image"] = frames(episode, length, height=8, width=10)
            demo.create_dataset(
                "obs/robot0_eye_in_hand_image",
                data=frames(episode, length, height=8, width=8),
                compression="gzip",
                chunks=(1, 8, 8, 3),
            )
        file["mask/train"] = np.array(["demo_0", "demo_1"], "S")
        file["mask/valid"] = np.array(["demo_2"], "S")
    return folder / "image.hdf5"


def write_robosuite(folder: Path) -> Path:
    """As robosuite's collector writes: states and actions."""
    with h5py.File(folder / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs.update({"date": "1-1-2025", "time": "0:0:0", "repository_version": "1.5.1"})
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = json.dumps(_ROBOSUITE)
        for episode, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{episode + 1}")
            demo.attrs["model_file"] = "<mujoco/>"
            demo["states"] = numbers(episode, length, 12)
            demo["actions"] = numbers(episode, length, 7)
    return folder / "demo.hdf5"


def write_libero(folder: Path) -> Path:
    """As LIBERO's own script writes: upside down, and what was seen after the action beside it."""
    path = folder / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "turn on the stove"})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = "/home/somebody/a.bddl"
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": _ROBOSUITE})
        for episode, length in enumerate(LENGTHS):
            steps = length + 1
            joints = 0.1 * np.outer(np.arange(steps + 1), np.ones(7))
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = steps
            demo["actions"] = numbers(episode, steps, 7)
            demo["states"] = np.hstack(
                [0.05 * np.arange(steps)[:, None], joints[:-1], np.full((steps, 9), 0.3)]
            )
            demo["robot_states"] = numbers(episode, steps, 9)
            demo["obs/joint_states"] = joints[1:]
            demo["obs/ee_pos"] = numbers(episode, steps, 3)
            demo["obs/ee_ori"] = numbers(episode + 7, steps, 3)
            demo["obs/ee_states"] = numbers(episode, steps, 6)
            demo["obs/gripper_states"] = numbers(episode, steps, 2)
            demo["rewards"] = demo["dones"] = np.eye(steps, dtype=np.uint8)[-1]
            seen = frames(episode, length, height=8, width=10, extra=2)[1:]
            demo["obs/agentview_rgb"] = seen[:, ::-1]
            demo["obs/eye_in_hand_rgb"] = seen[:, ::-1]
    return path


def write_d4rl(folder: Path, *, images: bool = False) -> Path:
    """Flat arrays; what is observed are numbers, or images."""
    path = folder / "set.hdf5"
    each = list(enumerate(LENGTHS))
    ends = np.cumsum(LENGTHS) - 1
    with h5py.File(path, "w") as file:
        if images:
            seen = [frames(e, n, height=8, width=10) for e, n in each]
        else:
            seen = [numbers(e, n, 4) for e, n in each]
        file["observations"] = np.concatenate(seen)
        file["actions"] = np.concatenate([numbers(e, n, 3) for e, n in each])
        file["infos/qpos"] = np.concatenate([numbers(e, n, 5) for e, n in each])
        terminals = np.zeros(sum(LENGTHS), bool)
        terminals[ends[[0, 2]]] = True
        file["rewards"] = terminals.astype(np.float32)
        file["terminals"] = terminals
        timeouts = np.zeros(sum(LENGTHS), bool)
        timeouts[ends[1]] = True
        file["timeouts"] = timeouts
        file["metadata/algorithm"] = np.bytes_(b"SAC")
    return path


def write_d4rl_images(folder: Path) -> Path:
    """Flat arrays, with images as observations."""
    return write_d4rl(folder, images=True)
