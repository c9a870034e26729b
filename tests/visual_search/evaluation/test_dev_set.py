from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import refused
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.dev_sets import read_dev_set
from visual_search.evaluation.dev_set import (
    embed_dev_set,
    evaluate_embeddings,
    evaluate_on_dev_set,
    see_dev_set,
)
from visual_search.model.checkpoint import save_checkpoint
from visual_search.model.embedder import build_embedder
from visual_search.model.projections import Whitening


def test_a_broken_model_has_no_score(dev_folder: Path, tmp_path: Path) -> None:
    dev_set, device = read_dev_set(dev_folder), torch.device("cpu")
    embedder, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    next(embedder.parameters()).data.fill_(torch.nan)
    save_checkpoint(tmp_path / "best", architecture, embedder.state_dict(), {}, {})
    gallery = torch.full((len(dev_set.gallery), 4), torch.nan)
    words = r"model is broken: .* (10 of 10|20 of 20) images"
    refused(words, evaluate_on_dev_set, embedder.eval(), dev_set, 32, device=device)
    refused(words, evaluate_embeddings, dev_set, gallery, gallery)
    refused(words, embed_dev_set, tmp_path, dev_set, 32, tmp_path / "cache")


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
