"""The controller of a Franka Research 3 as libfranka sees it: its control interface, version 10.

It offers torque control and no motion generator: once in a millisecond the client is sent the state
of the joints and answers with torques, which accelerate them. Every joint has an inertia of its
own and feels nothing of the others; there is no gravity, which the real controller takes off too.
"""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import numpy as np
from emulators.joints import Joints, Link

PORT = 1337
"""libfranka has no other."""
VERSION = 10
HOME_RAD = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])
LOW_RAD = np.array([-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196])
HIGH_RAD = np.array([2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196])
SPEED_RAD_S = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
# Near a limit the arm must be slower: libfranka's rate_limiting.h.
OFFSET_RAD_S = np.array([0.3, 0.2, 0.2, 0.3, 0.35, 0.35, 0.35])
BRAKING_RAD_S2 = np.array([6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0])
INERTIA_KG_M2 = np.array([1.0, 1.0, 1.0, 1.0, 0.3, 0.2, 0.1])
CYCLE_S = 0.001
TORQUE_STEP_NM = 1.001
"""From one command to the next: 1000 Nm/s, and what rounding to float32 adds."""
MOST_LOST = 20
"""Commands in a row, after which the controller stops the arm."""
PATIENCE_S = 0.025
"""How long a cycle waits for its command: a client that a busy machine holds up is not a lost
packet. The real controller does not wait."""

# Commands.
CONNECT, MOVE, STOP_MOVE, RECOVER, MODEL = 0, 1, 2, 10, 11
# Answers to them; those from 1 on are a Move's.
SUCCESS, STARTED, PREEMPTED, NOT_POSSIBLE, REFLEX_ABORTED, EMERGENCY_ABORTED = 0, 1, 2, 5, 8, 9
# Modes of the robot, and of a Move that asks for torques alone.
IDLE, MOVING, REFLEX, USER_STOPPED = 1, 2, 4, 5
EXTERNAL_CONTROLLER, NO_GENERATOR = 2, 4
# Errors, by their place in the state.
POSITION_LIMITS, VELOCITY, JOINT_REFLEX, COMMUNICATION, DISCONTINUITY = 0, 3, 6, 25, 32

_FIELDS = (
    *(("O_T_EE", 16), ("O_T_EE_d", 16), ("F_T_EE", 16), ("EE_T_K", 16), ("F_T_NE", 16)),
    *(("NE_T_EE", 16), ("m_ee", 1), ("I_ee", 9), ("F_x_Cee", 3), ("m_load", 1), ("I_load", 9)),
    *(("F_x_Cload", 3), ("elbow", 2), ("elbow_d", 2), ("tau_J", 7), ("tau_J_d", 7)),
    *(("dtau_J", 7), ("q", 7), ("q_d", 7), ("dq", 7), ("dq_d", 7), ("ddq_d", 7)),
    *(("joint_contact", 7), ("cartesian_contact", 6), ("joint_collision", 7)),
    *(("cartesian_collision", 6), ("tau_ext_hat_filtered", 7), ("O_F_ext_hat_K", 6)),
    *(("K_F_ext_hat_K", 6), ("O_dP_EE_d", 6), ("O_ddP_O", 3), ("elbow_c", 2), ("delbow_c", 2)),
    *(("ddelbow_c", 2), ("O_T_EE_c", 16), ("O_dP_EE_c", 6), ("O_ddP_EE_c", 6), ("theta", 7)),
    *(("dtheta", 7), ("accelerometer_top", 18), ("accelerometer_bottom", 18)),
)
STATE = np.dtype(
    [
        ("id", "<u8"),
        *((name, "<f4", (length,)) for name, length in _FIELDS),
        ("generator", "u1"),
        ("controller", "u1"),
        ("errors", "u1", (41,)),
        ("reflex_reason", "u1", (41,)),
        ("mode", "u1"),
        ("success_rate", "<f4"),
    ]
)
COMMAND = np.dtype(
    [
        ("id", "<u8"),
        ("motion", "u1", ((7 + 7 + 16 + 6 + 2) * 8 + 2,)),
        ("torques", "<f8", (7,)),
        ("finished", "u1"),
    ]
)
assert (STATE.itemsize, COMMAND.itemsize) == (1377, 371)


def speed_limits(positions_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest velocities at `positions_rad`: the nearer a limit, the slower."""

    def toward(room_rad: np.ndarray) -> np.ndarray:
        stoppable = np.sqrt(2 * BRAKING_RAD_S2 * room_rad.clip(0)) - OFFSET_RAD_S
        return stoppable.clip(0, SPEED_RAD_S)

    return -toward(positions_rad - LOW_RAD), toward(HIGH_RAD - positions_rad)


class FloatingJoints(Joints):
    """Joints that torques accelerate; their time passes in steps."""

    def step(self, torques_nm: np.ndarray, seconds: float) -> None:
        with self.lock:
            self._velocities_rad_s += torques_nm / INERTIA_KG_M2 * seconds
            self._positions_rad += self._velocities_rad_s * seconds

    def _advance(self) -> None:
        """Nothing happens between the steps."""


class FrankaEmulator:
    def __init__(self, positions_rad: np.ndarray = HOME_RAD):
        self.address = _own_loopback_address()
        self.joints = FloatingJoints(positions_rad)
        self.link = Link()
        self.moves = 0
        """Begun so far."""
        self._lock = self.joints.lock
        self._client: _Client | None = None
        self._state = np.zeros((), STATE)
        for name, length in _FIELDS:
            if length == 16:
                self._state[name] = np.eye(4).ravel()
        self._state["id"] = 1
        self._torques_nm = np.zeros(7)
        self._lost = 0
        self._gone = threading.Event()
        self._to_rest(IDLE)

    @property
    def mode(self) -> int:
        with self._lock:
            return int(self._state["mode"])

    @property
    def cycles(self) -> int:
        """Gone by; each is a millisecond of the arm's time, of which a busy machine lacks some."""
        with self._lock:
            return int(self._state["id"])

    def __enter__(self) -> "FrankaEmulator":
        self._listener = socket.create_server((self.address, PORT), backlog=1)
        self._thread = threading.Thread(target=self._run, name="franka emulator")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()

    def emergency_stop(self) -> None:
        with self._lock:
            self._end_move(EMERGENCY_ABORTED, mode=USER_STOPPED)

    def release(self) -> None:
        with self._lock:
            self._to_rest(IDLE)

    def reflex(self, error: int = JOINT_REFLEX) -> None:
        """Stop as after a collision, until the client asks for recovery."""
        with self._lock:
            self._state["errors"][error] = self._state["reflex_reason"][error] = 1
            self._end_move(REFLEX_ABORTED, mode=REFLEX)

    def crash(self) -> None:
        """Vanish after a reflex, but before the answer to the Move, for which libfranka waits."""
        with self._lock:
            self._to_rest(REFLEX)
        told = self.cycles + 5
        while self.cycles < told:
            time.sleep(0.001)
        self.vanish()

    def vanish(self) -> None:
        self._gone.set()
        self._thread.join()

    def _run(self) -> None:
        next_s = time.monotonic()
        with self._listener:
            while not self._gone.is_set():
                if self._client is None:
                    self._accept()
                    next_s = time.monotonic()
                    continue
                try:
                    for command, number, body in self._client.requests():
                        with self._lock:
                            self._answer(self._client, command, number, body)
                    self._cycle(self._client)
                except OSError:
                    self._hang_up()
                # Cycles that were missed are made up for, unless they are very many.
                next_s = max(next_s + CYCLE_S, time.monotonic() - 1)
                time.sleep(max(0.0, next_s - time.monotonic()))
        self._hang_up()

    def _accept(self) -> None:
        readable, _, _ = select.select([self._listener], [], [], 0.02)
        if readable:
            connection, (host, _) = self._listener.accept()
            self._client = _Client(connection, host, self.address)

    def _hang_up(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
            if self._state["mode"] == MOVING:
                self._to_rest(IDLE)

    def _answer(self, client: "_Client", command: int, number: int, body: bytes) -> None:
        """Do what was asked for and say so; `number` is the request's."""
        if command == CONNECT:
            version, client.udp_port = struct.unpack("<HH", body)
            refused = version != VERSION
            client.answer(command, number, struct.pack("<BH", refused, VERSION))
        elif command == MOVE:
            if self._state["mode"] != IDLE or struct.unpack_from("<II", body) != (
                EXTERNAL_CONTROLLER,
                NO_GENERATOR,
            ):
                client.answer(command, number, bytes([NOT_POSSIBLE]))
                return
            client.move = number
            self.moves += 1
            self._lost = 0
            self._state["mode"] = MOVING
            self._state["controller"] = EXTERNAL_CONTROLLER
            self._state["generator"] = NO_GENERATOR + 1
            client.answer(command, number, bytes([STARTED]))
        elif command == STOP_MOVE:
            if self._state["mode"] == MOVING:
                self._end_move(PREEMPTED, mode=IDLE)
            client.answer(command, number, bytes([SUCCESS]))
        elif command == RECOVER:
            possible = self._state["mode"] in (IDLE, REFLEX)
            if possible:
                self._state["errors"] = 0
                self._to_rest(IDLE)
            client.answer(command, number, bytes([SUCCESS if possible else 1]))
        elif command == MODEL:
            client.answer(command, number, bytes([SUCCESS]) + _urdf().encode())
        else:  # a setting, which changes nothing here
            client.answer(command, number, bytes([SUCCESS]))

    def _cycle(self, client: "_Client") -> None:
        """Tell the state, wait for torques if there is a motion, and let a millisecond pass."""
        if client.udp_port is None:
            return
        with self._lock:
            moving = self._state["mode"] == MOVING
            number = int(self._state["id"])
            packet = self._packet()
        arrived = client.send_state(packet, self.link.pass_on)
        torques_nm = None
        if moving and arrived:
            torques_nm = client.receive_torques(number, self.link.pass_on, PATIENCE_S)
        with self._lock:
            self._state["id"] += 1
            if self._state["mode"] == MOVING:
                self._move(torques_nm)

    def _move(self, torques_nm: np.ndarray | None) -> None:
        if torques_nm is None:
            self._lost += 1
        else:
            self._lost = 0
            if (np.abs(torques_nm - self._torques_nm) > TORQUE_STEP_NM).any():
                self.reflex(DISCONTINUITY)
                return
            self._torques_nm = torques_nm
        self.joints.step(self._torques_nm, CYCLE_S)
        positions_rad, velocities_rad_s = self.joints.now()
        least_rad_s, greatest_rad_s = speed_limits(positions_rad)
        if self._lost > MOST_LOST:
            self.reflex(COMMUNICATION)
        elif ((velocities_rad_s < least_rad_s) | (velocities_rad_s > greatest_rad_s)).any():
            self.reflex(VELOCITY)
        elif (positions_rad < LOW_RAD).any() or (positions_rad > HIGH_RAD).any():
            self.reflex(POSITION_LIMITS)

    def _packet(self) -> bytes:
        state = self._state
        positions_rad, velocities_rad_s = self.joints.now()
        state["q"] = state["q_d"] = state["theta"] = positions_rad
        state["dq"] = state["dq_d"] = state["dtheta"] = velocities_rad_s
        state["tau_J"] = state["tau_J_d"] = self._torques_nm
        return state.tobytes()

    def _end_move(self, status: int, *, mode: int) -> None:
        moving = self._state["mode"] == MOVING
        self._to_rest(mode)
        if moving and self._client is not None:
            self._client.answer(MOVE, self._client.move, bytes([status]))

    def _to_rest(self, mode: int) -> None:
        self.joints.halt()
        self._torques_nm = np.zeros(7)
        self._state["mode"] = mode
        self._state["generator"] = 0
        self._state["controller"] = 3  # another than a client's


PassOn = Callable[[bytes], bytes | None]


class _Client:
    """The two connections to a client."""

    def __init__(self, connection: socket.socket, host: str, address: str):
        self.udp_port: int | None = None
        self.move = 0
        self._host = host
        self._tcp = connection
        self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tcp.setblocking(False)
        self._read = b""
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, 0))
        self._udp.setblocking(False)

    def close(self) -> None:
        self._tcp.close()
        self._udp.close()

    def requests(self) -> list[tuple[int, int, bytes]]:
        """Command, number and body of all that have arrived whole."""
        try:
            received = self._tcp.recv(65536)
            if not received:
                raise ConnectionResetError
            self._read += received
        except BlockingIOError:
            return []
        found = []
        while len(self._read) >= 12:
            command, number, size = struct.unpack_from("<III", self._read)
            if len(self._read) < size:
                break
            found.append((command, number, self._read[12:size]))
            self._read = self._read[size:]
        return found

    def answer(self, command: int, number: int, body: bytes) -> None:
        self._tcp.sendall(struct.pack("<III", command, number, 12 + len(body)) + body)

    def send_state(self, packet: bytes, pass_on: PassOn) -> bool:
        """Whether it arrives; one with a wrong bit does not pass the system's checksum."""
        arrives = pass_on(packet) == packet
        if arrives:
            self._udp.sendto(packet, (self._host, self.udp_port))
        return arrives

    def receive_torques(self, number: int, pass_on: PassOn, patience_s: float) -> np.ndarray | None:
        """The torques that answer the state of this number; None where they are lost."""
        end_s = time.monotonic() + patience_s
        while (left_s := end_s - time.monotonic()) > 0:
            readable, _, _ = select.select([self._udp], [], [], left_s)
            if not readable:
                return None
            packet = self._udp.recv(2048)
            command = np.frombuffer(packet, COMMAND)[0]
            if command["id"] == number:
                return command["torques"].copy() if pass_on(packet) == packet else None
        return None


def _own_loopback_address() -> str:
    """One of 127.0.0.0/8 for each process, since the port is always the same."""
    process = os.getpid()
    return f"127.{1 + process // 254**2}.{1 + process // 254 % 254}.{1 + process % 254}"


def _urdf() -> str:
    """The arm's joints, with links so light that no Coriolis torque comes of them."""
    links = "".join(
        f"""<link name="link{i}"><inertial><mass value="1e-6"/>
        <inertia ixx="1e-9" ixy="0" ixz="0" iyy="1e-9" iyz="0" izz="1e-9"/></inertial></link>"""
        for i in range(9)
    )
    origins = [(0, 0, 0.333), (0, 0, 0), (0, -0.316, 0), (0.0825, 0, 0), (-0.0825, 0.384, 0)]
    origins += [(0, 0, 0), (0.088, 0, 0)]
    rolls_rad = np.array([0, -1, 1, 1, -1, 1, 1]) * np.pi / 2
    joints = "".join(
        f"""<joint name="joint{i + 1}" type="revolute"><parent link="link{i}"/>
        <child link="link{i + 1}"/><axis xyz="0 0 1"/>
        <origin xyz="{x} {y} {z}" rpy="{rolls_rad[i]} 0 0"/>
        <limit effort="87" lower="{LOW_RAD[i]}" upper="{HIGH_RAD[i]}"
        velocity="{SPEED_RAD_S[i]}"/><position_based_velocity_limits
        velocity_offset="{OFFSET_RAD_S[i]}" deceleration_limit="{BRAKING_RAD_S2[i]}"/></joint>"""
        for i, (x, y, z) in enumerate(origins)
    )
    flange = """<joint name="joint8" type="fixed"><parent link="link7"/>
        <child link="link8"/><origin xyz="0 0 0.107"/></joint>"""
    return f'<?xml version="1.0"?><robot name="fr3">{links}{joints}{flange}</robot>'
