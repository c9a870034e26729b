"""A child process under the evaluator's limits, and one sentence for whatever stopped it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visual_search.common.errors import UserError
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


@dataclass(frozen=True)
class Outcome:
    """What became of a child."""

    log: Path
    """All that it printed."""
    seconds: float = 0.0
    """Wall clock from the start of the process to its end."""
    status: int = 0
    """Exit status, negative for a signal."""
    stopped_by: str | None = None
    """`time` or `memory` where a limit ended it."""
    where: str | None = None
    """File and line of the submission when a limit ended it."""
    peak_memory: int = 0
    """Bytes resident in the child and its own children together."""
    peak_gpu_memory: int | None = None
    stage: str = "start"
    """How far it came: start, import, build, rank, done."""
    times: Mapping[str, float] = field(default_factory=dict)
    """Seconds of `import`, and of `rank`: the call that the evaluator times."""
    array: str = ""
    """`ndarray`, or what the ranker returned in its place."""
    error: Mapping[str, Any] | None = None
    """The exception that ended it."""
    attempts: tuple[Mapping[str, str | None], ...] = ()
    """What it tried and the evaluator does not allow: the `kind` (`network`, `write` into the data
    folder, or a write `elsewhere`, which may work there), `what` host or file, and `where` in the
    submission."""

    @property
    def ranks(self) -> Path:
        """The array, as a `.npy` file."""
        return self.log.with_name("ranks.npy")


class Sandbox:
    """The evaluator's limits, and how they are kept on this machine."""

    def __init__(self, limits: Limits) -> None:
        """Find out what this machine can do to keep `limits`.

        Raises:
            UserError: on another system than Linux, which has none of the means.
        """
        if not sys.platform.startswith("linux"):
            raise UserError("the evaluator's limits can only be kept on Linux: rehearse there")
        self.limits = limits
        self.cores = sorted(os.sched_getaffinity(0))[: limits.cores]
        """Those the child may use; fewer than the limit where this machine has fewer."""
        self.namespace = next(filter(_works, NAMESPACES), ())
        """The command that takes the network away; empty where this machine allows none."""

    @property
    def core_share(self) -> float:
        """Cores here divided by those of the evaluator, at most 1."""
        return min(len(self.cores) / self.limits.cores, 1.0)

    @property
    def allowed_seconds(self) -> float:
        """Wall clock on this machine: with fewer cores the same work may take longer by as much."""
        return self.limits.seconds / self.core_share

    @property
    def address_space(self) -> int | None:
        """Bytes of RLIMIT_AS; None with a GPU, whose driver reserves far more than it uses."""
        return None if self.limits.gpu else self.limits.memory

    def described(self) -> dict[str, str]:
        """What to print about it."""
        limits = self.limits
        held = "of address space (RLIMIT_AS), watched as well" if self.address_space else "watched"
        fewer = f" of {limits.cores}, all this machine has" if self.core_share < 1 else ""
        guard = "a socket guard in Python (no privilege for a namespace)"
        return {
            "cores": f"{len(self.cores)}{fewer}",
            "memory": f"{limits.memory / GB:g} GB {held}",
            "network": "none: " + ("a network namespace of its own" if self.namespace else guard),
            "data folder": "read-only: a guard in Python, and a comparison afterwards",
        }

    def run(
        self,
        checkout: Path,
        output: Path,
        read_only: Sequence[Path],
        environment: Mapping[str, str],
        hidden_packages: Mapping[str, str],
        python: str = sys.executable,
    ) -> Outcome:
        """Run a submission to its end, or to the first limit it meets; its faults raise nothing.

        Args:
            checkout: the submission's files.
            output: an empty folder for what the child leaves behind.
            read_only: folders that it must not change.
            environment: variables beside those of every child.
            hidden_packages: import names that are installed here and would not be there, and
                their distributions.
            python: that runs it.
        """
        before = _state_of(read_only)
        settings = {
            "checkout": str(checkout),
            "output": str(output),
            "cores": self.cores,
            "address_space": self.address_space,
            "gpu_memory": self.limits.memory if self.limits.gpu else None,
            "network_namespace": bool(self.namespace),
            "read_only": [str(folder) for folder in read_only],
            "hidden_packages": hidden_packages,
        }
        settings_file, log = output / "settings.json", output / "log.txt"
        settings_file.write_text(json.dumps(settings), "utf-8")
        # An empty home holds no weights that an earlier run downloaded.
        home, temporary = output / "home", output / "tmp"
        home.mkdir()
        temporary.mkdir()
        started = time.perf_counter()
        with log.open("wb") as handle:
            child = subprocess.Popen(
                [*self.namespace, python, "-X", "faulthandler", str(CHILD), str(settings_file)],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={
                    **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
                    **({} if self.limits.gpu else {"CUDA_VISIBLE_DEVICES": ""}),
                    "HOME": str(home),
                    "TMPDIR": str(temporary),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONNOUSERSITE": "1",
                    **environment,
                },
                cwd=checkout,
                start_new_session=True,
            )
            try:
                stopped_by, peak = self._watch(child, output / "stage.txt")
                seconds = time.perf_counter() - started
                if stopped_by:
                    child.send_signal(signal.SIGUSR1)  # it notes where it is
                    time.sleep(0.3)
            finally:
                _end(child)
        outcome = Outcome(log, seconds, child.returncode, stopped_by, peak_memory=peak)
        outcome = _read_outcome(outcome, output, checkout)
        after = _state_of(read_only)
        # Files before their folders: a file says more.
        changed = sorted(
            (name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
            key=lambda name: (name.endswith(os.sep), name),
        )
        unseen = [{"kind": "write", "what": name, "where": None} for name in changed]
        return replace(outcome, attempts=(*outcome.attempts, *unseen))

    def _watch(self, child: subprocess.Popen, stage: Path) -> tuple[str | None, int]:
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
                ranking, deadline = True, time.perf_counter() + self.allowed_seconds
            peak = max(peak, _memory_of_tree(child.pid))
            if peak > self.limits.memory:
                return "memory", peak
            if time.perf_counter() > deadline:
                return "time", peak


def _works(namespace: Sequence[str]) -> bool:
    if shutil.which(namespace[0]) is None:
        return False
    return subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0


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
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _end(child: subprocess.Popen) -> None:
    """End the child and all that it started, those with sessions of their own too."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _state_of(folders: Sequence[Path]) -> dict[str, tuple[int, int, int]]:
    state = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in ("", *names):
                path = os.path.join(place, name)
                facts = os.lstat(path)
                state[path] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return state


def _read_outcome(outcome: Outcome, output: Path, checkout: Path) -> Outcome:
    """The outcome with what the child wrote about itself, as far as it came."""

    def left(name: str) -> str:
        file = output / name
        return file.read_text("utf-8", "replace") if file.exists() else ""

    said: dict[str, Any] = {"stage": left("stage.txt") or "start"}
    said |= json.loads(left("outcome.json") or "{}")
    said["peak_memory"] = max(outcome.peak_memory, said.get("peak_memory") or 0)
    attempts = tuple(json.loads(line) for line in left("attempts.jsonl").splitlines())
    where = _innermost_line(left("where.txt"), checkout) if outcome.stopped_by else None
    return replace(outcome, where=where, attempts=attempts, **said)


def _innermost_line(dump: str, checkout: Path) -> str | None:
    """The submission's innermost line of the main thread in a dump of faulthandler."""
    root = str(checkout.resolve()) + os.sep
    # The main thread comes last, its innermost frame first.
    for line in dump.split("\n\n")[-1].splitlines():
        path, quote, rest = line.strip().removeprefix('File "').partition('", line ')
        if quote and path.startswith(root):
            return f"{path.removeprefix(root)} line {rest.partition(' ')[0]}"
    return None


def fault_of(
    outcome: Outcome, sandbox: Sandbox, hidden: Mapping[str, str], uncommitted: Sequence[str] = ()
) -> str | None:
    """Why the submission would fail, in one sentence; None where it would not.

    Args:
        outcome: what became of the child.
        sandbox: that it ran in.
        hidden: import names that were hidden, and the distribution that brings each.
        uncommitted: files on disk that were not part of the run, as a cause to name.
    """
    if outcome.stopped_by == "time":
        stage = STAGES.get(outcome.stage, STAGES["rank"])
        if outcome.stage in ("start", "import", "build"):
            return (
                f"the submission was stopped after {PREPARATION_SECONDS:g} s{_at(outcome.where)}, "
                f"{stage}: shorten what it does before it ranks"
            )
        return (
            f"the time limit was exceeded: after {sandbox.allowed_seconds:g} s the ranker was "
            f"stopped{_at(outcome.where)}, {stage}; take a smaller input, {LIGHTER}"
        )
    if outcome.stopped_by == "memory" or _out_of_memory(outcome):
        where = outcome.where or (outcome.error or {}).get("where")
        return (
            f"the ranker needed more than the {sandbox.limits.memory / GB:g} GB of memory that "
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
        return _raised(outcome.error, STAGES[outcome.stage], hidden, uncommitted)
    if outcome.stage != "done":
        return (
            f"the process was ended {_by(outcome.status)} {STAGES[outcome.stage]}; "
            f"what it printed is in {outcome.log}"
        )
    return None


def writes_elsewhere(attempts: Sequence[Mapping[str, str | None]]) -> str | None:
    """What was written outside the temporary folder, in one sentence; None where nothing was."""
    places = [attempt for attempt in attempts if attempt["kind"] == "elsewhere"]
    if not places:
        return None
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        f"the submission writes {places[0]['what']}{_at(places[0]['where'])}{more}: only the "
        "temporary folder is sure to be writable there"
    )


def _at(where: str | None) -> str:
    return f" at {where}" if where else ""


def _by(status: int) -> str:
    if status >= 0:
        return f"with exit status {status}"
    return f"by the signal {signal.Signals(-status).name}"


def _out_of_memory(outcome: Outcome) -> bool:
    said = ""
    if outcome.error:
        said = f"{outcome.error['type']}: {outcome.error['message']}"
    elif outcome.stage != "done" and outcome.log.exists():
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
    hint = _uncommitted_hint(error.get("file") or message, uncommitted)
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
