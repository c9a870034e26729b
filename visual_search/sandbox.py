"""A child process under the evaluator's limits, and one sentence for whatever stopped it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from visual_search.errors import UserError

CHILD = Path(__file__).with_name("evaluator_child.py")
GB = 1e9

# What may come before the call that the evaluator times: start, imports, the wrapper.
PREPARATION_SECONDS = 600.0
# Between two looks at the child's memory, in seconds.
WATCH_INTERVAL = 0.05

# What the child inherits: nothing that could bring in settings or caches of this machine.
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "TZ")

# Run inside the new namespaces: makes the folders named before `--` read-only, then the command.
MOUNT_READ_ONLY = """
while [ "$1" != -- ]; do
  mount --rbind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 97; shift
done
shift; exec "$@"
"""
NAMESPACES = (
    ["unshare", "--mount", "--net"],
    ["unshare", "--user", "--map-root-user", "--mount", "--net"],
)


@dataclass(frozen=True)
class Limits:
    """What the evaluator grants (challenge rules: 10 minutes, 4 CPUs, 16 GB, T4 with 16 GB)."""

    seconds: float = 600.0
    cores: int = 4
    memory: int = int(16 * GB)
    """Bytes."""
    gpu: bool = False
    """Whether the submission asks for the GPU."""


@dataclass(frozen=True)
class Isolation:
    """How the limits are kept on this machine."""

    cores: tuple[int, ...]
    """The cores the child may use; fewer than the limit where this machine has fewer."""
    core_share: float
    """Cores here divided by those of the evaluator, at most 1."""
    namespace: tuple[str, ...]
    """The command that puts the child behind the network and mounts, empty where none can."""
    address_space: int | None
    """Bytes of RLIMIT_AS; None with a GPU, whose driver reserves far more than it uses."""

    def described(self, limits: Limits) -> dict[str, str]:
        """What to print about it."""
        cores = f"{len(self.cores)}"
        if self.core_share < 1:
            cores += f" of {limits.cores}, all this machine has"
        memory = f"{limits.memory / GB:g} GB, watched"
        if self.address_space:
            memory = f"{limits.memory / GB:g} GB of address space (RLIMIT_AS), watched as well"
        behind = bool(self.namespace)
        return {
            "cores": cores,
            "memory": memory,
            "network": "none: a network namespace of its own"
            if behind
            else "none: a socket guard in Python (no privilege for a namespace)",
            "data folder": "read-only mount"
            if behind
            else "a guard in Python, and a comparison afterwards (no privilege to mount)",
        }


@dataclass(frozen=True)
class Attempt:
    """Something the submission tried that the evaluator does not allow."""

    kind: str
    """`network`, `write` into the data folder, or a write `elsewhere`, which may work there."""
    what: str
    """The host or the file."""
    where: str | None
    """File and line of the submission."""


@dataclass(frozen=True)
class Job:
    """One run of a submission."""

    checkout: Path
    """The submission's files."""
    data: Path
    """The data folder that it sees."""
    read_only: tuple[Path, ...]
    """Folders that it must not change."""
    output: Path
    """An empty folder for what the child leaves behind."""
    environment: dict[str, str] = field(default_factory=dict)
    hidden_packages: dict[str, str] = field(default_factory=dict)
    """Import names that are installed here and would not be there, and their distributions."""
    python: str = sys.executable

    @property
    def stage(self) -> Path:
        """The file in which the child notes how far it has come."""
        return self.output / "stage.txt"


@dataclass(frozen=True)
class Outcome:
    """What became of a child."""

    seconds: float
    """Wall clock from the start of the process to its end."""
    peak_memory: int
    """Bytes resident in the child and its own children together."""
    log: Path
    """All that it printed."""
    stage: str = "start"
    """How far it came: start, import, build, rank, done."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds of `import`, and of `rank`: the call that the evaluator times."""
    peak_gpu_memory: int | None = None
    array: str = ""
    """`ndarray`, or what the ranker returned in its place."""
    error: dict[str, Any] | None = None
    """The exception that ended it."""
    attempts: tuple[Attempt, ...] = ()
    stopped_by: str | None = None
    """`time` or `memory` where a limit ended it."""
    where: str | None = None
    """File and line of the submission when a limit ended it."""
    status: int = 0
    """Exit status, negative for a signal."""

    @property
    def ranks(self) -> Path:
        """The array, as a `.npy` file."""
        return self.log.with_name("ranks.npy")


def isolate(limits: Limits, data: Sequence[Path] = ()) -> Isolation:
    """Find out what this machine can do to keep `limits`.

    Args:
        limits: what the evaluator grants.
        data: folders that must be mountable.

    Raises:
        UserError: on another system than Linux, which has none of the means.
    """
    if not sys.platform.startswith("linux"):
        raise UserError("the evaluator's limits can only be kept on Linux: rehearse there")
    here = sorted(os.sched_getaffinity(0))
    cores = tuple(here[: limits.cores])
    namespace = next((command for command in NAMESPACES if _works(command, data)), [])
    return Isolation(
        cores,
        min(len(cores) / limits.cores, 1.0),
        tuple(namespace),
        None if limits.gpu else limits.memory,
    )


def _works(namespace: Sequence[str], data: Sequence[Path]) -> bool:
    if shutil.which(namespace[0]) is None:
        return False
    command = [*namespace, "sh", "-c", MOUNT_READ_ONLY, "sh", *map(str, data), "--", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_limited(job: Job, limits: Limits, isolation: Isolation) -> Outcome:
    """Run a submission to its end, or to the first limit it meets. Never raises for its faults."""
    before = {} if isolation.namespace else _state_of(job.read_only)
    settings = {
        "checkout": str(job.checkout),
        "output": str(job.output),
        "cores": isolation.cores,
        "address_space": isolation.address_space,
        "gpu_memory": limits.memory if limits.gpu else None,
        "network_namespace": bool(isolation.namespace),
        "read_only": [str(folder) for folder in job.read_only],
        "hidden_packages": job.hidden_packages,
    }
    settings_file = job.output / "settings.json"
    settings_file.write_text(json.dumps(settings), "utf-8")
    command = [job.python, "-X", "faulthandler", str(CHILD), str(settings_file)]
    if isolation.namespace:
        folders = map(str, job.read_only)
        mounts = ["sh", "-c", MOUNT_READ_ONLY, "sh", *folders, "--"]
        command = [*isolation.namespace, *mounts, *command]
    log = job.output / "log.txt"
    # With fewer cores the same work may take longer by as much.
    allowed = limits.seconds / isolation.core_share
    started = time.perf_counter()
    with log.open("wb") as handle:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=_environment(job, limits),
            cwd=job.checkout,
            start_new_session=True,
        )
        try:
            stopped_by, peak = _watch(child, job.stage, allowed, limits.memory)
            seconds = time.perf_counter() - started
            if stopped_by:
                child.send_signal(signal.SIGUSR1)  # it notes where it is
                time.sleep(0.3)
        finally:
            _end(child)
    outcome = Outcome(seconds, peak, log, stopped_by=stopped_by, status=child.returncode)
    outcome = _with_what_it_left(outcome, job)
    written = [] if isolation.namespace else _differences(before, _state_of(job.read_only))
    unseen = [Attempt("write", path, None) for path in written]
    return replace(outcome, attempts=(*outcome.attempts, *unseen))


def _environment(job: Job, limits: Limits) -> dict[str, str]:
    home = job.output / "home"
    temporary = job.output / "tmp"
    home.mkdir()
    temporary.mkdir()
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    hidden = {} if limits.gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        **kept,
        **hidden,
        # An empty home holds no weights that an earlier run downloaded.
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "AICROWD_DATASET_DIR": str(job.data),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        **job.environment,
    }


def _watch(
    child: subprocess.Popen, stage: Path, allowed: float, memory: int
) -> tuple[str | None, int]:
    """The limit that was met, if any, and the peak of the memory in bytes.

    The evaluator times the ranking alone, so `allowed` seconds count from where that begins.
    """
    peak, ranking = 0, False
    deadline = time.perf_counter() + PREPARATION_SECONDS
    while True:
        try:
            child.wait(WATCH_INTERVAL)
            return None, peak
        except subprocess.TimeoutExpired:
            pass
        if not ranking and _stage_in(stage) == "rank":
            ranking, deadline = True, time.perf_counter() + allowed
        peak = max(peak, _memory_of_tree(child.pid))
        if peak > memory:
            return "memory", peak
        if time.perf_counter() > deadline:
            return "time", peak


def _stage_in(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


def _memory_of_tree(pid: int) -> int:
    """Bytes resident; pages that several processes share are counted once."""
    import psutil

    try:
        root = psutil.Process(pid)
        children = root.children(recursive=True)
        if not children:
            return int(root.memory_info().rss)
    except psutil.Error:
        return 0
    total = 0
    for process in (root, *children):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _end(child: subprocess.Popen) -> None:
    """End the child and all that it started, those with sessions of their own too."""
    import psutil

    try:
        left = psutil.Process(child.pid).children(recursive=True)
    except psutil.Error:
        left = []
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _with_what_it_left(outcome: Outcome, job: Job) -> Outcome:
    attempts_file = job.output / "attempts.jsonl"
    lines = attempts_file.read_text("utf-8").splitlines() if attempts_file.exists() else []
    attempts = tuple(Attempt(**json.loads(line)) for line in lines)
    finished = job.output / "outcome.json"
    stage = _stage_in(job.stage)
    left: dict[str, Any] = {"stage": stage} if stage else {}
    left |= json.loads(finished.read_text("utf-8")) if finished.exists() else {}
    left["peak_memory"] = max(outcome.peak_memory, left.pop("peak_memory", None) or 0)
    where = None
    if outcome.stopped_by:
        where = _stopped_at(job.output / "where.txt", job.checkout)
    return replace(outcome, attempts=attempts, where=where, **left)


def _stopped_at(dump: Path, checkout: Path) -> str | None:
    """The submission's innermost line of the main thread in a dump of faulthandler."""
    text = dump.read_text("utf-8", "replace") if dump.exists() else ""
    root = str(checkout.resolve()) + os.sep
    # The main thread comes last, its innermost frame first.
    for line in text.split("\n\n")[-1].splitlines():
        path, quote, rest = line.strip().removeprefix('File "').partition('", line ')
        if quote and path.startswith(root):
            return f"{path.removeprefix(root)} line {rest.partition(' ')[0]}"
    return None


def _state_of(folders: Sequence[Path]) -> dict[str, tuple[int, int, int]]:
    state = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in ("", *names):
                path = os.path.join(place, name)
                facts = os.lstat(path)
                state[path] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return state


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Paths that are not as they were; files first, as they say more than their folders."""
    names = before.keys() | after.keys()
    found = [name for name in names if before.get(name) != after.get(name)]
    return sorted(found, key=lambda name: (name.endswith(os.sep), name))


def as_json(isolation: Isolation, limits: Limits) -> dict[str, Any]:
    """Limits and how they are kept, for result.json."""
    return {**asdict(limits), "kept_by": isolation.described(limits)}
