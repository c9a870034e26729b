from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import refused
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.dev_sets import DevSet, read_dev_set
from visual_search.evaluation.dev_set import (
    embed_dev_set,
    evaluate_embeddings,
    evaluate_on_dev_set,
    see_dev_set,
)
from visual_search.model.checkpoint import save_checkpoint
from visual_search.model.embedder import build_embedder
from visual_search.model.projections import Whitening


def in_training(dev_set: DevSet, folder: Path) -> None:
    embedder, _ = broken_model()
    evaluate_on_dev_set(embedder, dev_set, 32, device=torch.device("cpu"))


def of_cached_features(dev_set: DevSet, folder: Path) -> None:
    gallery = torch.full((len(dev_set.gallery), 4), torch.nan)
    evaluate_embeddings(dev_set, gallery, gallery)


def of_a_run(dev_set: DevSet, folder: Path) -> None:
    embedder, architecture = broken_model()
    save_checkpoint(folder / "best", architecture, embedder.state_dict(), {}, {})
    embed_dev_set(folder, dev_set, 32, folder / "cache")


def broken_model() -> tuple:
    embedder, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    next(embedder.parameters()).data.fill_(torch.nan)
    return embedder.eval(), architecture


@pytest.mark.parametrize("way", [in_training, of_cached_features, of_a_run])
def test_a_broken_model_has_no_score(
    way: Callable[[DevSet, Path], None], dev_folder: Path, tmp_path: Path
) -> None:
    words = r"model is broken: .* (10 of 10|20 of 20) images"
    refused(words, way, read_dev_set(dev_folder), tmp_path)


@pytest.mark.parametrize("within", [False, True])
def test_what_was_seen_is_judged_behind_any_neck(dev_folder: Path, within: bool) -> None:
    dev_set = read_dev_set(dev_folder)
    if within:  # each gallery image is a query, too
        rows, products = np.arange(len(dev_set.gallery)), dev_set.gallery_products
        dev_set = replace(dev_set, queries=dev_set.gallery, query_products=products, own=rows)
    torch.manual_seed(0)
    embedder, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    device = torch.device("cpu")
    settings = EmbedSettings(views=("squash", "letterbox")).unmeasured(False)
    seen = see_dev_set(embedder.eval(), dev_set, 32, device=device, settings=settings)
    neck = Whitening(architecture.dimension, 6)
    torch.nn.init.normal_(neck.projection)
    embedder.neck = neck
    expected = evaluate_on_dev_set(embedder, dev_set, 32, device=device, settings=settings)
    found = seen.evaluate(neck, device)
    assert found.ranking.ranks.tolist() == expected.ranking.ranks.tolist()
    assert found.average_precisions.tolist() == expected.average_precisions.tolist()
