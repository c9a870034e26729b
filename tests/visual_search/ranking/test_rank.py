from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.commands import refused
from tests.conftest import write_csv
from visual_search.common.errors import UserError
from visual_search.data.dev_sets import read_dev_set
from visual_search.data.images import load_pixels
from visual_search.evaluation.dev_set import evaluate_on_dev_set
from visual_search.ranking.rank import fill_to_width

CPU = torch.device("cpu")


def centred_pixels(pixels: Tensor) -> Tensor:
    flat = pixels.float().flatten(1)
    return torch.nn.functional.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)


def test_ranking_and_score_equal_a_plain_numpy_one(dev_folder: Path) -> None:
    dev_set = read_dev_set(dev_folder)
    answer = evaluate_on_dev_set(centred_pixels, dev_set, 16, device=CPU)
    sides = []
    for items in (dev_set.gallery, dev_set.queries):
        flat = np.stack([load_pixels(item, 16)[0].astype(float).ravel() for item in items])
        flat -= flat.mean(axis=1, keepdims=True)
        sides.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    order = np.argsort(-(sides[1] @ sides[0].T), axis=1, kind="stable")
    np.testing.assert_array_equal(answer.ranking.ranks[:, :10], order)
    scores = []
    for row, product in zip(order, dev_set.query_products, strict=True):
        right = dev_set.gallery_products[row] == product
        scores.append((np.cumsum(right) / np.arange(1, 11))[right].sum() / right.sum())
    assert answer.mean_average_precision == pytest.approx(np.mean(scores))
    assert answer.ranking.ranks.shape == (10, 1000)


@pytest.mark.parametrize("n_gallery", [1, 3, 999, 1000, 1500])
def test_rows_of_a_small_gallery_are_filled_by_the_stated_rule(n_gallery: int) -> None:
    width = min(n_gallery, 1000)
    ranks = np.stack([np.random.default_rng(i).permutation(n_gallery)[:width] for i in range(4)])
    filled = fill_to_width(ranks, n_gallery)
    assert filled.shape == (4, 1000)
    assert filled.dtype == ranks.dtype
    np.testing.assert_array_equal(filled[:, :width], ranks)
    assert all(len(set(row.tolist())) == 1000 for row in filled)
    if n_gallery < 1000:
        assert filled[0, width:].tolist() == list(range(n_gallery, 1000))


def test_faults_of_a_dev_set_are_named(dev_folder: Path, tmp_path: Path) -> None:
    refused(r"data folder .*nowhere does not exist", read_dev_set, tmp_path / "nowhere")
    refused(r"other\.csv does not exist", read_dev_set, dev_folder, gallery="other.csv")
    write_csv(dev_folder / "anonymous.csv", ["seller_img_id", "img_path"], [[0, "a.png"]])
    with pytest.raises(UserError, match=r"anonymous.csv has no column 'product_id'"):
        read_dev_set(dev_folder, gallery="anonymous.csv")
    header = ["seller_img_id", "img_path", "product_id"]
    write_csv(dev_folder / "strangers.csv", header, [[0, "gallery/0_0.png", 999]])
    refused(r"no query of .* shows a product of", read_dev_set, dev_folder, gallery="strangers.csv")
