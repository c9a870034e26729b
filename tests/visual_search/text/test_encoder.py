"""Projections and the loss against their formulas; batches in chunks against whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.visual_search.tiny_clips import language_model
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig
from visual_search.model.embedder import build_embedder
from visual_search.text.config import ContrastiveConfig, ProjectionConfig, TextConfig
from visual_search.text.encoder import ClipLearner, build_dual_encoder, create_text_towers
from visual_search.text.losses import infonce
from visual_search.text.projections import ClusterProjections, ResidualProjection, TokenClassifier
from visual_search.text.towers import HashedNgrams, TextTowers

TEXTS = ["красный стул", "синий стул", "стол", "красный стол", "лампа", "торшер"]


def learner(clusters: int = 1, chunk: int = 0) -> ClipLearner:
    torch.manual_seed(0)
    visual, built = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    text = TextConfig(towers=("hashed",), buckets=200, dimension=8)
    projection = ProjectionConfig(dimension=6, clusters=clusters, feature_dropout=0.3)
    encoder = build_dual_encoder(visual, built.dimension, text, projection)
    encoder.text.fit(TEXTS)
    return ClipLearner(encoder, ContrastiveConfig(temperature=0.1, cluster_weight=0.5, chunk=chunk))


def batch(encoder: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "tokens": encoder.text.tokenize(TEXTS),
        "owners": None,
        "groups": torch.arange(6),
        "text_ids": torch.arange(6),
        "clusters": torch.tensor([0, 0, 1, 1, 2, 2]),
    }


@pytest.mark.parametrize("chunk", [2, 4])
def test_chunks_change_neither_loss_nor_gradient_nor_statistics(chunk: int) -> None:
    results = []
    for size in (0, chunk):
        made = learner(chunk=size).train()
        # Batch norms see a chunk at a time: held, so that both see the same.
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        made.embedder.image_projection.standardised.dropout.p = 0.0
        loss, _ = made(**batch(made.embedder))
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in made.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)


def test_chunks_draw_the_same_dropout_twice_and_count_an_image_once() -> None:
    made = learner(chunk=2).train()
    norm = next(m for m in made.modules() if isinstance(m, torch.nn.BatchNorm2d))
    loss, _ = made(**batch(made.embedder))
    after_forward = norm.running_mean.clone() if norm.running_mean is not None else None
    count = int(norm.num_batches_tracked or 0)
    loss.backward()
    assert count == 3
    assert int(norm.num_batches_tracked or 0) == 3
    assert after_forward is not None
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, after_forward)


def test_the_cluster_classifier_has_its_share() -> None:
    made = learner(clusters=3).eval()
    torch.nn.init.normal_(made.embedder.neck["text"].classifier.weight)  # type: ignore[union-attr, arg-type]
    values = batch(made.embedder)
    loss, parts = made(**values)
    images = made.embedder(values["images"])
    texts, logits = made.embedder.text_vectors(values["tokens"])
    contrastive = infonce(10.0 * images @ texts.T, torch.eye(6, dtype=torch.bool))
    assert logits is not None
    entropy = F.cross_entropy(logits, values["clusters"])
    torch.testing.assert_close(loss, (2 * contrastive + 0.5 * entropy) / 2.5)
    torch.testing.assert_close(parts["cluster"], entropy.detach())


def test_several_queries_are_averaged() -> None:
    encoder = learner().eval().embedder
    tokens = encoder.text.tokenize([*TEXTS, "ещё одно"])
    owners = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    one_by_one, _ = encoder.text_vectors(tokens)
    averaged, _ = encoder.text_vectors(tokens, owners, 6)
    torch.testing.assert_close(averaged[1:], one_by_one[2:])
    expected = F.normalize(one_by_one[0] + one_by_one[1], dim=0)
    torch.testing.assert_close(averaged[0], expected)


def test_the_image_side_alone_gives_the_same() -> None:
    encoder = learner().eval().embedder
    pixels = batch(encoder)["images"]
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
    # It learns which cluster a text is of, and the text tower is not needed for that.
    classifier.train()
    optimizer, right = torch.optim.Adam(mixed.parameters(), 0.01), torch.tensor([0, 1, 1, 0])
    for _ in range(30):
        loss = F.cross_entropy(mixed(torch.zeros(4, 16), tokens)[1], right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mixed(torch.zeros(4, 16), tokens)[1].argmax(dim=1).tolist() == right.tolist()


def test_ngrams_are_no_tokens_and_nothing_is_chosen_among_no_projections() -> None:
    towers = TextTowers({"hashed": HashedNgrams(9, 5)})
    with pytest.raises(UserError, match=r"reads tokens: add a tower hf/"):
        TokenClassifier(towers, 3)
    with pytest.raises(UserError, match=r"set projection\.kind to linear or residual"):
        ClusterProjections(towers, ProjectionConfig("none", clusters=2))
