"""Unpacking tar and zip archives from strangers, so that a killed run can go on.

Stricter than `tarfile.data_filter`: only plain files and folders are made, and none outside the
target; a link, a device or a path that leads out stops the unpacking. And, unlike `extractall`, it
goes on: a file gets its name only when it is whole, and one that is there already with the right
size is kept.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, count, product
from pathlib import Path, PurePosixPath
from string import ascii_lowercase
from typing import IO, Any

from visual_search.common.errors import UserError
from visual_search.common.files import is_lfs_pointer, write_json
from visual_search.common.progress import progress_bar

COPIED_AT_ONCE = 1 << 20
UNFINISHED = ".unfinished"
RECORD = ".unpacked.json"

_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_DRIVE = re.compile(r"^[A-Za-z]:")
# `split` names parts aa, ab, … or 00, 01, …; other tools 1, 2, …
_PART = re.compile(r"^(?P<stem>.+)\.part(?P<number>[a-z]+|[0-9]+)$")


@dataclass
class Unpacked:
    """What came of an archive."""

    written: int = 0
    """Files that were written."""
    kept: int = 0
    """Files that were there already, with the right size."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    size: int
    is_folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, target: Path) -> Unpacked:
    """Unpack a zip or tar file, whatever its compression.

    Args:
        archive: the file; its first bytes say what it is, not its name.
        target: the folder that gets its contents; made if it is missing.

    Raises:
        UserError: for what is no archive, is damaged, cut off, encrypted or unsafe, and when the
            disk is full; it names the archive.
    """
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error
    with stream:
        if not stream.peek(1):
            raise UserError(f"{archive} is empty")
        return unpack_stream(stream, archive.name, target, archive.stat().st_size)


def unpack_parts(archive: Path, target: Path) -> Unpacked:
    """Unpack an archive that was split into parts (see :func:`find_parts`); none is written joined.

    Raises:
        UserError: see :func:`find_parts` and :func:`unpack`.
    """
    joined = JoinedParts(find_parts(archive))
    with io.BufferedReader(joined, 1 << 20) as stream:
        return unpack_stream(stream, archive.name, target, joined.size)


def unpack_stream(stream: io.BufferedReader[Any], name: str, target: Path, size: int) -> Unpacked:
    """Unpack an archive from the start of a stream that can seek.

    Args:
        stream: of the archive.
        name: of the archive, for messages.
        target: the folder that gets the contents.
        size: bytes of the stream, for the progress bar.
    """
    members = _zip_members if stream.peek(4)[:4] in _ZIP else _tar_members
    writer = _Writer(target, name)
    bar = progress_bar(f"unpacking {name}", "B", total=size, unit_scale=True)
    with _damage_named(name), bar:
        _check_space(lambda: members(stream, name), size, writer)
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
            if not (member.isreg() or member.isdir()):
                kind = "link" if member.issym() or member.islnk() else "device"
                raise UserError(f"{name} holds a {kind}, {member.name!r}: nothing more is unpacked")
            yield _Member(
                member.name,
                member.size if member.isreg() else 0,
                member.isdir(),
                lambda member=member: tar.extractfile(member),  # type: ignore[misc]
            )
            tar.members = []  # members already seen would be kept, half a kilobyte each
    while content.read(COPIED_AT_ONCE):  # so that a checksum behind the end is looked at
        pass


class _StrictTarInfo(tarfile.TarInfo):
    """Headers that do not pass for the end of the archive when they are missing or damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            cut = len(buf) < tarfile.BLOCKSIZE
            raise _Damaged("it is cut off" if cut else str(error)) from error


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
            yield _Member(
                path,
                member.file_size,
                member.is_dir(),
                lambda member=member: archive.open(member),  # type: ignore[misc]
            )


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
        _Damaged,
        EOFError,
        OSError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
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
        target.mkdir(parents=True, exist_ok=True)
        self.target, self.archive, self.result = target.resolve(), archive, Unpacked()
        self._safe_folders: set[Path] = set()

    def has(self, member: _Member) -> bool:
        """Whether a file is there already, by its size."""
        path = self._path(member.name)
        return path.is_file() and not path.is_symlink() and path.stat().st_size == member.size

    def write(self, member: _Member) -> None:
        """Write a member, unless it is there.

        Raises:
            UserError: for a path that leads out of the target.
        """
        path = self._path(member.name)
        self._make(path if member.is_folder else path.parent)
        if member.is_folder:
            return
        if self.has(member):
            self.result.kept += 1
            return
        temporary = path.with_name(path.name + UNFINISHED)
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


def _check_space(members: Callable[[], Iterator[_Member]], least: int, writer: _Writer) -> None:
    """Refuse to begin what cannot fit; only where it is tight is the archive gone through for it.

    Args:
        members: of the archive, from its start.
        least: bytes that the contents take, or fewer.
        writer: knows what is there.

    Raises:
        UserError: with the bytes that are missing and those that are free.
    """
    free = shutil.disk_usage(writer.target).free
    if free >= 2 * least:
        return
    needed = sum(m.size for m in members() if not (m.is_folder or writer.has(m)))
    if free < needed:
        raise UserError(
            f"unpacking what is missing of {writer.archive} into {writer.target} takes "
            f"{needed / 1e9:.2f} GB, but the disk has room for {free / 1e9:.2f} GB only: make "
            "room, or name another folder"
        )


class UnpackedArchives:
    """The archives that were unpacked into a folder, kept in a file there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / RECORD
        try:
            self._done: dict[str, list[int]] = json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            # Without a record everything is gone through again; what is there is kept.
            self._done = {}

    def __contains__(self, archive: Path) -> bool:
        return self._done.get(str(archive.resolve())) == _state(archive)

    def unpack(self, archive: Path) -> None:
        """Unpack an archive into the folder, unless that was done and it has not changed since."""
        if archive not in self:
            unpack(archive, self.folder)
            self._done[str(archive.resolve())] = _state(archive)
            write_json(self.file, self._done)


def _state(archive: Path) -> list[int]:
    status = archive.stat()
    return [status.st_size, status.st_mtime_ns]


def find_parts(stem: Path) -> list[Path]:
    """The parts of an archive in their order.

    Args:
        stem: what stands in front of `.part…`, with or without `.tar` and the like; one of the
            parts will do as well.

    Raises:
        UserError: when there is none, when one is missing in the sequence (it is named), is an
            LFS pointer or empty, or differs in size from the others but the last.
    """
    if match := _PART.match(stem.name):
        stem = stem.with_name(match["stem"])
    if not stem.parent.is_dir():
        raise UserError(f"the folder {stem.parent} does not exist")
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(stem.parent.iterdir()):
        match = _PART.match(path.name)
        if match and (match["stem"] == stem.name or match["stem"].startswith(f"{stem.name}.t")):
            groups.setdefault(match["stem"], {})[match["number"]] = path
    if not groups:
        raise UserError(f"{stem.parent} has no part {stem.name}.part… (or {stem.name}.tar.part…)")
    if len(groups) > 1:
        raise UserError(f"{' and '.join(sorted(groups))} are both there: name the one you mean")
    ((name, numbers),) = groups.items()
    _refuse_gaps(stem.with_name(name), sorted(numbers, key=lambda number: (len(number), number)))
    parts = [numbers[number] for number in sorted(numbers, key=lambda n: (len(n), n))]
    sizes = [part.stat().st_size for part in parts]
    for part, size in zip(parts, sizes, strict=True):
        if is_lfs_pointer(part):
            raise UserError(
                f"{part} is still a git-LFS pointer: run "
                f"`git lfs pull --include '{stem.parent.as_posix()}/{stem.name}*'` in the "
                "repository"
            )
        if size == 0:
            raise UserError(f"the part {part} is empty: get it again")
        # `split` makes all parts but the last alike: another size is an unfinished download.
        if size < max(sizes) and part != parts[-1]:
            raise UserError(
                f"the part {part} has {size} bytes, others have {max(sizes)}: get it again"
            )
    return parts


def _refuse_gaps(stem: Path, numbers: Sequence[str]) -> None:
    first = numbers[0]
    expected: Iterator[str]
    if first.isdigit():  # digits begin at 0 or at 1, letters at a
        expected = (str(number).zfill(len(first)) for number in count(int(int(first) == 1)))
    elif len(first) != len(numbers[-1]):
        raise UserError(
            f"the parts {stem.name}.part{first} and {stem.name}.part{numbers[-1]} are of "
            "different archives"
        )
    else:
        expected = map("".join, product(ascii_lowercase, repeat=len(first)))
    for number, name in zip(numbers, expected, strict=False):
        if number != name:
            raise UserError(f"the part {stem.name}.part{name} is missing in {stem.parent}")


class JoinedParts(io.RawIOBase):
    """Several files as one that can be read and sought in."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(part.stat().st_size for part in parts))
        self.size = self.ends[-1]
        """Bytes of all of them."""
        self._at = 0
        self._open: tuple[int, io.BufferedReader] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}
        self._at = max(starts[whence] + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        index = bisect_right(self.ends, self._at)
        if index == len(self.parts):
            return 0
        if self._open is None or self._open[0] != index:
            self._close_part()
            self._open = index, self.parts[index].open("rb")
        handle = self._open[1]
        handle.seek(self._at - (self.ends[index - 1] if index else 0))
        found = handle.readinto(buffer)
        self._at += found
        return found

    def close(self) -> None:
        self._close_part()
        super().close()

    def _close_part(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None
