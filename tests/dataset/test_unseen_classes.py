"""From a table to a score on classes that training never saw, as a user does it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dataset import get_kfold_split
from tests.conftest import draw_product, write_csv
from tests.visual_search.test_dev_tables import naive_scores
from visual_search import main_arcface
from visual_search.checkpoint import load_checkpoint, plain_state
from visual_search.images import ImageItem, load_pixels
from visual_search.model import rebuild_embedder


@pytest.fixture
def info(tmp_path: Path) -> Path:
    """Six classes of four photos, three of two, and one of one, drawn."""
    rows: list[list[object]] = []
    for product in range(10):
        for photo in range(4 if product < 6 else 2 if product < 9 else 1):
            name = f"photos/{product}/{photo}.png"
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            draw_product(product, photo).save(tmp_path / name)
            rows.append([name, f"p{product}", 64, 64, 0])
    header = ["file_name", "label", "width", "height", "is_test"]
    return write_csv(tmp_path / "dataset_info.csv", header, rows)


def run(monkeypatch: pytest.MonkeyPatch, main: object, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert callable(main)
    main()


def train(monkeypatch: pytest.MonkeyPatch, runs: Path, *options: str) -> None:
    run(
        monkeypatch,
        main_arcface.main,
        *("--name", "unseen", "--runs", str(runs), "--overwrite", "true"),
        *("--dataset.product10k.use", "false", "--dataset.input_size", "32"),
        *("--dataset.batch_size", "8", "--dataset.augmentations", "flip"),
        *("--dataset.num_workers", "0", "--backbone.name", "timm/test_efficientnet"),
        *("--backbone.weights", "none", "--train.epochs", "1", "--optim.head_lr", "0.01"),
        *options,
    )


def test_a_model_is_judged_on_classes_that_never_trained(
    info: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        monkeypatch,
        get_kfold_split.main,
        *("--dataset_info", str(info), "--split_type", "minmax"),
    )
    table = tmp_path / "dataset_test.csv"
    train(
        monkeypatch,
        tmp_path / "runs",
        *("--dataset.tables", json.dumps([{"file": str(tmp_path / "dataset_train.csv")}])),
        *("--dataset.dev_set.table", str(table)),
    )
    said = capsys.readouterr().out
    assert "24 photos of 6 classes" in said
    assert (
        "validation: 6 queries, 7 gallery photos of a table, 3 of 3 classes not in training, "
        "each against all others" in said
    )
    best = load_checkpoint(tmp_path / "runs" / "unseen")
    model = rebuild_embedder(best.architecture).eval()
    model.load_state_dict(plain_state(best))
    rows = pd.read_csv(table)
    items = [ImageItem(tmp_path / name) for name in rows["file_name"]]
    pixels = np.stack([load_pixels(item, 32)[0] for item in items])
    with torch.inference_mode():
        vectors = model(torch.from_numpy(pixels)).numpy()
    expected = naive_scores(vectors @ vectors.T, rows["label"].tolist())
    assert len(expected) == 6
    assert best.facts["mAP"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_a_fold_of_photos_and_a_fold_of_classes(
    info: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = tmp_path / "folds.csv"
    for options, all_unseen in ((("--k", "3", "--whole_classes"), True), (("--k", "2"), False)):
        run(monkeypatch, get_kfold_split.main, "--dataset_info", str(info), *options)
        rows = pd.read_csv(folds)
        sizes = rows[rows["fold"] == 1]["label"].value_counts()
        queries = sizes[sizes > 1]
        unseen = set(queries.index) - set(rows["label"][rows["fold"] != 1])
        assert unseen == (set(queries.index) if all_unseen else set())
        capsys.readouterr()
        train(
            monkeypatch,
            tmp_path / "runs",
            *("--dataset.tables", json.dumps([{"file": str(folds), "fold": 1}])),
            *("--dataset.dev_set.table", str(folds), "--dataset.dev_set.fold", "1"),
        )
        said = capsys.readouterr().out
        assert f"{len(rows) - sizes.sum()} photos of" in said
        assert (
            f"validation: {queries.sum()} queries, {sizes.sum()} gallery photos of a table, "
            f"{len(unseen)} of {len(queries)} classes not in training" in said
        )
