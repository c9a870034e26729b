"""From a folder to a score on classes that training never saw, as a user does it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dataset import filter_dataset_info, find_leaks, generate_dataset_info, get_kfold_split
from tests.commands import stopped, told
from tests.conftest import draw_product
from tests.visual_search.data.test_dev_sets import naive_scores
from visual_search import main_arcface, main_evaluate
from visual_search.data.images import ImageItem, load_pixels
from visual_search.model.checkpoint import load_checkpoint, plain_state
from visual_search.model.embedder import rebuild_embedder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six classes of four images, three of two, and one of one; one image is there twice."""
    folder = tmp_path / "photos"
    for product in range(10):
        (folder / f"kind{product % 2}" / f"p{product}").mkdir(parents=True)
        for image in range(4 if product < 6 else 2 if product < 9 else 1):
            drawn = draw_product(product, image)
            drawn.save(folder / f"kind{product % 2}" / f"p{product}" / f"{image}.png")
    draw_product(6, 0).save(folder / "kind0" / "p6" / "copy.png")
    return folder


def train(runs: Path, *options: object) -> str:
    return told(
        main_arcface.main,
        *("--name", "unseen", "--runs", runs, "--overwrite", "true"),
        *("--dataset.product10k.use", "false", "--dataset.input_size", "32"),
        *("--dataset.batch_size", "8", "--dataset.augmentations", "flip"),
        *("--dataset.num_workers", "0", "--backbone.name", "timm/test_efficientnet"),
        *("--backbone.weights", "none", "--train.epochs", "1", "--optim.head_lr", "0.01"),
        *options,
    )


def test_from_a_folder_to_a_score_on_classes_that_never_trained(
    images: Path, tmp_path: Path
) -> None:
    tables = tmp_path / "tables"
    place = ("--dataset_path", images, "--save_path", tables)
    told(generate_dataset_info.main, *place, "--hashes")
    info, filtered = tables / "dataset_info.csv", tables / "dataset_info_filtered.csv"
    told(filter_dataset_info.main, "--dataset_info", info, "--dedup", "--threshold", "0")
    told(get_kfold_split.main, "--dataset_info", filtered, "--split_type", "minmax")
    train_table, table = tables / "dataset_train.csv", tables / "dataset_test.csv"
    told(find_leaks.main, "--train", train_table, "--test", table)
    said = train(
        tmp_path / "runs",
        *("--dataset.tables", json.dumps([{"file": str(train_table)}])),
        *("--dataset.dev_set.table", table),
    )
    assert "24 images of 6 classes" in said
    assert "nobody has looked yet" not in said
    assert (
        "validation: 6 queries, 7 gallery images of a table, 3 of 3 classes not in training, "
        "each against all others" in said
    )
    best = load_checkpoint(tmp_path / "runs" / "unseen")
    model = rebuild_embedder(best.architecture).eval()
    model.load_state_dict(plain_state(best))
    rows = pd.read_csv(table)
    items = [ImageItem(tables / name) for name in rows["file_name"]]
    pixels = np.stack([load_pixels(item, 32)[0] for item in items])
    with torch.inference_mode():
        vectors = model(torch.from_numpy(pixels)).numpy()
    expected = naive_scores(vectors @ vectors.T, rows["label"].tolist())
    assert len(expected) == 6
    assert best.facts["mAP"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)

    options = ("--run", tmp_path / "runs/unseen", "--table", table, "--cache", tmp_path / "cache")
    for kept in ("embedded", "read from the cache"):
        said = told(main_evaluate.main, "score", *options)
        assert f"7 gallery images {kept}" in said
        assert "6 of them are queries, each against all others" in said
        assert f"mAP {best.facts['mAP']:.4f}" in said
    said = stopped(main_evaluate.main, "tune-rerank", *options)
    assert "tune-rerank needs queries apart from the gallery" in said
