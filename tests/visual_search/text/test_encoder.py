"""Projections and the loss against their formulas; texts averaged by image."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.commands import refused
from tests.visual_search.tiny_clips import language_model
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.model.embedder import build_embedder
from visual_search.text.config import ProjectionConfig, TextConfig
from visual_search.text.encoder import DualEncoder, create_text_towers
from visual_search.text.projections import ClusterProjections, ResidualProjection, TokenClassifier
from visual_search.text.towers import HashedNgrams, TextTowers

TEXTS = ["красный стул", "синий стул", "стол", "красный стол", "лампа", "торшер"]


def tiny_encoder(*more_towers: str, **projection: Any) -> DualEncoder:
    torch.manual_seed(0)
    visual, built = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    text = TextConfig(("hashed", *more_towers), buckets=200, dimension=8)
    space = ProjectionConfig(**{"dimension": 6, "feature_dropout": 0.3} | projection)
    encoder = DualEncoder(visual, built.dimension, text, space)
    encoder.text.fit(TEXTS)
    return encoder


def test_several_queries_are_averaged() -> None:
    encoder = tiny_encoder().eval()
    tokens = encoder.text.tokenize([*TEXTS, "ещё одно"])
    owners = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    one_by_one, _ = encoder.text_vectors(tokens)
    averaged, _ = encoder.text_vectors(tokens, owners, 6)
    torch.testing.assert_close(averaged[1:], one_by_one[2:])
    expected = F.normalize(one_by_one[0] + one_by_one[1], dim=0)
    torch.testing.assert_close(averaged[0], expected)


def test_the_image_side_alone_gives_the_same() -> None:
    encoder = tiny_encoder().eval()
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(encoder.image_embedder()(pixels), encoder(pixels))
        vectors = encoder.visual(pixels)
        torch.testing.assert_close(encoder(vectors), encoder(pixels))


def test_the_residual_block() -> None:
    torch.manual_seed(0)
    block = ResidualProjection(6, 4, dropout=0.5).eval()
    x = torch.randn(3, 6)
    projected = x @ block.first.weight.T + block.first.bias
    activated = projected / (1 + torch.exp(-1.702 * projected))
    summed = projected + activated @ block.second.weight.T + block.second.bias
    centred = summed - summed.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), expected)


def test_projections_are_mixed_by_the_classifier() -> None:
    torch.manual_seed(0)
    towers = TextTowers({"hashed": HashedNgrams(9, 5)})
    mixed = ClusterProjections(towers, ProjectionConfig(dimension=3, clusters=4))
    x = torch.randn(6, 5)
    # All alike at the start: the mixture is the one projection.
    torch.testing.assert_close(mixed(x, [])[0], mixed.projections[0](x))
    for parameter in mixed.parameters():
        torch.nn.init.normal_(parameter)
    output, logits = mixed(x, [])
    torch.testing.assert_close(logits, mixed.classifier(x))
    for row, vector in zip(x, output, strict=True):
        weights = torch.softmax(mixed.classifier(row), dim=0)
        parts = [w * p(row) for w, p in zip(weights, mixed.projections, strict=True)]
        torch.testing.assert_close(vector, torch.stack(parts).sum(0))
    # The loss behind the projections reaches the classifier too.
    output.square().sum().backward()
    assert mixed.classifier.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_a_block_of_its_own_tells_clusters_by_the_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    language_model(tmp_path, "gpt2")
    towers = create_text_towers(TextConfig((f"hf/{tmp_path}",), "hub"))
    settings = ProjectionConfig(dimension=3, clusters=2, cluster_classifier="transformer")
    torch.manual_seed(0)
    mixed = ClusterProjections(towers, settings)
    tokens = towers.tokenize(["красный круг", "a red chair", "стул", ""])
    classifier: Any = mixed.classifier.eval()
    torch.nn.init.normal_(classifier.linear.weight)
    _, logits = mixed(towers(tokens), tokens)
    assert logits.shape == (4, 2)
    # A text alone needs no padding; the order of its tokens is of no account.
    alone = classifier(towers.tokenize(["круг красный"]))
    torch.testing.assert_close(logits[:1], alone, atol=1e-5, rtol=1e-4)


def test_ngrams_are_no_tokens_and_nothing_is_chosen_among_no_projections() -> None:
    towers = TextTowers({"hashed": HashedNgrams(9, 5)})
    refused(r"reads tokens: add a tower hf/", TokenClassifier, towers, 3)
    with pytest.raises(UserError, match=r"set projection\.kind to linear or residual"):
        ClusterProjections(towers, ProjectionConfig("none", clusters=2))
