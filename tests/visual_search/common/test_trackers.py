import os
import socket
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from tests.commands import refused
from visual_search.common.trackers import TRACKERS, start_trackers

CONFIG: dict[str, Any] = {"train": {"epochs": 3, "trackers": ["x"]}, "optim": {"head_lr": 3e-4}}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection but to this machine fails, and no setting of the user leaks in."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a tracker wants to talk to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def record(names: list[str], folder: Path, steps: range) -> None:
    PartialState()
    trackers = start_trackers(names, folder, CONFIG, steps.start)
    for tracker in trackers:
        for step in steps:
            tracker.log({"loss": 100.0 - step, "mAP": step / 100}, step + 1)
        tracker.finish()


def test_tensorboard_continues_and_hides_what_is_repeated(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record(["tensorboard"], tmp_path, range(5))
    record(["tensorboard"], tmp_path, range(3, 7))  # killed after step 4, continued from step 3
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(step + 1, 100.0 - step) for step in range(7)]
    assert "config/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
def test_mlflow_continues_the_same_run(tmp_path: Path, no_network: None) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    record(["mlflow"], tmp_path, range(3))
    record(["mlflow"], tmp_path, range(3, 5))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiments = [e for e in client.search_experiments() if e.name == "visual-search"]
    (run,) = client.search_runs([experiments[0].experiment_id])
    assert run.info.run_name == tmp_path.name
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.head_lr"] == "0.0003"
    assert run.data.params["train.epochs"] == "3"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [
        (s + 1, 100.0 - s) for s in range(5)
    ]


@pytest.mark.slow
def test_wandb_writes_offline_under_one_id(tmp_path: Path, no_network: None) -> None:
    pytest.importorskip("wandb")
    record(["wandb"], tmp_path, range(3))
    record(["wandb"], tmp_path, range(2, 5))
    runs = list((tmp_path / "wandb").rglob("*.wandb"))
    identity = (tmp_path / "wandb" / "run_id").read_text()
    assert runs
    assert {path.name for path in runs} == {f"run-{identity}.wandb"}
    assert all("offline-run" in str(path) for path in runs)
    assert all(path.stat().st_size > 0 for path in runs)


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visual_search.common.trackers.find_spec", lambda name: None)
    for name in TRACKERS:
        refused(r"pip install -e '.\[trackers\]'", start_trackers, [name], tmp_path, {}, 0)
