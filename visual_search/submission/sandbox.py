"""A child process under the evaluator's limits, and one sentence for whatever stopped it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from visual_search.ranking.deadline import LIGHTER

CHILD = Path(__file__).with_name("evaluator_child.py")
GB = 1e9

# What may come before the call that the evaluator times: start, imports, the wrapper.
PREPARATION_SECONDS = 600.0
# Between two looks at the child's memory, in seconds.
WATCH_INTERVAL = 0.05

# What the child inherits: nothing that could bring in settings or caches of this machine.
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "TZ")

# What puts a command behind a network of its own, which has none; tried in this order.
NAMESPACES = (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net"))

# What allocators say when they are refused memory.
OUT_OF_MEMORY = re.compile(
    "memory *error|out *of *memory|allocate memory|unable to allocate|bad_alloc"
    "|failed to map segment|resource temporarily unavailable|can't start new thread",
    re.IGNORECASE,
)
STAGES = {
    "start": "before the submission was imported",
    "import": "while it was imported",
    "build": "while the wrapper was built",
    "rank": "while it ranked",
}


@dataclass(frozen=True)
class Limits:
    """What the evaluator grants (challenge rules: 10 minutes, 4 CPUs, 16 GB, T4 with 16 GB)."""

    seconds: float = 600.0
    cores: int = 4
    memory: int = int(16 * GB)
    """Bytes."""
    gpu: bool = False
    """Whether the submission asks for the GPU."""

    @property
    def cores_here(self) -> list[int]:
        """Those that the child may use; fewer than `cores` where this machine has fewer."""
        return sorted(os.sched_getaffinity(0))[: self.cores]

    @property
    def core_share(self) -> float:
        """Cores here divided by those of the evaluator, at most 1."""
        return len(self.cores_here) / self.cores

    @property
    def allowed_seconds(self) -> float:
        """Wall clock on this machine: with fewer cores the same work may take longer by as much."""
        return self.seconds / self.core_share

    @property
    def address_space(self) -> int | None:
        """Bytes of RLIMIT_AS; None with a GPU, whose driver reserves far more than it uses."""
        return None if self.gpu else self.memory

    def described(self) -> dict[str, str]:
        """How each is kept on this machine, in words."""
        held = "of address space (RLIMIT_AS), watched as well" if self.address_space else "watched"
        fewer = stretched = ""
        if self.core_share < 1:
            fewer = f" of {self.cores}, all this machine has"
            stretched = f" there, {self.allowed_seconds:g} s on the cores of this machine"
        guard = "a socket guard in Python (no privilege for a namespace)"
        return {
            "time": f"{self.seconds:g} s{stretched}",
            "cores": f"{len(self.cores_here)}{fewer}",
            "memory": f"{self.memory / GB:g} GB {held}",
            "network": "none: " + ("a network namespace of its own" if own_network() else guard),
            "data folder": "read-only: a guard in Python, and a comparison afterwards",
        }


def own_network() -> tuple[str, ...]:
    """The command that takes the network away; empty where this machine allows none."""
    for command in NAMESPACES:
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            return command
    return ()


@dataclass(frozen=True)
class Outcome:
    """What became of a child."""

    log: Path
    """All that it printed."""
    seconds: float
    """Wall clock from the start of the process to its end."""
    status: int
    """Exit status, negative for a signal."""
    stopped_by: str | None
    """`time` or `memory` where a limit ended it."""
    where: str | None
    """File and line of the submission when a limit ended it."""
    attempts: Sequence[Mapping[str, str | None]]
    """What it tried and the evaluator does not allow: the `kind` (`network`, `write` into the data
    folder, or a write `elsewhere`, which may work there), `what` host or file, and `where` in the
    submission."""
    peak_memory: int
    """Bytes resident in the child and its own children together."""
    peak_gpu_memory: int | None = None
    stage: str = "start"
    """How far it came: start, import, build, rank, done."""
    times: Mapping[str, float] = field(default_factory=dict)
    """Seconds of `import`, and of `rank`: the call that the evaluator times."""
    array: str = ""
    """`ndarray`, which is in ranks.npy beside `log`, or what the ranker returned in its place."""
    error: Mapping[str, Any] | None = None
    """The exception that ended it."""


def run_limited(
    limits: Limits, settings: Mapping[str, Any], environment: Mapping[str, str], python: str
) -> Outcome:
    """Run a submission to its end, or to the first limit it meets; its faults raise nothing.

    Args:
        limits: to keep.
        settings: of evaluator_child.py beside the limits: the folders `checkout` (the submission's
            files) and `output` (empty, for what the child leaves behind), those in `read_only`,
            which it must not change, and `hidden_packages`, import names that are installed here
            and would not be there, with their distributions.
        environment: variables beside those of every child.
        python: that runs it.
    """
    before = _state_of(settings["read_only"])
    network, output = own_network(), Path(settings["output"])
    held = {
        "cores": limits.cores_here,
        "address_space": limits.address_space,
        "gpu_memory": limits.memory if limits.gpu else None,
        "network_namespace": bool(network),
    }
    settings_file, log = output / "settings.json", output / "log.txt"
    settings_file.write_text(json.dumps({**settings, **held}), "utf-8")
    # An empty home holds no weights that an earlier run downloaded.
    own = {"HOME": output / "home", "TMPDIR": output / "tmp"}
    for folder in own.values():
        folder.mkdir()
    started = time.perf_counter()
    with log.open("wb") as handle:
        child = subprocess.Popen(
            [*network, python, "-X", "faulthandler", str(CHILD), str(settings_file)],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env={
                **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
                **({} if limits.gpu else {"CUDA_VISIBLE_DEVICES": ""}),
                **{name: str(folder) for name, folder in own.items()},
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONNOUSERSITE": "1",
                **environment,
            },
            cwd=settings["checkout"],
            start_new_session=True,
        )
        try:
            stopped_by, peak = _watch(child, limits, output / "stage.txt")
            seconds = time.perf_counter() - started
            if stopped_by:
                child.send_signal(signal.SIGUSR1)  # it notes where it is
                time.sleep(0.3)
        finally:
            _end(child)

    def left(name: str) -> str:
        file = output / name
        return file.read_text("utf-8", "replace") if file.exists() else ""

    said = {"stage": left("stage.txt") or "start", **json.loads(left("outcome.json") or "{}")}
    said["peak_memory"] = max(peak, said.get("peak_memory") or 0)
    after = _state_of(settings["read_only"])
    # Files before their folders: a file says more.
    changed = sorted(
        (name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
        key=lambda name: (name.endswith(os.sep), name),
    )
    attempts = [json.loads(line) for line in left("attempts.jsonl").splitlines()]
    attempts += [{"kind": "write", "what": name, "where": None} for name in changed]
    where = _innermost_line(left("where.txt"), settings["checkout"]) if stopped_by else None
    return Outcome(log, seconds, child.returncode, stopped_by, where, attempts, **said)


def _watch(child: subprocess.Popen, limits: Limits, stage: Path) -> tuple[str | None, int]:
    """The limit that was met, if any, and the peak of the memory in bytes.

    The evaluator times the ranking alone, so the seconds count from where that begins.
    """
    peak, ranking = 0, False
    deadline = time.perf_counter() + PREPARATION_SECONDS
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(WATCH_INTERVAL)
            return None, peak
        if not ranking and stage.exists() and stage.read_text("utf-8") == "rank":
            ranking, deadline = True, time.perf_counter() + limits.allowed_seconds
        peak = max(peak, _memory_of_tree(child.pid))
        if peak > limits.memory:
            return "memory", peak
        if time.perf_counter() > deadline:
            return "time", peak


def _memory_of_tree(pid: int) -> int:
    """Bytes resident; pages that several processes share are counted once."""
    try:
        root = psutil.Process(pid)
        children = root.children(recursive=True)
        if not children:
            return int(root.memory_info().rss)
    except psutil.Error:
        return 0
    total = 0
    for process in (root, *children):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _end(child: subprocess.Popen) -> None:
    """End the child and all that it started, those with sessions of their own too."""
    with suppress(psutil.Error):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _state_of(folders: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    state = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in ("", *names):
                path = os.path.join(place, name)
                facts = os.lstat(path)
                state[path] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return state


def _innermost_line(dump: str, checkout: str) -> str | None:
    """The submission's innermost line of the main thread in a dump of faulthandler."""
    # The main thread comes last, its innermost frame first.
    frames = re.findall(r'File "(.*)", line (\d+)', dump.split("\n\n")[-1])
    root = os.path.realpath(checkout) + os.sep
    own = (f"{p.removeprefix(root)} line {line}" for p, line in frames if p.startswith(root))
    return next(own, None)


def fault_of(
    outcome: Outcome, limits: Limits, hidden: Mapping[str, str], uncommitted: Sequence[str] = ()
) -> str | None:
    """Why the submission would fail, in one sentence; None where it would not.

    Args:
        outcome: what became of the child.
        limits: that it ran under.
        hidden: import names that were hidden, and the distribution that brings each.
        uncommitted: files on disk that were not part of the run, as a cause to name.
    """
    stage = STAGES.get(outcome.stage, STAGES["rank"])
    if outcome.stopped_by == "time" and outcome.stage in ("start", "import", "build"):
        return (
            f"the submission was stopped after {PREPARATION_SECONDS:g} s{_at(outcome.where)}, "
            f"{stage}: shorten what it does before it ranks"
        )
    if outcome.stopped_by == "time":
        return (
            f"the time limit was exceeded: after {limits.allowed_seconds:g} s the ranker was "
            f"stopped{_at(outcome.where)}, {stage}; take a smaller input, {LIGHTER}"
        )
    if outcome.stopped_by == "memory" or _out_of_memory(outcome):
        where = outcome.where or (outcome.error or {}).get("where")
        return (
            f"the ranker needed more than the {limits.memory / GB:g} GB of memory that "
            f"the evaluator grants{_at(where)}"
        )
    for attempt in outcome.attempts:
        what = f"{attempt['what']}{_at(attempt['where'])}"
        if attempt["kind"] == "network":
            return (
                f"the submission tried to reach {what}: the evaluator has no network; commit what "
                "it needs"
            )
        if attempt["kind"] == "write":
            return (
                f"the submission tried to write {what}: the data folder is read-only; write into "
                "the temporary folder instead"
            )
    if outcome.error:
        return _raised(outcome.error, stage, hidden, uncommitted)
    if outcome.stage == "done":
        return None
    by = f"with exit status {outcome.status}"
    if outcome.status < 0:
        by = f"by the signal {signal.Signals(-outcome.status).name}"
    return f"the process was ended {by} {stage}; what it printed is in {outcome.log}"


def writes_elsewhere(outcome: Outcome) -> str | None:
    """What was written outside the temporary folder, in one sentence; None where nothing was."""
    places = [attempt for attempt in outcome.attempts if attempt["kind"] == "elsewhere"]
    if not places:
        return None
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        f"the submission writes {places[0]['what']}{_at(places[0]['where'])}{more}: only the "
        "temporary folder is sure to be writable there"
    )


def _at(where: str | None) -> str:
    return f" at {where}" if where else ""


def _out_of_memory(outcome: Outcome) -> bool:
    said = ""
    if outcome.error:
        said = f"{outcome.error['type']}: {outcome.error['message']}"
    elif outcome.stage != "done":
        # A library that is refused memory may also abort the process, after a word on stderr.
        said = outcome.log.read_bytes()[-4000:].decode("utf-8", "replace")
    return OUT_OF_MEMORY.search(said) is not None


def _raised(
    error: Mapping[str, Any], stage: str, hidden: Mapping[str, str], uncommitted: Sequence[str]
) -> str:
    kind, name, message = error["type"], error["name"] or "", error["message"].strip()
    at = _at(error["where"])
    if kind in ("ModuleNotFoundError", "ImportError"):
        said, place = f"importing failed{at}: {message}", name.replace(".", "/")
        package = name.partition(".")[0]
        if package in hidden:
            wanted = hidden[package]
            return f"{said}; add {wanted} to requirements.txt, the evaluator installs no more"
        if {f"{place}.py", f"{place}/__init__.py"} & set(uncommitted):
            return f"{said}; {place}.py is on this disk and not committed: `git add` and commit it"
        return said
    if kind == "NameError" and not name:
        return f"the ranker gave up: {message}{_uncommitted_hint(message, uncommitted)}"
    if kind in ("KeyError", "AttributeError") and "product_id" in message:
        return f"the submission reads the column product_id{at}: the evaluator's tables have none"
    said = f" {message.splitlines()[0]}" if message else ""
    hint = _uncommitted_hint(error["file"] or message, uncommitted)
    return f"the submission raised {kind}:{said}{at}, {stage}{hint}"


def _uncommitted_hint(message: str, uncommitted: Sequence[str]) -> str:
    """Names the file on disk that lies where `message` found nothing."""
    for name in uncommitted:
        folder = str(Path(name).parent)
        if name in message or (folder != "." and folder in message):
            return (
                f"; {name} is on this disk and would not be pushed: `git add` and commit it, or "
                "rehearse what is on disk with --working-tree"
            )
    return ""
