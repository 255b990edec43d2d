"""The files of a zarr hierarchy, in a folder or in a zip, read one by one and never unpacked."""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ARRAY = ".zarray"
GROUP = ".zgroup"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 1
_LINK = 0o120000
_DAMAGE = (
    *(zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error),
    *(EOFError, OverflowError, IndexError),
)
"""What zipfile raises when the list of members is damaged."""


class ZarrStore(Protocol):
    """Where the files of a hierarchy are.

    Attributes:
        path: of the folder or zip.
    """

    path: Path

    def read(self, name: str, *, limit: int) -> bytes | None:
        """The content of a file; None where there is none.

        Args:
            name: from the root of the hierarchy on, such as "data/action/0.0".
            limit: bytes that it may have at most.

        Raises:
            ValueError: when it is larger, or damaged.
        """

    def arrays(self, group: str) -> tuple[str, ...]:
        """Names of the arrays right below a group, sorted.

        Raises:
            ValueError: when the files of something below it are there, but not what tells its kind.
        """

    def files(self) -> tuple[Path, ...]:
        """The files on disk, sorted."""


class ZarrFolder:
    """A hierarchy in a folder."""

    def __init__(self, path: Path) -> None:
        """Take the folder as it is; nothing is read."""
        self.path = path

    def read(self, name: str, *, limit: int) -> bytes | None:
        """See `ZarrStore`."""
        file = self.path / name
        try:
            about = file.stat()
            # What is no file, such as a pipe, might never end.
            regular = stat.S_ISREG(about.st_mode)
            content = file.read_bytes() if regular and about.st_size <= limit else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(
                f"expected a readable file at {file}, but it is none ({error.strerror}); restore it"
            ) from error
        if not regular:
            raise ValueError(f"expected a file at {file}, but something else is there; restore it")
        if about.st_size > limit:
            raise ValueError(_too_large(str(file), limit))
        return content

    def arrays(self, group: str) -> tuple[str, ...]:
        """See `ZarrStore`."""
        if not (self.path / group).is_dir():
            return ()
        try:
            below = [one.name for one in (self.path / group).iterdir() if one.is_dir()]
            kinds = {name: _kinds(self.path / group / name) for name in below}
        except OSError as error:
            raise ValueError(
                f"expected a folder at {self.path / group}, but it cannot be read "
                f"({error.strerror}); restore it"
            ) from error
        return _arrays(kinds, about=str(self.path / group))

    def files(self) -> tuple[Path, ...]:
        """See `ZarrStore`."""
        return tuple(sorted(file for file in self.path.rglob("*") if file.is_file()))


@dataclass(frozen=True)
class _Member:
    """Where a file lies in a zip, as the list at the zip's end has it."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int
    encrypted: bool


class ZarrZip:
    """A hierarchy in a zip, at its root or in one folder of it.

    The list of members is read once. The zip is opened anew for each read, so that processes may
    share the object.
    """

    def __init__(self, path: Path, *, landmark: str) -> None:
        """Read the list of members.

        Args:
            path: of the zip.
            landmark: a file of the hierarchy that tells where its root is.

        Raises:
            ValueError: when the zip is damaged, a member leads out of it, or the hierarchy is not
                in it.
        """
        self.path = path
        members = _members(path)
        roots = [
            name.removesuffix(landmark)
            for name in members
            if name == landmark or name.endswith("/" + landmark)
        ]
        if len(roots) != 1:
            raise ValueError(
                f"expected {landmark} once in {path}, but it is there {len(roots)} times; "
                "zip one hierarchy"
            )
        self._members = {
            name.removeprefix(roots[0]): member
            for name, member in members.items()
            if name.startswith(roots[0])
        }

    def read(self, name: str, *, limit: int) -> bytes | None:
        """See `ZarrStore`."""
        member = self._members.get(name)
        if member is None:
            return None
        about = f"{name} in {self.path}"
        if max(member.size, member.packed) > limit:
            raise ValueError(_too_large(about, limit))
        try:
            with self.path.open("rb") as file:
                file.seek(member.offset)
                header = file.read(_LOCAL_HEADER.size)
                if len(header) < _LOCAL_HEADER.size:
                    raise ValueError(_damaged(about))
                magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
                file.seek(name_length + extra_length, 1)
                packed = file.read(member.packed)
        except OSError as error:
            raise ValueError(_damaged(about)) from error
        if magic != _LOCAL_MAGIC or len(packed) != member.packed:
            raise ValueError(_damaged(about))
        if member.encrypted or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"expected {about} stored or deflated and not encrypted, but it is otherwise; "
                "zip the folder again"
            )
        content = packed
        if member.method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
            except zlib.error as error:
                raise ValueError(_damaged(about)) from error
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise ValueError(_damaged(about))
        return content

    def arrays(self, group: str) -> tuple[str, ...]:
        """See `ZarrStore`."""
        pattern = re.compile(rf"{re.escape(group)}/([^/]+)/(.+)")
        kinds: dict[str, set[str]] = {}
        for match in filter(None, map(pattern.fullmatch, self._members)):
            kinds.setdefault(match[1], set()).update({match[2]} & {ARRAY, GROUP})
        return _arrays(kinds, about=f"{group} in {self.path}")

    def files(self) -> tuple[Path, ...]:
        """See `ZarrStore`."""
        return (self.path,)


def has_member(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether a file is a zip with a member of such a name, or a zip whose list is damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(_LOCAL_MAGIC)) != _LOCAL_MAGIC:
                return False
        with zipfile.ZipFile(path) as opened:
            return any(name.endswith(endings) for name in opened.namelist())
    except _DAMAGE:
        return True


def _kinds(folder: Path) -> set[str]:
    """Which of the two files that tell a kind are there; neither matters where nothing is."""
    if not any(folder.iterdir()):
        return {GROUP}
    return {name for name in (ARRAY, GROUP) if (folder / name).is_file()}


def _arrays(kinds: Mapping[str, Set[str]], *, about: str) -> tuple[str, ...]:
    for name, found in kinds.items():
        if not found:
            raise ValueError(
                f"expected {name!r:.80} below {about} to have a file {ARRAY}, as an array has, but "
                "there is none; restore it, or remove the rest of that array"
            )
    return tuple(sorted(name for name, found in kinds.items() if ARRAY in found))


def _members(path: Path) -> dict[str, _Member]:
    try:
        with zipfile.ZipFile(path) as opened:
            infos = opened.infolist()
    except _DAMAGE as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"expected a whole zip at {path}, but its list of members cannot be read ({reason}); "
            "restore it"
        ) from error
    members = {}
    for info in infos:
        name = info.orig_filename
        out = re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name)
        if out or "\0" in name or info.external_attr >> 16 & 0o170000 == _LINK:
            raise ValueError(
                f"expected members within {path}, but {name!r:.120} leads out of it or is a link; "
                "do not trust this file"
            )
        members[name] = _Member(
            offset=info.header_offset,
            packed=info.compress_size,
            size=info.file_size,
            crc=info.CRC,
            method=info.compress_type,
            encrypted=bool(info.flag_bits & _ENCRYPTED),
        )
    return members


def _too_large(about: str, limit: int) -> str:
    return f"expected at most {limit} bytes for {about}, but it is larger; restore or drop the file"


def _damaged(about: str) -> str:
    return f"expected {about} as the zip's list has it, but it is damaged; restore the zip"
