"""A chain of phases: each starts from the one before; what is finished and unchanged is skipped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, read_yaml, write_json, write_text
from visual_search.common.page import markdown
from visual_search.common.processes import run_program, run_python
from visual_search.common.run_folder import (
    NAME,
    NAME_RULE,
    RunFolder,
    changed_keys,
    flat_settings,
)
from visual_search.config_reader import read_part
from visual_search.evaluation.identity import DATA_FILE, changed_data
from visual_search.model.checkpoint import fingerprint

Resolve = Callable[[Sequence[str]], str]
"""From a phase's command-line arguments to its complete config as YAML."""


@dataclass(frozen=True)
class Step:
    """One phase of a chain.

    Args:
        name: of its run.
        config: its YAML file, relative to the chain's.
        overrides: keys and values as in a phase's own YAML, nested or dotted.
        purpose: what the phase is for, a line that is printed when it starts.
    """

    name: str
    config: Path
    overrides: dict[str, Any] | None = None
    purpose: str = ""

    def arguments(self, before: Path | None) -> list[str]:
        """The phase's settings as its entry point takes them; `before` is the earlier run."""
        overrides = flat_settings(self.overrides or {})
        if before is not None:
            overrides.setdefault("pretrain_model", before.as_posix())
        return ["--config", str(self.config), *as_options(overrides)]


@dataclass(frozen=True)
class Chain:
    """Phases in the order they are trained in.

    Args:
        phases: a list of tables with name and config, maybe overrides and purpose.
        name: that their table is kept under; empty is the file's own.
        command: the entry point that trains each phase: of images with classes, or with queries.
    """

    phases: tuple[Step, ...] = ()
    name: str = ""
    command: Literal["main_arcface", "main_clip"] = "main_arcface"


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings, dotted key to value, as command-line options."""
    return [
        f"--{key}={value if isinstance(value, str | date) else json.dumps(value)}"
        for key, value in settings.items()
    ]


def read_chain(path: Path) -> Chain:
    """A chain from its YAML file, whose keys are the fields of :class:`Chain`.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    read = read_part(path, Chain)
    if not read.phases:
        raise UserError(f"{path} needs 'phases': a list of tables with 'name' and 'config'")
    # As they stand: the parser takes a text such as 'no' or '007' for another value.
    written = [step.get("overrides") for step in read_yaml(path, "the config")["phases"]]
    phases = tuple(
        replace(step, config=path.parent / step.config, overrides=overrides)
        for step, overrides in zip(read.phases, written, strict=True)
    )
    chain = replace(read, name=read.name or path.stem, phases=phases)
    for step in phases:
        if not step.config.is_file():
            raise UserError(
                f"{path}: there is no {step.config}; 'config' is relative to {path.parent}/"
            )
    names = [chain.name, *(step.name for step in phases)]
    for taken in names:
        if not NAME.fullmatch(taken):
            raise UserError(f"{path}: the name {taken!r} is no run's: {NAME_RULE}")
        if names.count(taken) > 1:
            raise UserError(f"{path}: the name {taken!r} is there twice; each names a run folder")
    return chain


def run_chain(
    chain: Chain,
    runs: Path,
    resolve: Resolve,
    *,
    only: Sequence[str] = (),
    retrain: bool = False,
    force: bool = False,
    launch: str = "",
) -> Path:
    """Train what is not trained yet, phase by phase, each in a process of its own.

    Args:
        chain: the phases.
        runs: folder of all runs.
        resolve: completes a phase's settings, and refuses wrong ones.
        only: names of the phases to train; none is all.
        retrain: train phases anew whose settings, data or first weights changed.
        force: train anew in any case.
        launch: what starts a phase's process in place of `python`, such as
            `torchrun --nproc_per_node 8`.

    Returns:
        The table of all phases' scores, `runs/<chain>/phases.md`; `phases.json` is beside it.

    Raises:
        UserError: for wrong settings, before anything is trained; when another process trains
            the chain; when a finished phase changed and `retrain` is not set; when a phase fails.
    """
    unknown = set(only) - {step.name for step in chain.phases}
    if unknown:
        known = ", ".join(step.name for step in chain.phases)
        raise UserError(f"--only {' '.join(sorted(unknown))}: the chain's phases are {known}")
    befores = [None, *(runs / step.name for step in chain.phases[:-1])]
    pairs = list(zip(chain.phases, befores, strict=True))
    resolved = [resolve(step.arguments(before)) for step, before in pairs]
    outcomes: dict[str, str] = {}
    with RunFolder(runs, chain.name).lock():
        for (step, before), config in zip(pairs, resolved, strict=True):
            if only and step.name not in only:
                continue
            run = RunFolder(runs, step.name)
            state, changes = phase_state(run, config)
            if state == "changed" and not (retrain or force):
                raise UserError(
                    f"{run.path} was trained with other settings or data: {'; '.join(changes)}. "
                    "Train it anew with --retrain, or change them back"
                )
            if state == "finished" and not force:
                has_data = (run.path / DATA_FILE).is_file()
                words = "" if has_data else f" (it has no {DATA_FILE} to compare its data with)"
                print(f"== {step.name}: finished, unchanged{words}", flush=True)
                outcomes[step.name] = "kept"
            else:
                plans = {"new": "trains", "unfinished": "continues", "finished": "trains anew"}
                anew = f"trains anew; changed: {'; '.join(changes)}"
                print(f"\n== {step.name}: {plans.get(state, anew)}", flush=True)
                if step.purpose:
                    print(f"   {step.purpose}", flush=True)
                replaced = state == "changed" or (force and state != "new")
                _train(chain.command, step.arguments(before), run, replaced, launch)
                outcomes[step.name] = "trained"
            print(f"\n{_write_table(chain, runs, outcomes).read_text('utf-8')}", flush=True)
        return _write_table(chain, runs, outcomes)


def phase_state(run: RunFolder, config: str) -> tuple[str, list[str]]:
    """How far a run is, against the settings it is to have and the data as they are now.

    Args:
        run: the phase's.
        config: its complete settings, as YAML.

    Returns:
        `new`, `unfinished`, `finished` or `changed`, and of the last what changed:
        `key: old -> new`.
    """
    saved = run.path / "config.yml"
    if not saved.is_file():
        return "new", []
    changes = changed_keys(saved.read_text("utf-8"), config) or changed_data(run.path)
    result = read_result(run.path)
    source = (yaml.safe_load(config) or {}).get("pretrain_model")
    if result is not None and source and not changes:
        before, now = result.get("pretrain_fingerprint"), fingerprint(Path(source))
        if before != now:
            old = str(before)[:12]
            changes = [f"the weights of pretrain_model {source}: {old} -> {now[:12]}"]
    if changes:
        return "changed", changes
    return "unfinished" if result is None else "finished", []


def read_result(run: Path) -> dict[str, Any] | None:
    """What a finished run says of itself (`result.json`), or None."""
    try:
        values = read_json(run / "result.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{run / 'result.json'} is damaged ({error}); delete {run}") from error
    return values if isinstance(values, dict) and values.get("finished") else None


def _train(command: str, arguments: Sequence[str], run: RunFolder, anew: bool, launch: str) -> None:
    words = ["-m", f"visual_search.{command}", *arguments, "--name", run.name]
    words += ["--runs", str(run.path.parent), *(["--overwrite", "true"] if anew else [])]
    start = shlex.split(launch)
    print(f"$ {shlex.join([*(start or ['python']), *words])}", flush=True)
    try:
        status = run_program([*start, *words]) if start else run_python(words)
    except FileNotFoundError as error:
        raise UserError(f"--launch: there is no program {start[0]!r}") from error
    if status != 0:
        raise UserError(
            f"the phase {run.name} ended with status {status}; mend what it said, and the same "
            "command continues the chain"
        )
    if read_result(run.path) is None:
        raise UserError(f"the phase {run.name} ended without {run.path / 'result.json'}")


def _write_table(chain: Chain, runs: Path, outcomes: Mapping[str, str]) -> Path:
    rows: list[dict[str, Any]] = []
    for step in chain.phases:
        result = read_result(runs / step.name) or {}
        facts = {key: result.get(key) for key in ("mAP", "epoch", "step", "seconds")}
        state = outcomes.get(step.name, "kept" if result else "not trained")
        rows.append({"name": step.name, "config": str(step.config), "state": state, **facts})
    folder = runs / chain.name
    write_json(folder / "phases.json", {"chain": chain.name, "phases": rows})
    table: list[list[object]] = [["phase", "mAP", "best epoch", "minutes", ""]]
    for row in rows:
        score = "-" if row["mAP"] is None else f"{row['mAP']:.4f}"
        minutes = "-" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        epoch = "-" if row["epoch"] is None else row["epoch"]
        table.append([row["name"], score, epoch, minutes, row["state"]])
    write_text(folder / "phases.md", markdown(table) + "\n")
    return folder / "phases.md"
