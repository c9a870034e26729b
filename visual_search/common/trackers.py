"""Trackers beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, by Accelerate's classes.

All write below the run's folder and talk to nobody, unless the environment says otherwise
(`WANDB_MODE=online`, `MLFLOW_TRACKING_URI`). A continued run continues its records.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import tracking

from visual_search.common.errors import UserError
from visual_search.common.files import write_text


def start_trackers(
    names: Sequence[str], run: Path, config: Mapping[str, Any], step: int
) -> list[tracking.GeneralTracker]:
    """Trackers of a run, which has to have an accelerator; in the main process they record.

    Args:
        names: keys of :data:`TRACKERS`.
        run: the run's folder; each tracker has a folder of its name in it.
        config: the resolved config, nested; recorded once.
        step: optimiser steps so far; what a killed run recorded after them is recorded again.

    Raises:
        UserError: for a package that is not installed.
    """
    trackers = []
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"train.trackers has {name}, but the package {name} is not installed: "
                "pip install -e '.[trackers]'"
            )
        trackers.append(TRACKERS[name](run / name, config, step))
    return trackers


def _tensorboard(folder: Path, config: Mapping[str, Any], step: int) -> tracking.GeneralTracker:
    """Event files; `tensorboard --logdir runs` shows all runs."""
    purged = {"purge_step": step + 1} if step else {}
    tracker = tracking.TensorBoardTracker("", str(folder), **purged)
    tracker.start()
    if not step:
        tracker.writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")
    return tracker


def _wandb(folder: Path, config: Mapping[str, Any], step: int) -> tracking.GeneralTracker:
    """An offline run, which `wandb sync` uploads, unless WANDB_MODE says otherwise."""
    for key, value in (("MODE", "offline"), ("ERROR_REPORTING", "false"), ("SILENT", "true")):
        os.environ.setdefault(f"WANDB_{key}", value)
    known = folder / "run_id"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(known, uuid.uuid4().hex[:12])
    tracker = tracking.WandBTracker(
        os.environ.get("WANDB_PROJECT", "visual-search"),
        dir=str(folder),
        id=known.read_text("utf-8"),
        name=folder.parent.name,
        config=dict(config),
        resume="allow",
        reinit="create_new",
    )
    tracker.start()
    return tracker


def _mlflow(folder: Path, config: Mapping[str, Any], step: int) -> tracking.GeneralTracker:
    """A database file in the run; `mlflow ui --backend-store-uri sqlite:///…/mlflow.db`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", store))
    known = folder / "run_id"
    tracker = tracking.MLflowTracker(
        "visual-search",
        logging_dir=(folder / "artifacts").absolute().as_uri(),
        run_id=known.read_text("utf-8") if known.exists() else None,
        run_name=folder.parent.name,
    )
    tracker.start()
    if not known.exists():
        tracker.store_init_configuration(pd.json_normalize(dict(config)).to_dict("records")[0])
        write_text(known, tracker.active_run.info.run_id)
    return tracker


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], tracking.GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
