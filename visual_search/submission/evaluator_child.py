"""The evaluator's process: run as a file by `submission/sandbox.py`, settings as json.

Nothing of the kit is imported here: the submission brings its own copy of it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# Events of sys.addaudithook that change files, and which of their arguments name one.
CHANGING_EVENTS = {
    **dict.fromkeys(("mkdir", "remove", "rmdir", "truncate", "chmod", "utime"), (0,)),
    **dict.fromkeys(("link", "symlink"), (1,)),
    "rename": (0, 1),
}
NETWORK_EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
LOCAL_HOSTS = ("localhost", "127.", "::1", "0.0.0.0")


def main(settings_file: str) -> None:
    """Limit this process, run the submission, and write what became of it."""
    # Whatever ends the rehearsal ends this process too: prctl(2), PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    settings = json.loads(Path(settings_file).read_text("utf-8"))
    output = Path(settings["output"])
    with (output / "where.txt").open("w") as where:
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, where, all_threads=True)
        os.sched_setaffinity(0, settings["cores"])
        if settings["network_namespace"]:
            _bring_up_loopback()
        _import_from(settings["checkout"], settings["hidden_packages"])
        sys.addaudithook(_Watch(settings, output / "attempts.jsonl"))
        outcome = _run(settings, output)
    temporary = output / "outcome.json.tmp"
    temporary.write_text(json.dumps(outcome), "utf-8")
    temporary.replace(output / "outcome.json")
    sys.stdout.flush()
    # Threads and workers that a ranker leaves behind must not hold the process.
    os._exit(0)


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", 0x1)  # SIOCSIFFLAGS with IFF_UP, netdevice(7)
        fcntl.ioctl(handle, 0x8914, request)


def _import_from(checkout: str, hidden: dict[str, str]) -> None:
    """Import the submission and nothing of the project beside it, nor packages of `hidden`."""
    os.chdir(checkout)
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [checkout] + [path for path in sys.path if os.path.realpath(path) != own]
    _InstalledFinder.packages = frozenset(hidden)
    _InstalledFinder.distributions = frozenset(name.lower() for name in hidden.values())
    # An editable installation would answer for modules that were never committed.
    sys.meta_path[:] = [
        _InstalledFinder if finder is PathFinder else finder
        for finder in sys.meta_path
        if not getattr(finder, "__module__", "").startswith("__editable__")
    ]


class _InstalledFinder(PathFinder):
    """Finds what is on sys.path, except packages that are installed here and not there."""

    packages: frozenset[str]
    distributions: frozenset[str]

    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in cls.packages:
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *context: Any) -> list[Any]:
        found = super().find_distributions(*context)
        return [d for d in found if (d.metadata["Name"] or "").lower() not in cls.distributions]


class _Watch:
    """An audit hook: notes what would not work there, and refuses what nothing else refuses."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        self.checkout = settings["checkout"]
        # Where anybody may write: what the sandbox made for it, and devices.
        self.free = (os.path.realpath(settings["output"]) + os.sep, "/dev/", "/proc/self/")
        self.guarded = tuple(os.path.realpath(path) + os.sep for path in settings["read_only"])
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.noted: set[tuple[str, str]] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            changing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if changing or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._check_path(path)
        elif event.startswith("os."):
            for position in CHANGING_EVENTS.get(event[3:], ()):
                self._check_path(arguments[position])
        elif event in NETWORK_EVENTS:
            self._check_address(event, arguments)

    def _check_path(self, path: Any) -> None:
        if not isinstance(path, (str, bytes)):
            return
        name = os.fsdecode(path)
        place = os.path.realpath(name) + os.sep
        if place.startswith(self.guarded):
            self._note("write", name)
            raise OSError(30, "Read-only file system", name)
        if not place.startswith(self.free):
            self._note("elsewhere", name)

    def _check_address(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto"):
            if not isinstance(arguments[1], tuple):
                return  # a Unix socket
            arguments = arguments[1]
        host, port = arguments[0], arguments[1] if len(arguments) > 1 else None
        host = host.decode() if isinstance(host, bytes) else str(host or "")
        if not host or host.startswith(LOCAL_HOSTS) or host == socket.gethostname():
            return
        self._note("network", host if port in (None, 0) else f"{host}:{port}")
        raise OSError(101, "Network is unreachable")

    def _note(self, kind: str, what: str) -> None:
        if (kind, what) in self.noted:
            return
        self.noted.add((kind, what))
        where = _innermost(traceback.extract_stack(), self.checkout)
        line = json.dumps({"kind": kind, "what": what, "where": where}) + "\n"
        os.write(self.log, line.encode())


def _innermost(frames: traceback.StackSummary, checkout: str) -> str | None:
    """`file line N` of the innermost frame in the submission's own code."""
    root = os.path.realpath(checkout) + os.sep
    for frame in reversed(frames):
        path = os.path.realpath(frame.filename)
        if not frame.filename.startswith("<") and path.startswith(root):
            return f"{path.removeprefix(root)} line {frame.lineno}"
    return None


def _run(settings: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the submission; what it says are the fields of :class:`Outcome`."""
    times: dict[str, float] = {}
    stage = _enter("import", output)
    started = time.perf_counter()
    # The memory limit holds for the submission, not for the few lines above it.
    if settings["address_space"]:
        resource.setrlimit(resource.RLIMIT_AS, (settings["address_space"],) * 2)
    result: dict[str, Any]
    try:
        from my_submission.aicrowd_wrapper import AIcrowdWrapper

        times["import"] = time.perf_counter() - started
        stage = _enter("build", output)
        wrapper = AIcrowdWrapper()
        _limit_gpu(settings["gpu_memory"])
        stage = _enter("rank", output)
        started = time.perf_counter()
        ranks = wrapper.predict_product_ranks()
        times["rank"] = time.perf_counter() - started
        result = {"stage": "done", "array": _keep_array(ranks, output / "ranks.npy")}
    except BaseException as error:  # a submission may also call sys.exit
        result = {"stage": stage, "error": _describe(error, settings["checkout"])}
    return {**result, "times": times, **_memory()}


def _enter(stage: str, output: Path) -> str:
    """Note how far it came, for a process that ends without another word."""
    (output / "stage.txt").write_text(stage)
    return stage


def _limit_gpu(gpu_memory: int | None) -> None:
    torch = sys.modules.get("torch")
    if gpu_memory and torch is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gpu_memory / total, 1.0))


def _keep_array(ranks: Any, path: Path) -> str:
    """Save a numeric array, and say what else it was if it is none."""
    import numpy as np

    if not isinstance(ranks, np.ndarray):
        return type(ranks).__name__
    if ranks.dtype.hasobject:
        return f"ndarray of {ranks.dtype}"
    np.save(path, ranks, allow_pickle=False)
    return "ndarray"


def _describe(error: BaseException, checkout: str) -> dict[str, Any]:
    name = getattr(error, "name", None)
    return {
        "type": type(error).__name__,
        "message": str(error),
        # NameError is the evaluator's channel where it names no variable.
        "name": name if isinstance(name, str) else None,
        "file": getattr(error, "filename", None) if isinstance(error, OSError) else None,
        "where": _innermost(traceback.extract_tb(error.__traceback__), checkout),
        "traceback": "".join(traceback.format_exception(error)),
    }


def _memory() -> dict[str, Any]:
    """High-water marks in bytes."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    # Not getrusage: its high-water mark starts with that of the process that started this one.
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {
        "peak_memory": int(high_water[1]) * 1024 if high_water else None,
        "peak_gpu_memory": torch.cuda.max_memory_reserved() if on_gpu and torch else None,
    }


if __name__ == "__main__":
    main(sys.argv[1])
