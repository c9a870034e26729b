"""Unpacking tar and zip archives from strangers, so that a killed run can go on.

Stricter than `tarfile.data_filter`: only plain files and folders are made, none outside the target,
and what the archive says of itself is bounded before it is read; a link, a device, a sparse file or
a path that leads out stops the unpacking. And, unlike `extractall`, it goes on: a file gets its
name only when it is whole, and one that is there already with the right size is kept.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.files import open_regular
from visual_search.common.locks import alone
from visual_search.common.progress import progress_bar

COPIED_AT_ONCE = 1 << 20
UNFINISHED, RECORD = ".unpacking", ".unpacked.json"
"""In the target: the file being written, and what was unpacked (see prepare_dataset)."""
MOST_HEADER_BYTES = 8 << 10
"""Of a long name or a pax header: Pythons before 3.11.10 take a time of their size squared."""
SUMMED_BELOW = 1 << 28
"""Bytes of an archive of which the sizes are always summed first."""

_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_DRIVE = re.compile(r"^[A-Za-z]:")
_HEADER_TYPES = (b"x", b"g", b"X", b"L", b"K")
"""Of pax, Solaris and GNU: what they hold is read into memory."""


@dataclass
class Unpacked:
    """What came of an archive."""

    written: int = 0
    kept: int = 0
    """Files that were there already, with the right size."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    size: int
    is_folder: bool
    open: Callable[[], Any]


def unpack(archive: Path, target: Path) -> Unpacked:
    """Unpack a zip or tar file, whatever its compression; its first bytes say what it is.

    Raises:
        UserError: for what is no archive, is damaged, cut off, encrypted or unsafe, when there is
            no room for it, and when another one is being unpacked into the folder.
    """
    try:
        stream = open_regular(archive)
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error
    with stream:
        if not stream.peek(1):
            raise UserError(f"{archive} is empty")
        return unpack_stream(stream, archive.name, target, archive.stat().st_size)


def unpack_stream(stream: io.BufferedReader[Any], name: str, target: Path, size: int) -> Unpacked:
    """Unpack an archive of `size` bytes from a stream that can seek; `name` is for messages."""
    members = _zip_members if stream.peek(4)[:4] in _ZIP else _tar_members
    bar = progress_bar(f"unpacking {name}", "B", total=size, unit_scale=True)
    target.mkdir(parents=True, exist_ok=True)
    busy = f"another archive is being unpacked into {target}: wait until that has ended"
    with alone(target, busy), _damage_named(name), bar:
        writer = _Writer(target, name)
        # A large archive is read once where the disk has plenty of room: to read it twice takes
        # minutes. `_Writer` looks at the room of each file.
        if size < SUMMED_BELOW or shutil.disk_usage(target).free < 2 * size:
            sizes = (m.size for m in members(stream, name) if not (m.is_folder or writer.has(m)))
            writer.check_room(sum(sizes))
        for member in members(stream, name):
            writer.write(member)
            bar.update(max(stream.tell() - bar.n, 0))
    return writer.result


def _tar_members(stream: io.BufferedReader[Any], name: str) -> Iterator[_Member]:
    stream.seek(0)
    start = stream.peek(8)
    opened = next((call for magic, call in _DECOMPRESSORS.items() if start.startswith(magic)), None)
    content = opened(stream) if opened else stream
    # Uncompressed, what is kept can be jumped over.
    mode = "r|" if opened else "r:"
    with tarfile.open(fileobj=content, mode=mode, tarinfo=_StrictTarInfo) as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            if member.issparse() or not (member.isreg() or member.isdir()):
                link = member.issym() or member.islnk()
                kind = "sparse file" if member.issparse() else "link" if link else "device"
                raise UserError(f"{name} holds a {kind}, {member.name!r}: nothing more is unpacked")
            size = member.size if member.isreg() else 0
            yield _Member(member.name, size, member.isdir(), partial(tar.extractfile, member))
            tar.members = []  # members already seen would be kept, half a kilobyte each
    while content.read(COPIED_AT_ONCE):  # so that a checksum behind the end is looked at
        pass


class _StrictTarInfo(tarfile.TarInfo):
    """Headers that are bounded, and do not pass for the end of the archive when damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            cut = len(buf) < tarfile.BLOCKSIZE
            raise _Damaged("it is cut off" if cut else str(error)) from error
        if found.type in _HEADER_TYPES and found.size > MOST_HEADER_BYTES:
            raise _Damaged(f"a name or header in it has {found.size} bytes")
        return found


def _zip_members(stream: io.BufferedReader[Any], name: str) -> Iterator[_Member]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            path = member.filename
            if not member.flag_bits & 0x800:  # without the flag, UTF-8 is usual all the same
                with suppress(UnicodeError):
                    path = path.encode("cp437").decode("utf-8")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{name} holds a link, {path!r}: nothing more is unpacked")
            if member.flag_bits & 1:
                raise UserError(
                    f"{name} is encrypted: unpack it with its password and give the folder instead"
                )
            yield _Member(path, member.file_size, member.is_dir(), partial(archive.open, member))


class _Damaged(Exception):
    """What is wrong with an archive."""


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turn what the readers raise into one sentence about the archive."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(f"{name} cannot be unpacked here ({error})") from error
    except (
        *(_Damaged, EOFError, OSError, ValueError, OverflowError, RecursionError),
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    ) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"the disk is full while unpacking {name} ({error}): make room and run the same "
                "command again, it goes on from here"
            ) from error
        if number is not None:
            raise
        cut = isinstance(error, EOFError) or "unexpected end of data" in str(error)
        raise UserError(
            f"{name} is no whole archive: {'it is cut off' if cut else error}; get it again, then "
            "run the same command: the files that are unpacked stay"
        ) from error


class _Writer:
    """Writes the members of one archive below the target, and nowhere else."""

    def __init__(self, target: Path, archive: str) -> None:
        self.target, self.archive, self.result = target.resolve(), archive, Unpacked()
        self._safe_folders: set[Path] = set()

    def has(self, member: _Member) -> bool:
        """Whether a file is there already, by its size."""
        path = self._path(member.name)
        return path.is_file() and not path.is_symlink() and path.stat().st_size == member.size

    def check_room(self, needed: int) -> None:
        """Refuse to begin what cannot fit: a UserError with the bytes needed and those free."""
        free = shutil.disk_usage(self.target).free
        if free < needed:
            raise UserError(
                f"unpacking what is missing of {self.archive} into {self.target} takes "
                f"{needed / 1e9:.2f} GB, but the disk has room for {free / 1e9:.2f} GB only: make "
                "room, or name another folder"
            )

    def write(self, member: _Member) -> None:
        """Write a member, unless it is there; a UserError for a way out, or no room."""
        path = self._path(member.name)
        self._make(path if member.is_folder else path.parent)
        if member.is_folder:
            return
        if self.has(member):
            self.result.kept += 1
            return
        self.check_room(member.size)
        temporary = self.target / UNFINISHED
        temporary.unlink(missing_ok=True)  # of a killed run; a link is not followed
        try:
            with member.open() as source, temporary.open("xb") as handle:
                shutil.copyfileobj(source, handle, COPIED_AT_ONCE)
                if handle.tell() != member.size:
                    found = handle.tell()
                    raise _Damaged(f"{member.name!r} has {found} bytes instead of {member.size}")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        self.result.written += 1

    def _path(self, name: str) -> Path:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or _DRIVE.match(name) or "\0" in name:
            raise UserError(
                f"{self.archive} wants to write to {name!r}, outside of the folder it is unpacked "
                "to: nothing more is unpacked"
            )
        if path.parts[:1] in ((UNFINISHED,), (RECORD,)):
            raise UserError(
                f"{self.archive} holds {name!r}, a name that the unpacking needs for itself: "
                "nothing more is unpacked"
            )
        return self.target / path

    def _make(self, folder: Path) -> None:
        """Make a folder, and be sure that no link on the way leads out of the target."""
        if folder in self._safe_folders:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{error.filename} is in the way of a folder of {self.archive}"
            ) from error
        if not folder.resolve().is_relative_to(self.target):
            raise UserError(f"{folder} leads out of {self.target}: {self.archive} is not unpacked")
        self._safe_folders.add(folder)
