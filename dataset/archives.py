"""Unpacking tar and zip archives that nobody vouches for, so that a killed run can go on.

Only plain files and folders are made, and none outside the target: a link, a device or a path
that leads out stops the unpacking. A file is written under a temporary name and renamed when it
is whole; one that is there already with the right size is kept.
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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from visual_search.errors import UserError
from visual_search.files import write_json
from visual_search.progress import progress_bar

COPIED_AT_ONCE = 1 << 20
UNFINISHED = ".unfinished"

_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass
class Unpacked:
    """What came of an archive."""

    written: int = 0
    """Files that were written."""
    kept: int = 0
    """Files that were there already, with the right size."""


def unpack(archive: Path, target: Path) -> Unpacked:
    """Unpack a zip or tar file, whatever its compression.

    Args:
        archive: the file; its first bytes say what it is, not its name.
        target: the folder that gets its contents; made if it is missing.

    Raises:
        UserError: for what is no archive, is damaged, cut off, encrypted or unsafe, and when the
            disk is full; it names the archive.
    """
    with _open(archive) as stream:
        size = archive.stat().st_size
        if not stream.peek(1):
            raise UserError(f"{archive} is empty")
        if stream.peek(4)[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return _unpack_zip(stream, archive.name, target, size)
        return unpack_tar(stream, archive.name, target, size)


def _open(archive: Path) -> io.BufferedReader[Any]:
    try:
        return archive.open("rb")
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error


def unpack_tar(stream: io.BufferedReader[Any], name: str, target: Path, size: int) -> Unpacked:
    """Unpack a tar archive from a stream that can seek.

    Args:
        stream: at the start of the archive, compressed by gzip, bzip2, xz or nothing.
        name: of the archive, for messages.
        target: the folder that gets its contents.
        size: bytes of the stream, for the progress bar and the disk check.

    Raises:
        UserError: see :func:`unpack`.
    """
    start = stream.peek(8)
    decompress = next(
        (call for magic, call in _DECOMPRESSORS.items() if start.startswith(magic)), None
    )
    with _damage_named(name):
        _check_space(target, size, lambda: _missing_of_tar(stream, decompress, target, name), name)
    result = Unpacked()
    with (
        progress_bar(f"unpacking {name}", "B", total=size, unit_scale=True) as bar,
        _damage_named(name),
        decompress(stream) if decompress else stream as tar_bytes,
        # Uncompressed, what is kept can be jumped over.
        _opened_tar(tar_bytes, bool(decompress)) as tar,
    ):
        writer = _Writer(target, name, result, lambda: bar.update(stream.tell() - bar.n))
        while (member := tar.next()) is not None:
            if member.isdir():
                writer.folder(member.name)
            elif member.isreg():
                source = tar.extractfile(member)
                assert source is not None
                writer.file(member.name, member.size, source)
            else:
                kind = "link" if member.issym() or member.islnk() else "device"
                raise UserError(f"{name} holds a {kind}, {member.name!r}: nothing more is unpacked")
            _forget_members(tar)
        while tar_bytes.read(COPIED_AT_ONCE):  # so that a checksum behind the end is looked at
            pass
        bar.update(size - bar.n)
    return result


def _opened_tar(tar_bytes: Any, compressed: bool) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=tar_bytes, mode="r|" if compressed else "r:", tarinfo=_StrictTarInfo
    )


def _forget_members(tar: tarfile.TarFile) -> None:
    """Those already seen would be kept, half a kilobyte each."""
    tar.members = []  # type: ignore[attr-defined]


def _missing_of_tar(
    stream: io.BufferedReader[Any],
    decompress: Callable[[BinaryIO], Any] | None,
    target: Path,
    name: str,
) -> int:
    """Bytes of the files that are not there yet, by the headers; the stream goes back after it."""
    start, missing = stream.tell(), 0
    writer = _Writer(target, name, Unpacked(), lambda: None)
    tar_bytes = decompress(stream) if decompress else stream
    with _opened_tar(tar_bytes, bool(decompress)) as tar:
        while (member := tar.next()) is not None:
            if member.isreg() and not writer.has(member.name, member.size):
                missing += member.size
            _forget_members(tar)
    stream.seek(start)
    return missing


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


class _Damaged(Exception):
    """What is wrong with an archive."""


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turn what the readers raise into one sentence about the archive."""
    try:
        yield
    except (_Damaged, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        cut = "unexpected end of data" in str(error)
        raise UserError(_sentence(name, "it is cut off" if cut else str(error))) from error
    except EOFError as error:
        raise UserError(_sentence(name, "it is cut off")) from error
    except gzip.BadGzipFile as error:
        raise UserError(_sentence(name, str(error))) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"the disk is full while unpacking {name} ({error.strerror}): make room and run "
                "the same command again, it goes on from here"
            ) from error
        if error.errno is None:  # what bz2 raises for damaged data
            raise UserError(_sentence(name, str(error))) from error
        raise


def _sentence(name: str, why: str) -> str:
    return (
        f"{name} is no whole archive: {why}; get it again, then run the same command: the files "
        "that are unpacked stay"
    )


def _unpack_zip(stream: BinaryIO, name: str, target: Path, size: int) -> Unpacked:
    result = Unpacked()
    with _damage_named(name), zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        writer = _Writer(target, name, result, lambda: None)

        def missing() -> int:
            files = [(_zip_name(m), m.file_size) for m in members if not m.is_dir()]
            return sum(size for path, size in files if not writer.has(path, size))

        _check_space(target, sum(member.file_size for member in members), missing, name)
        total = sum(member.compress_size for member in members)
        with progress_bar(f"unpacking {name}", "B", total=total, unit_scale=True) as bar:
            for member in members:
                _unpack_zip_member(archive, member, writer, name)
                bar.update(member.compress_size)
    return result


def _unpack_zip_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, writer: _Writer, name: str
) -> None:
    path = _zip_name(member)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{name} holds a link, {path!r}: nothing more is unpacked")
    if member.is_dir():
        writer.folder(path)
        return
    if member.flag_bits & 1:
        raise UserError(
            f"{name} is encrypted: unpack it with its password and give the folder instead"
        )
    try:
        with archive.open(member) as source:
            writer.file(path, member.file_size, source)
    except NotImplementedError as error:
        raise UserError(f"{name}: {path!r} cannot be unpacked here ({error})") from error


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The name; without the flag that says so, UTF-8 is usual all the same."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


class _Writer:
    """Writes the members of one archive below the target, and nowhere else."""

    def __init__(
        self, target: Path, archive: str, result: Unpacked, advanced: Callable[[], Any]
    ) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self.target, self.archive, self.result = target.resolve(), archive, result
        self.advanced = advanced
        self._safe_folders: set[Path] = set()

    def folder(self, name: str) -> None:
        """Make a folder."""
        path = self._path(name)
        self._make(path)

    def has(self, name: str, size: int) -> bool:
        """Whether a file is there already, by its size.

        Raises:
            UserError: for a path that leads out of the target.
        """
        path = self._path(name)
        return path.is_file() and not path.is_symlink() and path.stat().st_size == size

    def file(self, name: str, size: int, source: IO[bytes]) -> None:
        """Write a file of `size` bytes, unless it is there.

        Raises:
            UserError: for a path that leads out of the target.
        """
        path = self._path(name)
        self._make(path.parent)
        if self.has(name, size):
            self.result.kept += 1
            self.advanced()
            return
        temporary = path.with_name(path.name + UNFINISHED)
        try:
            with _created(temporary) as handle:
                self._copy(source, handle, size, name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        self.result.written += 1

    def _copy(self, source: IO[bytes], handle: BinaryIO, size: int, name: str) -> None:
        written = 0
        while chunk := source.read(COPIED_AT_ONCE):
            written += handle.write(chunk)
            self.advanced()
        if written != size:
            raise _Damaged(f"{name!r} has {written} bytes instead of {size}")

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


def _created(path: Path) -> BinaryIO:
    """A new file at `path`; what a killed run left there goes, and a link is not followed."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")


def _check_space(target: Path, whole: int, missing: Callable[[], int], name: str) -> None:
    """Refuse to begin what cannot fit.

    Args:
        target: the folder that gets the contents; made if it is missing.
        whole: bytes of all of the contents, or fewer.
        missing: counts the bytes that are not there yet; asked only where `whole` does not fit,
            since it may take a pass over the archive.
        name: of the archive.

    Raises:
        UserError: with the bytes that are missing and those that are free.
    """
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    if free >= whole:
        return
    needed = missing()
    if free < needed:
        raise UserError(
            f"unpacking what is missing of {name} into {target} takes {needed / 1e9:.2f} GB, but "
            f"the disk has room for {free / 1e9:.2f} GB only: make room, or name another folder"
        )


# `split` names parts aa, ab, … or 00, 01, …; other tools 1, 2, …
_PART = re.compile(r"^(?P<stem>.+)\.part(?P<number>[a-z]+|[0-9]+)$")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def find_parts(stem: Path) -> list[Path]:
    """The parts of an archive in their order.

    Args:
        stem: what stands in front of `.part…`, with or without `.tar` and the like; one of the
            parts will do as well.

    Raises:
        UserError: when there is none, when one is missing in the sequence (it is named), is an
            LFS pointer or empty, or differs in size from the others but the last.
    """
    match = _PART.match(stem.name)
    if match:
        stem = stem.with_name(match["stem"])
    folder = stem.parent
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _PART.match(path.name)
        if match and (match["stem"] == stem.name or match["stem"].startswith(f"{stem.name}.t")):
            groups.setdefault(match["stem"], {})[match["number"]] = path
    if not groups:
        raise UserError(f"{folder} has no part {stem.name}.part… (or {stem.name}.tar.part…)")
    if len(groups) > 1:
        raise UserError(f"{' and '.join(sorted(groups))} are both there: name the one you mean")
    numbers = next(iter(groups.values()))
    ordered = sorted(numbers, key=lambda number: _ordinal(number))
    parts = [numbers[number] for number in ordered]
    _refuse_pointers(parts, stem)
    _refuse_gaps(ordered, parts)
    _refuse_odd_sizes(parts)
    return parts


def _ordinal(number: str) -> int:
    """`aa` is 0, `ab` 1, …; digits are themselves."""
    if number.isdigit():
        return int(number)
    value = 0
    for letter in number:
        value = value * 26 + ord(letter) - ord("a")
    return value


def _named(ordinal: int, like: str) -> str:
    """The name that `split` gives to a number, as long as `like`."""
    if like.isdigit():
        return str(ordinal).zfill(len(like))
    letters = ""
    for _ in like:
        ordinal, letter = divmod(ordinal, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def _refuse_gaps(numbers: Sequence[str], parts: Sequence[Path]) -> None:
    lengths = {len(number) for number in numbers}
    if len(lengths) > 1 and not numbers[0].isdigit():
        raise UserError(f"the parts {parts[0].name} and {parts[-1].name} are of different archives")
    first = _ordinal(numbers[0])
    # Letters begin at a; digits at 0 or at 1.
    expected = first if numbers[0].isdigit() and first == 1 else 0
    for number, part in zip(numbers, parts, strict=True):
        if _ordinal(number) != expected:
            missing = part.name[: -len(number)] + _named(expected, number)
            raise UserError(f"the part {missing} is missing in {part.parent}")
        expected += 1


def _refuse_pointers(parts: Sequence[Path], stem: Path) -> None:
    for part in parts:
        with part.open("rb") as handle:
            if handle.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise UserError(
                    f"{part} is still a git-LFS pointer: run "
                    f"`git lfs pull --include '{stem.parent.as_posix()}/{stem.name}*'` in the "
                    "repository"
                )


def _refuse_odd_sizes(parts: Sequence[Path]) -> None:
    """`split` makes all parts but the last alike: another size is an unfinished download."""
    sizes = [part.stat().st_size for part in parts]
    for part, size in zip(parts, sizes, strict=True):
        if size == 0:
            raise UserError(f"the part {part} is empty: get it again")
        if size < max(sizes) and part != parts[-1]:
            raise UserError(
                f"the part {part} has {size} bytes, others have {max(sizes)}: get it again"
            )


class JoinedParts(io.RawIOBase):
    """Several files as one that can be read and sought in."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(part.stat().st_size for part in parts))
        self._at = 0
        self._open: tuple[int, io.BufferedReader] | None = None

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.ends[-1]

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
        count = handle.readinto(buffer)
        self._at += count
        return count

    def close(self) -> None:
        self._close_part()
        super().close()

    def _close_part(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None


RECORD = ".unpacked.json"


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
        """Unpack an archive into the folder, unless that was done and it has not changed since.

        Raises:
            UserError: see :func:`unpack`.
        """
        if archive in self:
            return
        unpack(archive, self.folder)
        self._done[str(archive.resolve())] = _state(archive)
        write_json(self.file, self._done)


def _state(archive: Path) -> list[int]:
    status = archive.stat()
    return [status.st_size, status.st_mtime_ns]
