"""Searching for learning rate, weight decay and other settings: trials of one phase.

Trials are drawn by the tree-structured Parzen estimator (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011, section 4); one whose mAP is below the median of the
earlier trials' at the same step is stopped.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
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
Space = Mapping[str, Any]
"""By dotted key, Optuna's distribution that the setting is drawn from."""


def read_search_space(path: Path) -> Space:
    """A search space from YAML: dotted key to `{low, high, log}` or `{choices: […]}`.

    Between two whole numbers, whole numbers are drawn.

    Raises:
        UserError: naming file and key.
    """
    values = read_yaml(path, "the search space")
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} must be a table such as optim.head_lr: {{low: 1e-5, high: 1e-3}}")
    space = {}
    for key, value in values.items():
        try:
            space[str(key)] = _distribution(**value)
        except (TypeError, ValueError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise UserError(
                f"{path}: {key}: {value!r} is no range{why}; write "
                "{low: 1e-5, high: 1e-3, log: true} or {choices: [a, b]}"
            ) from error
    return space


def _distribution(
    low: Any = None, high: Any = None, log: bool = False, choices: Sequence[Any] = ()
) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if choices and low is high is None:
        # Of a list, such as optim.betas, the words: Optuna and pandas need what hashes.
        return CategoricalDistribution(
            [json.dumps(one) if isinstance(one, list | dict) else one for one in choices]
        )
    if not isinstance(log, bool):
        raise ValueError(f"log is true or false, not {log!r}")
    if type(low) is type(high) is int:
        return IntDistribution(low, high, log)
    low, high = float(low), float(high)
    if not math.isfinite(high - low):
        raise ValueError("low and high must be numbers")
    return FloatDistribution(low, high, log)


def example(space: Space) -> dict[str, Any]:
    """Settings of the space."""
    return {
        key: wanted.choices[0] if hasattr(wanted, "choices") else wanted.low
        for key, wanted in space.items()
    }


def combinations(space: Space, path: Path) -> list[dict[str, Any]]:
    """All settings of a grid.

    Raises:
        UserError: for a key of the file without choices.
    """
    for key, wanted in space.items():
        if not hasattr(wanted, "choices"):
            raise UserError(f"{path}: {key}: --grid needs choices; write {{choices: [a, b]}}")
    values = itertools.product(*(wanted.choices for wanted in space.values()))
    return [dict(zip(space, row, strict=True)) for row in values]


def tune(
    folder: Path,
    space: Space,
    train_trial: TrainTrial,
    *,
    trials: int,
    timeout: float | None = None,
    seed: int = 42,
    grid: Sequence[Mapping[str, Any]] = (),
) -> optuna.Study:
    """Train trials until there are enough; a killed search continues.

    Its memory is `study.db`, one process at a time. Trials are runs in `trials/`; a trial that
    was under way when the process was killed continues there. Only the best one keeps its weights.

    Args:
        folder: of the search.
        space: what is drawn from.
        train_trial: trains one.
        trials: finished or stopped ones in all, those of earlier calls included; not of a grid.
        timeout: seconds after which no further trial is begun.
        seed: of the draws.
        grid: in place of drawing, these settings are trained, each to its end unless it was before.

    Raises:
        UserError: where the search was begun with other choices, or a grid with other keys; of
            `train_trial`, where nothing was trained yet; later ones are kept with the trial, which
            counts as stopped.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / 'study.db').absolute()}")
    study = optuna.create_study(
        study_name="tuning", storage=storage, load_if_exists=True, direction="maximize"
    )
    # With the same seed a continued search would draw its first trials a second time.
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.trials), n_startup_trials=STARTUP_TRIALS
    )
    median = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    study.pruner = optuna.pruners.NopPruner() if grid else median
    _check_space(study, space, folder, exactly=bool(grid))
    _queue_interrupted(study)
    over = math.inf if timeout is None else time.monotonic() + timeout
    while time.monotonic() < over:
        # Draws may have tried a combination twice, and have stopped others early.
        done = [one.params for one in finished(study)]
        done += [one.params for one in ended(study) if "error" in one.user_attrs]
        left = [row for row in grid if row not in done]
        if not left and (grid or len(ended(study)) >= trials):
            break
        if left and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(dict(left[0]))
        trial = study.ask(dict(space))
        try:
            told = study.tell(trial, _train(trial, folder / "trials", train_trial))
        except optuna.TrialPruned:
            told = study.tell(trial, state=TrialState.PRUNED)
        except Exception:
            study.tell(trial, state=TrialState.FAIL)
            raise
        _keep_the_best(study, told, folder / "trials")
        gc.collect()  # what a training leaves on a GPU
    return study


def _check_space(study: optuna.Study, space: Space, folder: Path, exactly: bool) -> None:
    """Refuse other choices than earlier trials were drawn from, or `exactly` other keys."""
    from optuna.distributions import check_distribution_compatibility

    for trial in study.get_trials(deepcopy=False):
        was = trial.distributions
        try:
            for key in {*space, *was} if exactly and was else {*space} & {*was}:
                check_distribution_compatibility(was[key], space[key])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{folder} was begun with other keys or choices in its search space "
                f"({', '.join(f'{key}: {_in_words(one)}' for key, one in was.items())}): continue "
                "it with the same, or choose another --name"
            ) from error


def _in_words(wanted: Any) -> str:
    if hasattr(wanted, "choices"):
        return f"one of {', '.join(map(str, wanted.choices))}"
    return f"{wanted.low:g} to {wanted.high:g}"


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


def _train(trial: optuna.Trial, runs: Path, train_trial: TrainTrial) -> float:
    import optuna
    import torch

    run = RunFolder(runs, _run_name(trial))
    result = read_result(run.path)
    if result is not None:  # killed between its end and the note of it
        return float(result["mAP"])

    def on_validation(step: int, score: float) -> None:
        trial.report(score, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        return train_trial(trial.params, run, on_validation)
    except (UserError, torch.OutOfMemoryError) as error:
        if not (run.path / "config.yml").exists():
            raise  # nothing was trained: every trial would end so
        trial.set_user_attr("error", str(error))
        raise optuna.TrialPruned from error


def _keep_the_best(study: optuna.Study, trial: optuna.trial.FrozenTrial, runs: Path) -> None:
    """Say how a trial ended, and remove the weights of those that are not the best."""
    best = study.best_trial if finished(study) else None
    error = trial.user_attrs.get("error")
    said = f"mAP {trial.value:.4f}" if trial.value is not None else "stopped early"
    if trial.state.name == "PRUNED":
        said = f"stopped: {error}" if error else f"stopped early, {said}"
    settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
    note = " (best so far)" if best and trial.number == best.number else ""
    print(f"trial {trial.number}: {settings}: {said}{note}", flush=True)
    for run in runs.glob("trial_*"):
        if best is None or run.name != _run_name(best):
            for part in ("best", "last", "state"):
                shutil.rmtree(run / part, ignore_errors=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def check_settings(folder: Path, config: str, space: Space) -> None:
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


def write_grid(study: optuna.Study, space: Space, folder: Path) -> str:
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
    cells = frame.pivot_table("mAP", key, others[:1], ["mean", "std"], dropna=False)
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
