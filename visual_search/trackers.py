"""Trackers beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

All write below the run's folder and talk to nobody, unless the environment says otherwise
(`WANDB_MODE=online`, `MLFLOW_TRACKING_URI`). A continued run continues its records: Accelerate's
trackers neither keep a run's id nor hide what it repeats, so the libraries are called directly.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from visual_search.errors import UserError
from visual_search.files import write_text
from visual_search.run_folder import flat_settings


class Tracker(Protocol):
    """One place where numbers are recorded."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of an optimiser step."""

    def close(self) -> None:
        """Write what is not written yet."""


class Trackers:
    """All trackers of a run; with no names it does nothing."""

    def __init__(
        self, names: Sequence[str], run_folder: Path, run_name: str, config: Mapping[str, Any]
    ) -> None:
        """
        Args:
            names: keys of :data:`TRACKERS`.
            run_folder: of the run; each tracker has a folder of its name in it.
            run_name: shown by the trackers.
            config: the resolved config, nested; recorded once.

        Raises:
            UserError: for a name nobody knows or a package that is not installed.
        """
        self.trackers: list[Tracker] = []
        for name in names:
            if name not in TRACKERS:
                raise UserError(
                    f"train.trackers: {name!r} is unknown; write some of {', '.join(TRACKERS)}"
                )
            try:
                tracker = TRACKERS[name](run_folder / name, run_name, config)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"train.trackers has {name}, but the package {error.name} is not installed: "
                    "pip install -e '.[trackers]'"
                ) from error
            self.trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of an optimiser step, such as `{"loss": 1.2}`."""
        for tracker in self.trackers:
            tracker.log(values, step)

    def close(self) -> None:
        """Write what is not written yet; call it once, at the end."""
        for tracker in self.trackers:
            tracker.close()


class TensorBoard:
    """Event files; `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.writer = folder, None
        if not folder.exists():
            self.writer = SummaryWriter(str(folder))
            self.writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run wrote from this step on is written a second time: hide the first.
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self) -> None:
        """See :class:`Tracker`."""
        if self.writer is not None:
            self.writer.close()


class WeightsAndBiases:
    """An offline run, which `wandb sync` uploads, unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "visual-search"),
            dir=str(folder),
            id=_kept_id(folder),
            name=run_name,
            config=dict(config),
            resume="allow",
            reinit="create_new",
        )
        # Its own step counter only goes forward; a continued run repeats some.
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """See :class:`Tracker`."""
        self.run.finish()


class MLflow:
    """A database file in the run; `mlflow ui --backend-store-uri sqlite:///…/mlflow.db`."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        store = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", store))
        experiment = self._experiment(folder)
        known = folder / "run_id"
        if known.exists():
            self.run_id = known.read_text("utf-8")
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment, run_name=run_name).info.run_id
        # Its limits: so many characters a value, so many values a call.
        settings = [Param(key, str(value)[:6000]) for key, value in flat_settings(config).items()]
        for start in range(0, len(settings), 100):
            self.client.log_batch(self.run_id, params=settings[start : start + 100])
        write_text(known, self.run_id)

    def _experiment(self, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "visual-search")
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self.client.create_experiment(name, (folder / "artifacts").absolute().as_uri())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self.client.set_terminated(self.run_id)


def _kept_id(folder: Path) -> str:
    """An id that a continued run finds again."""
    path = folder / "run_id"
    if not path.exists():
        fresh = hashlib.sha256(f"{folder.absolute()} {time.time_ns()}".encode()).hexdigest()[:12]
        write_text(path, fresh)
    return path.read_text("utf-8")


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
