"""Writing files so that a reader never meets half of one, and reading those that people wrote."""

from __future__ import annotations

import csv
import errno
import glob
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What the file begins with that git holds in place of a large one."""


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed to `path`, else removed.

    The folder is created. The name is random: two containers on one folder both have a process 1.
    The file is flushed to disk before the rename, so that a power cut leaves either the old file
    or the new one.

    Raises:
        OSError: as the file system does, naming `path` rather than the temporary name; also where
            the writer (torch, safetensors, faiss, pandas) raised an error of its own for it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent
        )
        os.close(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's are for the owner alone
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except Exception as error:
        refused: Exception | None = error
        if not isinstance(error, OSError) or error.errno is None:
            refused = _refusal(temporary)
        if not isinstance(refused, OSError) or refused.filename not in (None, name):
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_begun(path: Path) -> None:
    """Remove what killed processes have begun of a file; for those that others do not write."""
    for begun in path.parent.glob(f".{glob.escape(path.name[:100])}.*.tmp"):
        begun.unlink(missing_ok=True)


def _refusal(temporary: Path) -> OSError | None:
    """What the file system says of a few bytes more; None where it takes them."""
    try:
        with temporary.open("ab") as handle:
            handle.write(bytes(1 << 16))
    except OSError as error:
        return error
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, as of a write to a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@cache
def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, with Unix line ends, atomically."""
    # Of itself, csv leaves a lone carriage return bare, at which every reader ends the row.
    texts = (cells.astype(str) for _, cells in table.select_dtypes(exclude="number").items())
    bare = any(cells.str.contains("\r", regex=False).any() for cells in texts)
    quoting: Any = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    with written_atomically(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure of matplotlib as PNG, atomically."""
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def read_text(path: Path) -> str:
    """A text file as somebody wrote it: UTF-8, with or without a byte-order mark.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        return regular_text(path, "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8 ({error})") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped; empty ones are left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def another_kind(start: bytes) -> str:
    """What a file that begins so is, in place of a text that was asked for; empty: not clear."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(LFS_POINTER):
        return "is a git-LFS pointer: run `git lfs pull`"
    if start.startswith(b"\x1f\x8b"):
        return "is packed by gzip: unpack it"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive, as spreadsheets are: unpack it, or save it as CSV UTF-8"
    if text.startswith(b"<"):
        return f"is a web page; it begins {text[:40]!r}: download the file itself"
    return ""


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file stands for one that git-LFS did not fetch."""
    with open_regular(path) as handle:
        return handle.read(len(LFS_POINTER)) == LFS_POINTER


def regular(path: str, flags: int) -> int:
    """The `opener` of :func:`open` for files of users: a pipe or a device would make one wait.

    Raises:
        OSError: as the file system does; for what is no regular file, too.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", path)
    raise OSError(errno.ENXIO, "it is a pipe, a device or the like, not a file", path)


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open to read bytes; raises as :func:`regular`."""
    return open(path, "rb", opener=regular)


def check_regular(path: Path) -> None:
    """Raise as :func:`regular` does, before a library opens the file by its name."""
    os.close(regular(str(path), os.O_RDONLY))


def regular_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a regular file.

    Raises:
        OSError: as :func:`regular`.
        UnicodeDecodeError: for other bytes.
    """
    with open(path, encoding=encoding, opener=regular) as handle:
        return handle.read()


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        OSError: as :func:`regular`.
        ValueError: for what is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(regular_text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: Path, what: str) -> Any:
    """What is in the file; None where it is empty.

    Args:
        path: UTF-8.
        what: is in it, for the message: "the config".

    Raises:
        UserError: when it cannot be read, is no YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice: the first would be lost without a word.

        1e-3, without a point, is a number, as it is to the parser of configurations.
        """

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = {"<<": False}
            for key, _ in node.value:
                if seen.get(str(key.value)):
                    words = f"the key {key.value} is there twice"
                    raise yaml.MarkedYAMLError(problem=words, problem_mark=key.start_mark)
                seen.setdefault(str(key.value), True)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?\d+[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(read_text(path), Loader)
    except RecursionError as error:
        raise UserError(f"{what} {path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and bytes that are none
        raise UserError(f"{what} {path} is not valid YAML: {error}") from error
