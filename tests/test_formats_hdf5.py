"""HDF5 files that are damaged, hostile or strange; and damaged files of every format in HDF5."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats import d4rl, libero, minari, robomimic
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.hdf5 import is_hdf5, natural_order, open_hdf5
from robot_qsft.datasets.formats.hdf5_dataset import MAX_BYTES, MAX_RATIO
from robot_qsft.datasets.source import Column

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.hdf5"


def refused(path: Path, sentence: str, name: str = "x") -> None:
    """Reading dataset `name` must end in this sentence."""
    with open_hdf5(path) as root, pytest.raises(ValueError, match=sentence) as caught:
        root.dataset(name).numbers()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_numbers_text_and_attributes_come_as_stored(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["big"] = np.array([[1, 2], [3, 4]], ">i4")
        file["flags"] = [True, False]
        file["fixed"] = np.array(["a", "é".encode()], "S2")
        file.create_dataset("free", data=["é", ""], dtype=h5py.string_dtype())
        file["deep/er/x"] = np.zeros((0, 3), np.float32)
        file["alone"] = 2.5
        file.attrs["text"] = "é"
        file.attrs["bytes"] = np.bytes_(b"b")
        file.attrs["number"] = 3
        file.attrs["json"] = '{"a": [1]}'
    with open_hdf5(path) as root:
        assert root.names() == ["alone", "big", "deep", "fixed", "flags", "free"]
        assert "big" in root and "small" not in root
        big = root.dataset("big").numbers()
        np.testing.assert_array_equal(big, [[1, 2], [3, 4]])
        assert big.dtype == np.int32 and root.dataset("big").column == Column("int32", (2,))
        np.testing.assert_array_equal(root.dataset("big").numbers(first=1, count=1), [[3, 4]])
        flags = root.dataset("flags").numbers()
        assert flags.dtype == np.bool_ and flags.tolist() == [True, False]
        assert root.dataset("fixed").text() == ["a", "é"]
        assert root.dataset("free").text(first=0, count=1) == ["é"]
        assert root.dataset("free").column == Column("string")
        assert list(root.datasets()) == ["alone", "big", "deep/er/x", "fixed", "flags", "free"]
        assert root.dataset("deep/er/x").numbers().shape == (0, 3)
        assert root.dataset("alone").scalar() == 2.5 and root.dataset("alone").column is None
        assert (root.attribute("text"), root.attribute("bytes")) == ("é", "b")
        assert root.attribute("number") == 3 and root.attribute("none") is None
        assert root.json("json") == {"a": [1]} and root.json("none") is None
        with pytest.raises(ValueError, match="expected 3 rows of '/big'"):
            root.dataset("big").numbers(first=2, count=1)
        with pytest.raises(ValueError, match=r"expected a dataset 'deep'.* but a group came"):
            root.dataset("deep")
        with pytest.raises(ValueError, match="expected a group 'big'"):
            root.group("big")


@pytest.mark.parametrize("chunks", [None, (2, 4, 5, 3), (5, 2, 5, 1)])
def test_images_come_in_order_whatever_the_chunks(
    path: Path, chunks: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robot_qsft.datasets.formats.hdf5_dataset._BLOCK_BYTES", 130)
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=images, chunks=chunks, compression="gzip" if chunks else None)
    with open_hdf5(path) as root:
        dataset = root.dataset("x")
        assert dataset.camera == Camera(4, 5, "image")
        np.testing.assert_array_equal(list(dataset.images()), images)
        np.testing.assert_array_equal(list(dataset.images(first=2, count=4)), images[2:6])


def test_nothing_outside_the_file_is_read(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = np.arange(4.0)
    (tmp_path / "raw.bin").write_bytes(np.arange(4.0).tobytes())
    layout = h5py.VirtualLayout((4,), np.float64)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (4,))
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "x")
        file["all"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/")
        file["soft"] = h5py.SoftLink("/all/x")
        file.create_virtual_dataset("virtual", layout)
        place = [(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("raw", (4,), np.float64, external=place)
        assert file["soft"][3] == file["virtual"][3] == file["raw"][3] == 3
    for name in ("external", "all/x", "soft"):
        refused(path, "is a link to another place, which is not followed; repack", name)
    for name in ("virtual", "raw"):
        refused(path, "keeps its rows in another file, which is not opened; repack", name)


def test_types_that_are_no_numbers_are_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["reference"] = np.array([file.ref], h5py.ref_dtype)
        file["compound"] = np.zeros(2, [("a", "f4")])
        file["opaque"] = np.zeros(2, "V4")
        file["complex"] = np.zeros(2, complex)
        file["text"] = ["a"]
        file["type"] = np.dtype("f4")
    for name in ("reference", "compound", "opaque", "complex", "text"):
        refused(path, f"expected numbers in '/{name}'", name)
    refused(path, "but a named type came", "type")


def test_rows_that_were_never_written_are_refused_not_made_up(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("late", (4, 2), np.float64)
        partly = file.create_dataset("partly", (4, 2), np.float64, chunks=(2, 2))
        partly[:2] = 1
        assert file["late"][3, 1] == partly[3, 1] == 0
    for name in ("late", "partly"):
        refused(path, "expected 4 rows of .* but some were never written; restore", name)


def test_absurd_sizes_are_refused_before_memory_is_taken(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("late", (1 << 40, 1 << 20), np.float64)
        # A whole chunk of zeros shrinks to a thousandth: still believed. Many bytes of it at once
        # are not read.
        zeros = file.create_dataset(
            "zeros", (MAX_BYTES + 1,), np.uint8, chunks=(1 << 24,), compression="gzip"
        )
        for first in range(0, MAX_BYTES + 1, 1 << 24):
            zeros[first : min(first + (1 << 24), MAX_BYTES + 1)] = 0
        # Twice deflated, it shrinks to a millionth.
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((1 << 24,))
        made.set_deflate(9)
        made.set_deflate(9)
        space = h5py.h5s.create_simple((1 << 24,))
        bomb = h5py.h5d.create(file.id, b"bomb", h5py.h5t.NATIVE_UINT8, space, made)
        bomb.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(1 << 24, np.uint8))
        assert MAX_RATIO * bomb.get_storage_size() < (1 << 24)
    refused(path, "never written", "late")
    refused(path, "expected at most 512 MiB at once", "zeros")
    refused(path, r"claims 16777216 bytes, but only \d+ are stored", "bomb")
    with open_hdf5(path) as root:
        assert not root.dataset("zeros").numbers(first=MAX_BYTES - 9, count=10).any()


def test_filters_that_h5py_lacks_are_named(path: Path) -> None:
    with h5py.File(path, "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((2,))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((2,))
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, space, made)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2, np.int32))
    refused(path, "compressed by HDF5 filter 32015, which h5py does not bring along; repack it")


def test_circles_and_deep_groups_end_in_a_sentence(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a/x"] = [1]
        file["a/again"] = file["a"]
    with open_hdf5(path) as root, pytest.raises(ValueError, match="groups at most 8 deep"):
        root.datasets()


def test_attributes_that_are_strange_end_in_a_sentence(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["list"] = "[1]"
        file.attrs["broken"] = "{"
        file.attrs["deep"] = "[" * 100_000
        file.attrs["number"] = 1
        file.attrs["bytes"] = np.bytes_(b"\xff")
        file.attrs["reference"] = file.ref
    with open_hdf5(path) as root:
        for name in ("list", "number"):
            with pytest.raises(ValueError, match=f"expected a JSON object in attribute '{name}'"):
                root.json(name)
        for name in ("broken", "deep"):
            with pytest.raises(ValueError, match=f"expected JSON in attribute '{name}'"):
                root.json(name)
        with pytest.raises(ValueError, match="attribute 'bytes' of '/' cannot be read"):
            root.attribute("bytes")
        with pytest.raises(ValueError, match="expected numbers or a text in attribute 'reference'"):
            root.attribute("reference")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_text_of_any_length_is_found_in_its_heap(path: Path, libver: str) -> None:
    texts = [str(number) * number for number in range(50)]
    with h5py.File(path, "w", libver=libver) as file:
        # The newest layout keeps more than 8 attributes outside of the header.
        for number in range(8 if libver == "latest" else 40):
            file.attrs[f"a{number}"] = f"é{number}" * number
        text = h5py.string_dtype()
        file.create_dataset("whole", data=texts, dtype=text)
        file.create_dataset("chunked", data=texts, dtype=text, chunks=(8,))
        file.create_dataset("packed", data=texts, dtype=text, chunks=(8,), compression="gzip")
        many = file.create_group("many")
        for number in range(9):
            many.attrs[f"a{number}"] = "x"
    with open_hdf5(path) as root:
        for number in range(8):
            assert root.attribute(f"a{number}") == f"é{number}" * number
        for name in ("whole", "chunked"):
            assert root.dataset(name).text() == texts
            for first, count in ((0, 8), (5, 1), (7, 10), (16, 34), (50, 0)):
                found = root.dataset(name).text(first=first, count=count)
                assert found == texts[first : first + count]
            with pytest.raises(ValueError, match="expected 51 rows"):
                root.dataset(name).text(first=50, count=1)
        with pytest.raises(ValueError, match="rows of variable length that are compressed"):
            root.dataset("packed")
        if libver == "latest":
            with pytest.raises(ValueError, match="kept elsewhere; store it as text of fixed"):
                root.group("many").attribute("a0")
        else:
            assert root.attribute("a39") == "é39" * 39


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (0, b"GCOX"),  # another signature
        (8, b"\xff" * 7),  # longer than the file
        (16, b"\x07\x00"),  # another index
        (16, bytes(16)),  # free space of no size, over which the library never gets
        (24, b"\xff" * 7),  # a value longer than the heap
        (24, b"\x01"),  # a value shorter than the reference says
    ],
)
def test_damaged_heaps_end_in_a_sentence(path: Path, place: int, content: bytes) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["text"] = "hello"
    stored = bytearray(path.read_bytes())
    heap = stored.index(b"GCOL")
    stored[heap + place : heap + place + len(content)] = content
    path.write_bytes(stored)
    with open_hdf5(path) as root, pytest.raises(ValueError, match="a heap or header is damaged"):
        root.attribute("text")


def test_what_is_no_hdf5_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an HDF5 file at .* but there is none"):
        open_hdf5(path)
    path.write_bytes(b"hello")
    assert not is_hdf5(path) and not is_hdf5(tmp_path) and not is_hdf5(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected a complete HDF5 file at .* cannot be read"):
        open_hdf5(path)


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["demo_10", "demo_9", "demo_1"], key=natural_order) == [
        "demo_1",
        "demo_9",
        "demo_10",
    ]


def test_without_h5py_it_is_said_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demos(path, "robomimic")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert [one.matches(path) for one in (robomimic, libero, d4rl)] == [True, False, False]
    with pytest.raises(ValueError, match=r"needs the package 'h5py'.*robot-qsft\[formats\]"):
        robomimic.RobomimicSource(path)


def write_demos(path: Path, kind: str) -> None:
    """Two demos of 4 steps."""
    rng = np.random.default_rng(0)
    env_args = json.dumps({"type": 1, "env_name": "Lift", "env_kwargs": {"control_freq": 20}})
    image = {"chunks": (1, 8, 8, 3), "compression": "gzip"}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if kind == "robosuite":
            data.attrs["env_info"] = "{}"
        else:
            data.attrs["env_args"] = env_args
        for index in range(2):
            demo = data.create_group(f"demo_{index}")
            demo["actions"] = rng.normal(size=(4, 7))
            demo["states"] = rng.normal(size=(4, 12))
            if kind == "robosuite":
                continue
            demo.attrs["num_samples"] = 4
            demo["rewards"] = np.zeros(4)
            demo["dones"] = np.zeros(4, int)
            images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
            if kind == "libero":
                data.attrs["problem_info"] = json.dumps({"language_instruction": "lift"})
                demo["obs/joint_states"] = rng.normal(size=(4, 7))
                demo.create_dataset("obs/agentview_rgb", data=images)
            else:
                demo["obs/object"] = rng.normal(size=(4, 5)).astype(np.float32)
                demo.create_dataset("obs/agentview_image", data=images, **image)
        if kind == "robomimic":
            file["mask/train"] = np.array(["demo_1"], "S")


def write_d4rl(path: Path) -> None:
    """Two episodes of 4 steps."""
    rng = np.random.default_rng(0)
    ends = np.tile([False, False, False, True], 2)
    with h5py.File(path, "w") as file:
        images = rng.integers(0, 256, (8, 8, 8, 3), np.uint8)
        file.create_dataset("observations", data=images, chunks=(2, 8, 8, 3), compression="gzip")
        file.create_dataset("actions", data=rng.normal(size=(8, 2)), chunks=(3, 2))
        file["rewards"] = np.zeros(8, np.float32)
        file["terminals"] = ends
        file["timeouts"] = ~ends & False
        file["infos/qpos"] = rng.normal(size=(8, 3))


def write_minari(path: Path) -> None:
    """Two episodes of 3 steps in HDF5."""
    (path / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0], "high": [1, 1]}
    text = {"type": "Text", "max_length": 9, "min_length": 1, "charset": "go"}
    observation = {"type": "Dict", "subspaces": {"state": box, "mission": text}}
    metadata: dict[str, Any] = {
        "total_episodes": 2,
        "total_steps": 6,
        "data_format": "hdf5",
        "observation_space": json.dumps(observation),
        "action_space": json.dumps(box),
    }
    (path / "data/metadata.json").write_text(json.dumps(metadata))
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for index in range(2):
            group = file.create_group(f"episode_{index}")
            group.attrs["total_steps"] = 3
            group["observations/state"] = np.zeros((4, 2), np.float32)
            group.create_dataset(
                "observations/mission", data=["go"] * 4, dtype=h5py.string_dtype(), chunks=True
            )
            group["actions"] = np.zeros((3, 2), np.float32)
            group["rewards"] = np.zeros(3)
            group["terminations"] = np.zeros(3, bool)
            group["truncations"] = np.zeros(3, bool)
            group["infos/success"] = np.zeros(4, bool)


def test_at_most_one_format_matches(tmp_path: Path) -> None:
    places = {}
    for kind in ("robomimic", "robosuite", "libero"):
        places[kind] = tmp_path / f"{kind}.hdf5"
        write_demos(places[kind], kind)
    places["d4rl"] = tmp_path / "d4rl.hdf5"
    write_d4rl(places["d4rl"])
    places["minari"] = tmp_path / "minari"
    write_minari(places["minari"])
    modules = (robomimic, libero, d4rl, minari)
    found = {
        kind: [module.__name__.rpartition(".")[2] for module in modules if module.matches(place)]
        for kind, place in places.items()
    }
    assert found == {
        "robomimic": ["robomimic"],
        "robosuite": ["robomimic"],
        "libero": ["libero"],
        "d4rl": ["d4rl"],
        "minari": ["minari"],
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.hdf5").write_text("hello")
    with h5py.File(tmp_path / "aloha.hdf5", "w") as file:
        file["observations/qpos"] = np.zeros((3, 14))
        file["action"] = np.zeros((3, 14))
    for other in ("empty", "text.hdf5", "none", "aloha.hdf5", "minari/data/main_data.hdf5"):
        assert not any(module.matches(tmp_path / other) for module in modules)


# Runs in a process of its own, so that a crash of the HDF5 library is seen.
FUZZ = """
import random, resource, shutil, sys
from pathlib import Path
from robot_qsft.datasets.formats import d4rl, libero, minari, robomimic

kind, whole, file, cases = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
module, opened = {
    "robomimic": (robomimic, robomimic.RobomimicSource),
    "robosuite": (robomimic, robomimic.RobomimicSource),
    "libero": (libero, libero.LiberoSource),
    "d4rl": (d4rl, d4rl.D4RLSource),
    "minari": (minari, minari.MinariSource),
}[kind]
place = whole.with_name("mutant" + whole.suffix)
if whole.is_dir():
    shutil.copytree(whole, place)
original = (whole / file).read_bytes()
choose = random.Random(kind)
read = refused = 0
for case in range(cases):
    content = bytearray(original)
    if case % 8 == 0:
        del content[choose.randrange(len(content)):]
    else:
        for _ in range(choose.choice((1, 1, 2, 8))):
            at = choose.randrange(len(content))
            content[at] = choose.choice((0, 255, choose.randrange(256), content[at] ^ 1))
    # A new file each time: the library goes on with what it knows of one that is still open.
    (place / file).unlink(missing_ok=True)
    (place / file).write_bytes(content)
    print("case", case, flush=True)
    module.matches(place)
    try:
        source = opened(place)
        for index in range(len(source)):
            steps = len(source.recording(index))
            for camera in source.info.cameras:
                assert len(list(source.frames(index, camera))) == steps
        read += 1
    except ValueError as error:
        assert "\\n" not in str(error), error
        refused += 1
print("read", read, "refused", refused)
"""


@pytest.mark.parametrize("kind", ["robomimic", "robosuite", "libero", "d4rl", "minari"])
def test_damaged_files_are_read_or_refused_in_a_sentence(
    tmp_path: Path, kind: str, process_environment: dict[str, str]
) -> None:
    cases = 200
    whole, file = tmp_path / "whole.hdf5", ""
    if kind == "minari":
        whole, file = tmp_path / "whole", "data/main_data.hdf5"
        write_minari(whole)
    elif kind == "d4rl":
        write_d4rl(whole)
    else:
        write_demos(whole, kind)
    command = [sys.executable, "-c", FUZZ, kind, str(whole), file, str(cases)]
    done = subprocess.run(
        command, env=process_environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-2000:])
    _, read, _, refused_count = done.stdout.splitlines()[-1].split()
    # All that were cut off are refused; what lies in the numbers themselves cannot be seen.
    assert int(read) + int(refused_count) == cases
    assert int(refused_count) >= cases // 8 and int(read) > 0


def test_a_file_that_was_cut_off_is_called_so(tmp_path: Path) -> None:
    whole, cut, empty = tmp_path / "whole.hdf5", tmp_path / "cut.hdf5", tmp_path / "empty.hdf5"
    with h5py.File(whole, "w") as file:
        file["data/demo_0/actions"] = np.zeros((400, 7))
    cut.write_bytes(whole.read_bytes()[:500])
    empty.touch()
    with pytest.raises(ValueError, match=r"complete HDF5 file at .*cut.hdf5, .*; restore it"):
        open_source(cut)
    with pytest.raises(ValueError, match=r"empty.hdf5 is empty; copy it again"):
        open_source(empty)
