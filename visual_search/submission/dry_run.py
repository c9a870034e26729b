"""One run of a submission: what git would push, laid out and run under the evaluator's limits."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from visual_search.common.errors import UserError
from visual_search.common.files import read_json
from visual_search.common.locks import temporary_folder
from visual_search.data.schema import BOX_COLUMNS
from visual_search.data.tables import read_table
from visual_search.evaluation.metrics import check_ranks
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.requirements import (
    packages_to_hide,
    read_requirements,
    sets_up_itself,
)
from visual_search.submission.runtime_estimate import ImageCounts, Run
from visual_search.submission.sandbox import (
    GB,
    Limits,
    Outcome,
    fault_of,
    run_limited,
    writes_elsewhere,
)

# Side of a drawn image in pixels: next to nothing to decode, yet each is another one.
DRAWN_SIDE = 16


def show_data(folder: Path, to: Path, sample: int | None) -> tuple[ImageCounts, list[str]]:
    """Fill the new folder `to`: the tables of `folder` without `product_id`, links to all else.

    Args:
        folder: gallery.csv, queries.csv and their images.
        to: what the submission sees of it.
        sample: images of both tables, evenly spread; None takes all.

    Returns:
        How much there is to rank, and the folders that must stay as they are.
    """
    to.mkdir(parents=True)
    folder = folder.resolve()
    tables = {path.name: read_table(path, []) for path in sorted(folder.glob("*.csv"))}
    ranked = ("gallery.csv", "queries.csv")
    total = sum(len(tables[name]) for name in ranked)
    share = min((sample or total) / total, 1)
    for name in ranked:
        count = max(round(len(tables[name]) * share), 1)
        rows = np.linspace(0, len(tables[name]) - 1, count).round().astype(int)
        tables[name] = tables[name].iloc[rows]
    for name, table in tables.items():
        if "img_path" in table:  # what leads up and out of `folder` is not beside `to`
            leads_up = [".." in Path(path).parts for path in table["img_path"]]
            table.loc[leads_up, "img_path"] = f"{folder}/" + table["img_path"][leads_up]
        table.drop(columns="product_id", errors="ignore").to_csv(to / name, index=False)
    kept = {str(to.resolve()), str(folder)}
    for entry in folder.iterdir():
        if entry.name not in tables:
            (to / entry.name).symlink_to(entry.resolve())
            if entry.is_dir() and folder not in entry.resolve().parents:
                kept.add(str(entry.resolve()))
    return ImageCounts(len(tables["queries.csv"]), len(tables["gallery.csv"])), sorted(kept)


def draw_data(folder: Path, counts: ImageCounts) -> Path:
    """Fill the new `folder` with tiny images, no two alike, as real ones give few ties either."""
    rng = np.random.default_rng(0)
    box = dict(zip(BOX_COLUMNS, (0, 0, DRAWN_SIDE, DRAWN_SIDE), strict=True))
    for side, name, count, boxes in (
        ("gallery", "seller_img_id", counts.gallery, {}),
        ("queries", "user_img_id", counts.queries, box),
    ):
        (folder / side).mkdir(parents=True)
        paths = [f"{side}/{row}.bmp" for row in range(count)]
        table = pd.DataFrame({name: range(count), "img_path": paths})
        table.assign(**boxes).to_csv(folder / f"{side}.csv", index=False)
        for path in paths:
            pixels = rng.integers(0, 256, (DRAWN_SIDE, DRAWN_SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / path)
    return folder


class Answer(NamedTuple):
    """One run that went well."""

    ranks: np.ndarray
    """`(n_queries, 1000)`, checked."""
    run: Run
    outcome: Outcome
    log: dict[str, Any]
    """What the ranker wrote to $VISUAL_SEARCH_RANKER_LOG."""


@dataclass
class Stage:
    """A submission laid out in a temporary folder, and everything its runs share."""

    folder: Path
    """Temporary; holds the checkout and a folder for each run."""
    limits: Limits
    weights: Path | None
    """Folder of an export that stands in for the submission's own."""
    log_copy: Path
    """Where the printed output of the last run is kept."""
    allow_fallback: bool
    """Whether a ranker may say that something runs the slow way."""
    hidden: dict[str, str] = field(default_factory=dict)
    """Import names that the evaluator does not have, and their distributions."""
    uncommitted: list[str] = field(default_factory=list)
    """Files on disk that are no part of the submission."""
    notes: list[str] = field(default_factory=list)
    python: str = sys.executable
    runs: int = 0

    @property
    def checkout(self) -> Path:
        """The files of the submission."""
        return self.folder / "checkout"

    def answer(
        self,
        data: Path,
        input_size: int | None = None,
        sample: int | None = None,
        *,
        allow_fallback: bool = False,
    ) -> Answer:
        """Run the submission once.

        Args:
            data: folder with what it is to rank.
            input_size: pixels to ask the ranker for in place of its own.
            sample: images to take of `data`; None takes all.
            allow_fallback: also where the stage does not.

        Raises:
            UserError: with one sentence, when it would fail.
        """
        self.runs += 1
        place = self.folder / f"run_{self.runs}"
        shown, output = place / "data", place / "output"
        counts, read_only = show_data(data, shown, sample)
        output.mkdir()
        ranker_log = output / "ranker_log.json"
        settings = {
            "checkout": str(self.checkout),
            "output": str(output),
            "read_only": read_only,
            "hidden_packages": self.hidden,
        }
        environment = {
            "AICROWD_DATASET_DIR": str(shown),
            "VISUAL_SEARCH_RANKER_LOG": str(ranker_log),
            "VISUAL_SEARCH_TIME_LIMIT": f"{self.limits.allowed_seconds:g}",
            **({"VISUAL_SEARCH_WEIGHTS": str(self.weights.resolve())} if self.weights else {}),
            **({"VISUAL_SEARCH_INPUT_SIZE": str(input_size)} if input_size else {}),
        }
        outcome = run_limited(self.limits, settings, environment, self.python)
        self.log_copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(outcome.log, self.log_copy)
        if outcome.error:
            with self.log_copy.open("a", encoding="utf-8") as handle:
                handle.write(outcome.error["traceback"])
        if fault := fault_of(outcome, self.limits, self.hidden, self.uncommitted):
            # Paths of the temporary folders by the names that they have for the user.
            fault = fault.replace(str(outcome.log), str(self.log_copy))
            fault = fault.replace(f"{self.checkout}/", "").replace(str(shown), str(data))
            raise UserError(fault.replace(f"{self.folder}/", ""))
        if outcome.array != "ndarray":
            raise UserError(f"the ranker returned {outcome.array}, not a numpy array of integers")
        ranks = np.load(output / "ranks.npy", allow_pickle=False)
        check_ranks(ranks, counts.queries, counts.gallery)
        written = writes_elsewhere(outcome)
        if written and written not in self.notes:
            self.notes.append(written)
        log = read_json(ranker_log) if ranker_log.exists() else {}
        for item in log.get("problems", []):
            item["path"] = item["path"].replace(str(shown), str(data))
        if log.get("fallbacks") and not (self.allow_fallback or allow_fallback):
            raise UserError(
                f"{'; '.join(log['fallbacks'])}. To submit it all the same, --allow-fallback"
            )
        run = Run.from_log(log, counts, outcome.times["rank"], outcome.peak_memory)
        return Answer(ranks, run, outcome, log)


@contextmanager
def staged(
    project: Path,
    limits: Limits,
    log_copy: Path,
    *,
    working_tree: bool = False,
    weights: Path | None = None,
    allow_fallback: bool = False,
) -> Iterator[Stage]:
    """Lay the submission out in a temporary folder, which is removed in the end.

    Args:
        project: anywhere in the repository of the submission, which stays as it is.
        limits: what the evaluator grants; the GPU is added where aicrowd.json asks for one.
        log_copy: where to keep what the last run printed.
        working_tree: take the files on disk in place of the last commit.
        weights: folder of an export that stands in for the submission's own.
        allow_fallback: pass a ranker that says that something runs the slow way.

    Raises:
        UserError: when there is no commit, a large file would be missing from the push, or a table
            cannot be read; on another system than Linux, which has none of the means.
    """
    if not sys.platform.startswith("linux"):
        raise UserError("the evaluator's limits can only be kept on Linux: rehearse there")
    tree = SubmissionTree(project, working_tree)
    if missing := tree.missing_files():
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]} is a git-LFS pointer, and the file it stands for is not on this machine"
            f"{more}: run `git lfs pull`, or add the file again"
        )
    with temporary_folder("rehearsal_") as folder:
        stage = Stage(folder.resolve(), limits, weights, log_copy, allow_fallback)
        stage.checkout.mkdir()
        tree.lay_out(stage.checkout)
        if weights:
            stage.notes.append(f"the weights of {weights} stand in for those that would be pushed")
        if not working_tree and (changes := tree.changes()):
            stage.uncommitted = [name for name, kind in changes.items() if kind == "new"]
            stage.notes.append(
                f"not committed, would not be submitted by a push: {tree.described_changes()}; "
                "rehearse what is on disk with --working-tree (`aicrowd submission create` commits "
                "whatever git does not ignore; a push does not)"
            )
        if sets_up_itself(stage.checkout):
            stage.notes.append(
                "a Dockerfile sets up the evaluator: no package was hidden from imports"
            )
        else:
            requirements = read_requirements(stage.checkout / "requirements.txt")
            stage.hidden = packages_to_hide(requirements)
        _compare_machine(stage)
        yield stage


def _compare_machine(stage: Stage) -> None:
    """Take the GPU where aicrowd.json asks for it; note what makes the figures other than there."""
    import torch

    notes, limits = stage.notes, stage.limits
    try:
        asked = read_json(stage.checkout / "aicrowd.json").get("gpu") is True
    except (OSError, ValueError, AttributeError):
        asked = False
        notes.append("aicrowd.json is missing or not readable: see `make preflight`")
    if asked and not torch.cuda.is_available():
        notes.append(
            "aicrowd.json asks for a GPU and this machine has none: the times are those of its CPU"
        )
    elif asked:
        name = torch.cuda.get_device_name(0)
        notes.append(f"the times are those of {name}; the evaluator has a T4 with 16 GB")
        stage.limits = replace(limits, gpu=True)
    total, load, cores = psutil.virtual_memory().total, os.getloadavg()[0], psutil.cpu_count() or 1
    if total < limits.memory:
        notes.append(f"this machine has {total / GB:.1f} GB of memory, less than the evaluator's")
    if load > cores / 2:
        notes.append(
            f"this machine was busy when it began (load {load:.1f} on {cores} cores): the times "
            "are longer than on a quiet one"
        )
