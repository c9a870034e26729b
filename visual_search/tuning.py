"""Searching for learning rate, weight decay and other settings: trials of one phase.

Trials are drawn by the tree-structured Parzen estimator (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011, section 4); one whose mAP is below the median of the
earlier trials' at the same step is stopped.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, read_yaml, write_figure, write_text
from visual_search.common.page import markdown
from visual_search.common.run_folder import RunFolder, changed_keys
from visual_search.evaluation.identity import changed_data
from visual_search.phase_chain import read_result

if TYPE_CHECKING:
    import optuna

# Trials before the first is stopped, and before draws follow the earlier results.
STARTUP_TRIALS = 5

OnValidation = Callable[[int, float], None]
TrainTrial = Callable[[Mapping[str, Any], RunFolder, OnValidation], float]
"""From settings (dotted key to value), a run folder and a callback to the best mAP, 0..1."""


@dataclass(frozen=True)
class Range:
    """What one setting is drawn from.

    Args:
        low: smallest value; between two whole numbers, whole numbers are drawn.
        high: largest value.
        log: draw evenly on a logarithmic scale.
        choices: instead of a range, the values themselves.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def draw(self, trial: optuna.Trial, key: str) -> Any:
        """A value for this trial."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def example(self) -> Any:
        """A value of the range."""
        return self.choices[0] if self.choices else self.low


def read_search_space(path: Path) -> dict[str, Range]:
    """A search space from YAML: dotted key to `{low, high, log}` or `{choices: […]}`.

    Raises:
        UserError: naming file and key.
    """
    values = read_yaml(path, "the search space")
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} must be a table such as optim.head_lr: {{low: 1e-5, high: 1e-3}}")
    return {str(key): _range(f"{path}: {key}", value) for key, value in values.items()}


def _range(place: str, value: Any) -> Range:
    if isinstance(value, dict) and value.keys() == {"choices"} and value["choices"]:
        return Range(choices=tuple(value["choices"]))
    wanted = "write {low: 1e-5, high: 1e-3, log: true} or {choices: [a, b]}"
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise UserError(f"{place}: {value!r} is no range; {wanted}")
    try:
        low, high = (_number(value[end]) for end in ("low", "high"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: low and high must be numbers; {wanted}") from error
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{place}: log is true or false, not {log!r}")
    if not low <= high or (log and low <= 0):
        raise UserError(f"{place}: low must be {'above 0 and ' if log else ''}at most high")
    return Range(low, high, log)


def _number(value: Any) -> float:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(value)  # YAML reads 1e-5, without a point, as text
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def tune(
    folder: Path,
    space: Mapping[str, Range],
    train_trial: TrainTrial,
    *,
    trials: int,
    timeout: float | None = None,
    seed: int = 42,
    grid: bool = False,
) -> optuna.Study:
    """Train trials until there are enough; a killed search continues.

    Its memory is `study.db`, one process at a time. Trials are runs in `trials/`; a trial that
    was under way when the process was killed continues there. Only the best one keeps its weights.

    Args:
        folder: of the search.
        space: what is drawn from.
        train_trial: trains one.
        trials: finished or stopped ones in all, those of earlier calls included.
        timeout: seconds after which no further trial is begun.
        seed: of the draws.
        grid: train every combination of the space once, all to their ends, in place of drawing.

    Raises:
        UserError: of `train_trial`, where nothing was trained yet; later ones are kept with the
            trial, which counts as stopped.
    """
    import optuna

    # It would add a traceback to every sentence of a trial that failed.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / 'study.db').absolute()}")
    study = optuna.create_study(
        study_name="tuning", storage=storage, load_if_exists=True, direction="maximize"
    )
    if grid:
        choices = {key: list(wanted.choices) for key, wanted in space.items()}
        study.sampler = optuna.samplers.GridSampler(choices, seed=seed)
        study.pruner = optuna.pruners.NopPruner()
    else:
        # With the same seed a continued search would draw its first trials a second time.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.trials), n_startup_trials=STARTUP_TRIALS
        )
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    _queue_interrupted(study)
    left = trials - len(ended(study))
    if left > 0:
        study.optimize(
            lambda trial: _run_trial(trial, folder / "trials", space, train_trial),
            n_trials=left,
            timeout=timeout,
            gc_after_trial=True,
            callbacks=[lambda study, trial: _after_trial(study, trial, folder / "trials")],
        )
    return study


def combinations(space: Mapping[str, Range], path: Path) -> int:
    """How many there are in a grid.

    Raises:
        UserError: for a key of the file without choices.
    """
    for key, wanted in space.items():
        if not wanted.choices:
            raise UserError(f"{path}: {key}: --grid needs choices; write {{choices: [a, b]}}")
    return math.prod(len(wanted.choices) for wanted in space.values())


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: finished, or stopped early."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that were trained to their end."""
    return [trial for trial in ended(study) if trial.state.name == "COMPLETE"]


def _queue_interrupted(study: optuna.Study) -> None:
    """Trials that a killed process left behind come first, with their settings and run."""
    from optuna.trial import TrialState

    queued = {trial.user_attrs.get("continues") for trial in study.trials}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number not in queued and trial.params:
            attributes = {"continues": trial.number, "run": _run_name(trial)}
            study.enqueue_trial(trial.params, user_attrs=attributes)
        study.tell(trial.number, state=TrialState.FAIL)


def _run_name(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    return str(trial.user_attrs.get("run", f"trial_{trial.number:03d}"))


def _run_trial(
    trial: optuna.Trial, runs: Path, space: Mapping[str, Range], train_trial: TrainTrial
) -> float:
    import optuna
    import torch

    settings = {key: wanted.draw(trial, key) for key, wanted in space.items()}
    run = RunFolder(runs, _run_name(trial))
    result = read_result(run.path)
    if result is not None:  # killed between its end and the note of it
        return float(result["mAP"])

    def on_validation(step: int, score: float) -> None:
        trial.report(score, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        return train_trial(settings, run, on_validation)
    except (UserError, torch.OutOfMemoryError) as error:
        if not (run.path / "config.yml").exists():
            raise  # nothing was trained: every trial would end so
        trial.set_user_attr("error", str(error))
        raise optuna.TrialPruned from error


def _after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial, runs: Path) -> None:
    if trial.state.name not in ("COMPLETE", "PRUNED"):
        return
    best = study.best_trial.number if finished(study) else None
    error = trial.user_attrs.get("error")
    said = f"mAP {trial.value:.4f}" if trial.value is not None else "stopped early"
    if trial.state.name == "PRUNED":
        said = f"stopped: {error}" if error else f"stopped early, {said}"
    settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
    note = " (best so far)" if trial.number == best else ""
    print(f"trial {trial.number}: {settings}: {said}{note}", flush=True)
    keeps = None if best is None else _run_name(study.best_trial)
    for run in runs.glob("trial_*"):
        if run.name != keeps:
            for part in ("best", "last", "state"):
                shutil.rmtree(run / part, ignore_errors=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def check_settings(folder: Path, config: str, space: Mapping[str, Range]) -> None:
    """Refuse a folder that is no search, and a search of other settings or data, which could not
    be compared.

    Args:
        folder: of the search.
        config: a trial's complete config, as YAML.
        space: its keys may differ.

    Raises:
        UserError: naming what changed.
    """
    if folder.exists() and not (folder / "study.db").is_file() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is no search, since it has no study.db, and is left as it is; choose "
            "another --name"
        )
    for saved in sorted((folder / "trials").glob("trial_*/config.yml"))[:1]:
        changes = changed_keys(saved.read_text("utf-8"), config)
        # A trial leaves out the nested widths that its dimension does not have.
        free = {*space, "margin.nested"} if "neck.dimension" in space else {*space}
        changes = [change for change in changes if change.partition(":")[0] not in free]
        changes = changes or changed_data(saved.parent)
        if changes:
            raise UserError(
                f"{folder} was begun with other settings or data ({'; '.join(changes[:5])}): "
                "continue it with the same, or choose another --name"
            )


def write_best(study: optuna.Study, folder: Path) -> Path:
    """Write the best trial's complete config to `best.yml`; it trains as any other."""
    best = study.best_trial
    saved = folder / "trials" / _run_name(best) / "config.yml"
    origin = f"# Trial {best.number} of {len(study.trials)}: mAP {best.value:.4f}\n"
    write_text(folder / "best.yml", origin + saved.read_text("utf-8"))
    return folder / "best.yml"


def plot(study: optuna.Study, path: Path) -> None:
    """Draw the scores of the finished trials over each setting, as a PNG file."""
    import matplotlib
    from optuna.visualization.matplotlib import plot_slice

    with matplotlib.rc_context(), warnings.catch_warnings():  # it sets a style, and is experimental
        warnings.simplefilter("ignore")
        write_figure(path, np.ravel(plot_slice(study, target_name="mAP"))[0].figure)


def write_grid(study: optuna.Study, space: Mapping[str, Range], folder: Path) -> str:
    """Draw a grid's scores to `grid.png`: over its first setting, a line for each value of the
    second, means and standard deviations over dataset.seed and all others.

    Classes are shown as many as there were: 0, all of them, has no place on an axis.

    Returns:
        The same as a Markdown table, which is `grid.md`.
    """
    from matplotlib.figure import Figure

    key, *others = [name for name in space if name != "dataset.seed"] or [*space]
    trials = finished(study)
    frame = pd.DataFrame([{"mAP": trial.value, **trial.params} for trial in trials])
    if key == "dataset.max_classes":
        files = [folder / "trials" / _run_name(trial) / "classes.json" for trial in trials]
        frame[key] = [len(read_json(file)) for file in files]
    line = frame[others[0]] if others else frame[key].map(lambda _: "mAP")
    groups = frame["mAP"].groupby([frame[key], line.rename("")])
    cells = pd.DataFrame(groups.agg(["mean", "std"]).unstack())
    means, spreads = pd.DataFrame(cells["mean"]), pd.DataFrame(cells["std"])
    heads = [f"{others[0]} {name}" if others else name for name in means.columns]
    means.columns = spreads.columns = pd.Index(heads)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = means.plot(ax=figure.subplots(), yerr=spreads.fillna(0.0), marker="o", capsize=2)
    if pd.api.types.is_numeric_dtype(means.index) and (means.index > 0).all():
        axes.set_xscale("log")
        axes.set_xticks(means.index, [f"{place:g}" for place in means.index])
        axes.minorticks_off()
    axes.set(xlabel=key, ylabel="mAP", title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_figure(folder / "grid.png", figure)
    shown = means.map("{:.4f}".format) + spreads.map(" ± {:.4f}".format).where(spreads.notna(), "")
    rows = shown.where(means.notna(), "-").reset_index().astype(str).to_numpy().tolist()
    text = markdown([[key, *heads], *rows]) + "\n"
    write_text(folder / "grid.md", text)
    return text
