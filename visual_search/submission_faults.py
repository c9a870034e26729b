"""One clear sentence for whatever made a submission fail."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_search.sandbox import GB, PREPARATION_SECONDS, Attempt, Limits, Outcome

# What allocators say when they are refused memory, in lower case.
MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "failed to map segment",
    "resource temporarily unavailable",
    "can't start new thread",
)
STAGES = {
    "start": "before the submission was imported",
    "import": "while it was imported",
    "build": "while the wrapper was built",
    "rank": "while it ranked",
}
BEFORE_RANKING = ("start", "import", "build")


def fault_of(
    outcome: Outcome,
    limits: Limits,
    allowed_seconds: float,
    hidden: Mapping[str, str],
    uncommitted: Sequence[str] = (),
) -> str | None:
    """Why the submission would fail, in one sentence; None where it would not.

    Args:
        outcome: what became of the child.
        limits: what the evaluator grants.
        allowed_seconds: wall clock after which the child was ended.
        hidden: import names that were hidden, and the distribution that brings each.
        uncommitted: files on disk that were not part of the run, as a cause to name.
    """
    if outcome.stopped_by == "time" and outcome.stage in BEFORE_RANKING:
        return (
            f"the submission was stopped after {PREPARATION_SECONDS:g} s{_at(outcome.where)}, "
            f"{STAGES[outcome.stage]}: shorten what it does before it ranks"
        )
    if outcome.stopped_by == "time":
        return (
            f"the time limit was exceeded: after {allowed_seconds:g} s the ranker was stopped"
            f"{_at(outcome.where)}, {STAGES.get(outcome.stage, STAGES['rank'])}; "
            "take a smaller input or a smaller model"
        )
    if outcome.stopped_by == "memory" or _out_of_memory(outcome):
        where = outcome.where or (outcome.error or {}).get("where")
        return (
            f"the ranker needed more than the {limits.memory / GB:g} GB of memory that the "
            f"evaluator grants{_at(where)}"
        )
    for attempt in outcome.attempts:
        if attempt.kind != "elsewhere":
            return _attempted(attempt)
    if outcome.error:
        return _raised(outcome, hidden, uncommitted)
    if outcome.stage != "done":
        return (
            f"the process was ended {_by(outcome.status)} {STAGES[outcome.stage]}; "
            f"what it printed is in {outcome.log}"
        )
    return None


def _at(where: str | None) -> str:
    return f" at {where}" if where else ""


def _by(status: int) -> str:
    if status >= 0:
        return f"with exit status {status}"
    try:
        return f"by the signal {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _out_of_memory(outcome: Outcome) -> bool:
    if outcome.error:
        message = outcome.error["message"].lower()
        return outcome.error["type"] in ("MemoryError", "OutOfMemoryError") or any(
            word in message for word in MEMORY_WORDS
        )
    # A library that is refused memory may also abort the process, after a word on stderr.
    return outcome.stage != "done" and any(word in _tail(outcome.log) for word in MEMORY_WORDS)


def _tail(log: Path) -> str:
    return log.read_bytes()[-4000:].decode("utf-8", "replace").lower() if log.exists() else ""


def _attempted(attempt: Attempt) -> str:
    at = _at(attempt.where)
    if attempt.kind == "network":
        return (
            f"the submission tried to reach {attempt.what}{at}: the evaluator has no network; "
            "commit what it needs"
        )
    return (
        f"the submission tried to write {attempt.what}{at}: the data folder is read-only; "
        "write into the temporary folder instead"
    )


def writes_elsewhere(attempts: Sequence[Attempt]) -> str | None:
    """What was written outside the temporary folder, in one sentence; None where nothing was."""
    places = [attempt for attempt in attempts if attempt.kind == "elsewhere"]
    if not places:
        return None
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        f"the submission writes {places[0].what}{_at(places[0].where)}{more}: only the temporary "
        "folder is sure to be writable there"
    )


def _raised(outcome: Outcome, hidden: Mapping[str, str], uncommitted: Sequence[str]) -> str:
    error: dict[str, Any] = outcome.error or {}
    kind, message = error["type"], error["message"].strip()
    at = _at(error["where"])
    if kind in ("ModuleNotFoundError", "ImportError"):
        return _not_imported(error, at, hidden, uncommitted)
    if kind == "NameError" and not error["name"]:
        return f"the ranker gave up: {message}{_committed_hint(message, uncommitted)}"
    if kind in ("KeyError", "AttributeError") and "product_id" in message:
        return f"the submission reads the column product_id{at}: the evaluator's tables have none"
    named = f" {message.splitlines()[0]}" if message else ""
    hint = _committed_hint(error.get("file") or message, uncommitted)
    return f"the submission raised {kind}:{named}{at}, {STAGES[outcome.stage]}{hint}"


def _not_imported(
    error: Mapping[str, Any], at: str, hidden: Mapping[str, str], uncommitted: Sequence[str]
) -> str:
    said = f"importing failed{at}: {error['message']}"
    name = error["name"] or ""
    package = name.partition(".")[0]
    if package in hidden:
        return f"{said}; add {hidden[package]} to requirements.txt, the evaluator installs no more"
    place = name.replace(".", "/")
    if {f"{place}.py", f"{place}/__init__.py"} & set(uncommitted):
        return f"{said}; {place}.py is on this disk and not committed: `git add` and commit it"
    return said


def _committed_hint(message: str, uncommitted: Sequence[str]) -> str:
    """Names the files on disk that lie where `message` found nothing."""
    for name in uncommitted:
        folder = str(Path(name).parent)
        if name in message or (folder != "." and folder in message):
            return (
                f"; {name} is on this disk and would not be pushed: `git add` and commit it, or "
                "rehearse what is on disk with --working-tree"
            )
    return ""
