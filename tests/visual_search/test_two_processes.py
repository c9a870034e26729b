"""Two processes train as one process with the doubled batch does."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import inside, logged, told
from tests.conftest import spare_plots, write_yaml
from tests.warm import run_python, start_python
from visual_search.main_arcface import main
from visual_search.model.checkpoint import load_checkpoint


# Each loss on two ranks: tests/visual_search/losses.
@pytest.mark.parametrize("launcher", ["ours", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_the_loss_curve_is_that_of_the_doubled_batch(
    launcher: str,
    tmp_path: Path,
    product10k_folder: Path,
    dev_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, Any] = {
        "dataset": {"num_of_classes": 6, "input_size": 32, "augmentations": "flip"},
        # Layer norm: statistics of a batch would differ with its size.
        "backbone": {"name": "timm/test_vit", "weights": "none"},
        "margin": {"sampled_share": 0.5, "class_margins": "none", "dropout": 0.0},
        "optim": {"head_lr": 0.003, "backbone_lr_ratio": 0.3, "warmup_steps": 2},
        "train": {"epochs": 2, "log_steps": 1, "validate_every": 2},
    }
    values["dataset"] |= {
        "product10k": {"train_valid_root": str(product10k_folder)},
        "dev_set": {"eval_root": str(dev_folder)},
        "num_workers": 0,
    }
    config = write_yaml(tmp_path / "phase.yml", values)
    common = ("--config", config, "--runs", tmp_path / "runs")
    torch.set_num_threads(1)
    spare_plots(monkeypatch)
    told(main, *common, "--name", "one", "--dataset.batch_size", "8")
    halved = (*common, "--name", "two", "--dataset.batch_size", "4")
    command = ("-m", "visual_search.main_arcface", *halved)
    shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if launcher == "torchrun":
        launch = ("--nproc_per_node", "2", "--master_port", "29600")
        done = run_python("-m", "torch.distributed.run", *launch, *command, environment=shared)
        assert done.returncode == 0, done.stderr
    else:  # told of each other as torchrun tells them, without the seconds that it takes
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        logs = [tmp_path / f"rank{rank}.log" for rank in "01"]
        ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        started = [
            start_python(*command, out=log, environment=rank)
            for log, rank in zip(logs, ranks, strict=True)
        ]
        for process, log in zip(started, logs, strict=True):
            process.join(200)
            process.kill()
            assert process.exitcode == 0, log.read_text()

    both = [tmp_path / "runs" / name for name in ("one", "two")]
    losses = [[line["loss"] for line in logged(run, "step")] for run in both]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    # Of the class matrix each process had a half.
    heads = [load_file(run / "last" / "head.safetensors") for run in both]
    torch.testing.assert_close(*heads, atol=1e-3, rtol=1e-3)
    # Some weights, such as the bias of an attention's keys, change nothing and wander.
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    one, two = (embeddings(run / "last", pixels) for run in both)
    assert one.allclose(two, atol=1e-3)


def test_several_processes_that_were_not_started_are_refused(
    small_phase: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_yaml(tmp_path / "phase.yml", small_phase)
    for name in ("RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    # As `accelerate launch --cpu --num_processes 2` leaves them, without MPI.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    done = inside(main, "--config", config, "--runs", tmp_path / "runs", "--name", "one")
    assert done.returncode != 0
    assert "torchrun --nproc_per_node" in done.stderr


def embeddings(checkpoint: Path, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return load_checkpoint(checkpoint).embedder()(pixels)
