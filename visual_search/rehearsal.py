"""The whole evaluation, rehearsed: what git would push, under the evaluator's limits."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.capacity import Run, stage_seconds
from visual_search.checkpoint import read_description
from visual_search.errors import UserError
from visual_search.ranking_time import Reserve
from visual_search.ranks_check import check_ranks
from visual_search.rehearsal_data import DrawnPhotos, RealPhotos
from visual_search.requirement_closure import packages_to_hide, read_requirements
from visual_search.sandbox import (
    GB,
    Isolation,
    Job,
    Limits,
    Outcome,
    isolate,
    run_limited,
)
from visual_search.submission_faults import fault_of, writes_elsewhere
from visual_search.submission_tree import Change, SubmissionTree

CLIENT_COMMITS = "`aicrowd submission create` commits whatever git does not ignore; a push does not"


class Refused(UserError):
    """The submission would fail; the message is the one sentence that says why."""


@dataclass(frozen=True)
class Answer:
    """One run that went well."""

    ranks: np.ndarray
    """`(n_queries, 1000)`, checked."""
    run: Run
    outcome: Outcome
    log: dict[str, Any]
    """What the ranker wrote to $VISUAL_SEARCH_RANKER_LOG."""
    written: str | None
    """What it wrote outside the temporary folder, in one sentence; None where nothing."""

    @property
    def keeps_time(self) -> bool:
        """Whether the ranker says that it has a clock of its own, and gives up what it must."""
        return bool((self.log.get("clock") or {}).get("limit_seconds"))


@dataclass
class Stage:
    """A submission laid out, and everything its runs share."""

    folder: Path
    """Temporary; holds the checkout and a folder for each run."""
    checkout: Path
    limits: Limits
    isolation: Isolation
    hidden: dict[str, str]
    weights: Path | None
    log_copy: Path
    """Where the printed output of the last run is kept."""
    uncommitted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    python: str = sys.executable
    runs: int = 0

    @property
    def input_size(self) -> int | None:
        """The size that the exported model asks for; None where there is no such description."""
        weights = self.weights or self.checkout / "my_submission" / "weights"
        try:
            return read_description(weights / "model.json")[0].input_size
        except UserError:
            return None

    def answer(self, photos: RealPhotos | DrawnPhotos, input_size: int | None = None) -> Answer:
        """Run the submission once.

        Args:
            photos: what it is to rank.
            input_size: pixels to ask the ranker for in place of its own.

        Raises:
            Refused: with one sentence, when it would fail.
        """
        self.runs += 1
        place = self.folder / f"run_{self.runs}"
        read_only = photos.show(place / "data")
        output = place / "output"
        output.mkdir()
        ranker_log = output / "ranker_log.json"
        environment = {
            "VISUAL_SEARCH_RANKER_LOG": str(ranker_log),
            "VISUAL_SEARCH_TIME_LIMIT": f"{self.allowed_seconds:g}",
        }
        if self.weights:
            environment["VISUAL_SEARCH_WEIGHTS"] = str(self.weights)
        if input_size:
            environment["VISUAL_SEARCH_INPUT_SIZE"] = str(input_size)
        job = Job(
            self.checkout,
            place / "data",
            read_only,
            output,
            environment,
            self.hidden,
            self.python,
        )
        outcome = run_limited(job, self.limits, self.isolation)
        self.log_copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(outcome.log, self.log_copy)
        self._refuse(outcome, place / "data", photos)
        ranks = np.load(outcome.ranks, allow_pickle=False) if outcome.array == "ndarray" else None
        if ranks is None:
            raise Refused(f"the ranker returned {outcome.array}, not a numpy array of integers")
        try:
            check_ranks(ranks, photos.workload.queries, photos.workload.gallery)
        except UserError as error:
            raise Refused(str(error)) from None
        written = writes_elsewhere(outcome.attempts)
        if written and written not in self.notes:
            self.notes.append(written)
        log = json.loads(ranker_log.read_text("utf-8")) if ranker_log.exists() else {}
        used = log.get("input_size") or log.get("settings", {}).get("input_size")
        run = Run(
            used,
            photos.workload,
            stage_seconds(log, outcome.times["rank"]),
            outcome.peak_memory,
            Reserve.said_by(log, len(self.isolation.cores)),
        )
        return Answer(ranks, run, outcome, log, written)

    @property
    def allowed_seconds(self) -> float:
        """Wall clock on this machine: more than the limit where it has fewer cores."""
        return self.limits.seconds / self.isolation.core_share

    def _refuse(self, outcome: Outcome, shown: Path, photos: RealPhotos | DrawnPhotos) -> None:
        if outcome.error:
            with self.log_copy.open("a", encoding="utf-8") as handle:
                handle.write(outcome.error["traceback"])
        fault = fault_of(outcome, self.limits, self.allowed_seconds, self.hidden, self.uncommitted)
        if fault:
            # Paths of the temporary folders by the names that they have for the user.
            known = photos.folder if isinstance(photos, RealPhotos) else "<data folder>"
            raise Refused(fault.replace(f"{self.checkout}/", "").replace(str(shown), str(known)))


@contextmanager
def staged(
    project: Path,
    limits: Limits,
    *,
    working_tree: bool,
    weights: Path | None,
    log_copy: Path,
    data: Sequence[Path] = (),
) -> Iterator[Stage]:
    """Lay the submission out in a temporary folder, which is removed in the end.

    Args:
        project: anywhere in the repository of the submission.
        limits: what the evaluator grants; the GPU is added where aicrowd.json asks for one.
        working_tree: take the files on disk in place of the last commit.
        weights: folder of an export that stands in for the submission's own.
        log_copy: where to keep what the last run printed.
        data: folders that are going to be shown read-only.

    Raises:
        Refused: when a large file would be missing from the push.
        UserError: when there is no commit, or a table cannot be read.
    """
    tree = SubmissionTree(project, working_tree)
    missing = tree.missing_objects()
    if missing:
        raise Refused(
            f"{missing[0]} is a git-LFS pointer, and the file it stands for is not on this machine"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
            + ": run `git lfs pull`, or add the file again"
        )
    changes = [] if working_tree else tree.changes()
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as name:
        folder = Path(name).resolve()
        checkout = folder / "checkout"
        checkout.mkdir()
        tree.lay_out(checkout)
        limits, notes = _with_gpu(checkout, limits)
        notes += machine_notes(limits)
        if changes:
            notes.insert(0, describe_changes(changes))
        if weights:
            notes.insert(0, f"the weights of {weights} stand in for those that would be pushed")
        image = checkout / "Dockerfile"
        hidden = {}
        if image.exists():
            notes.append("a Dockerfile sets up the evaluator: no package was hidden from imports")
        else:
            hidden = packages_to_hide(read_requirements(checkout / "requirements.txt"))
        isolation = isolate(limits, [checkout, *(path.resolve() for path in data)])
        yield Stage(
            folder,
            checkout,
            limits,
            isolation,
            hidden,
            weights.resolve() if weights else None,
            log_copy,
            [change.name for change in changes if change.kind == "new"],
            notes,
        )


def describe_changes(changes: list[Change]) -> str:
    """What is on disk and was not rehearsed, in one sentence."""
    shown = ", ".join(f"{change.name} ({change.kind})" for change in changes[:5])
    more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
    return (
        f"not committed, would not be submitted by a push: {shown}{more}; rehearse what is on disk "
        f"with --working-tree ({CLIENT_COMMITS})"
    )


def _with_gpu(checkout: Path, limits: Limits) -> tuple[Limits, list[str]]:
    """The limits with a GPU where aicrowd.json asks for one and this machine has one."""
    import torch

    try:
        asked = json.loads((checkout / "aicrowd.json").read_text("utf-8")).get("gpu") is True
    except (OSError, ValueError, AttributeError):
        return limits, ["aicrowd.json is missing or not readable: see `make preflight`"]
    if not asked:
        return limits, []
    if not torch.cuda.is_available():
        return limits, [
            "aicrowd.json asks for a GPU and this machine has none: the times are those of its CPU"
        ]
    name = torch.cuda.get_device_name(0)
    return (
        Limits(limits.seconds, limits.cores, limits.memory, gpu=True),
        [f"the times are those of {name}; the evaluator has a T4 with 16 GB"],
    )


def machine_notes(limits: Limits) -> list[str]:
    """What about this machine makes the figures other than they would be."""
    import psutil

    notes = []
    total, load, cores = psutil.virtual_memory().total, os.getloadavg()[0], psutil.cpu_count() or 1
    if total < limits.memory:
        notes.append(f"this machine has {total / GB:.1f} GB of memory, less than the evaluator's")
    if load > cores / 2:
        notes.append(
            f"this machine was busy when it began (load {load:.1f} on {cores} cores): the times "
            "are longer than on a quiet one"
        )
    return notes
