"""The contrastive loss against open_clip's and written-out sums; chunks against whole batches."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.visual_search.losses.ranks import on_two_ranks
from tests.visual_search.text.test_encoder import TEXTS, tiny_encoder
from visual_search.model.freezing import hold_recomputed
from visual_search.text.config import ContrastiveConfig
from visual_search.text.objective import ClipLearner, ContrastiveLoss, infonce


def sides(n: int = 7, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in "ab")
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def test_values_and_gradients_are_open_clips() -> None:
    from open_clip.loss import ClipLoss

    loss = ContrastiveLoss(ContrastiveConfig(temperature=0.1))
    alone = torch.arange(7)
    values, grads = [], []
    for theirs in (False, True):
        images, texts = (side.float().requires_grad_() for side in sides())
        if theirs:
            value = ClipLoss()(images, texts, loss.scale)
        else:
            value = loss(images, texts, alone, alone)
        value.backward()
        values.append(value.detach())
        grads.append((images.grad, texts.grad))
    torch.testing.assert_close(*values)
    for ours, others in zip(*grads, strict=True):
        torch.testing.assert_close(ours, others)


def test_two_ranks_are_one_with_the_joint_batch() -> None:
    groups, ids = torch.arange(6) % 5, torch.tensor([0, 1, 2, 3, 3, 4])

    def act(rank: int, count: int = 2) -> tuple[torch.Tensor, ...]:
        loss = ContrastiveLoss(ContrastiveConfig(temperature=0.1))
        images, texts = (s[:6].float().chunk(count)[rank].requires_grad_() for s in sides())
        value = loss(images, texts, groups.chunk(count)[rank], ids.chunk(count)[rank])
        value.backward()
        assert images.grad is not None
        assert texts.grad is not None
        # Each rank's loss depends on all rows; ranks are averaged afterwards.
        return value.detach(), images.grad / count, texts.grad / count

    expected, (first, second) = act(0, 1), on_two_ranks(act)
    torch.testing.assert_close(first[0], expected[0])
    for one, other, joint in zip(first[1:], second[1:], expected[1:], strict=True):
        torch.testing.assert_close(torch.cat([one, other]), joint)


def test_equal_texts_and_equal_products_are_no_negatives() -> None:
    images, texts = (side[:4].float() for side in sides())
    loss = ContrastiveLoss(ContrastiveConfig("infonce", 0.2, False, label_smoothing=0.3))
    groups, ids = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 7])
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    similarities = 5.0 * images @ texts.T
    expected = 0.0
    for rows in (similarities, similarities.T):
        for row, partners in zip(rows.tolist(), right.tolist(), strict=True):
            norm = math.log(sum(math.exp(value) for value in row))
            for value, partner in zip(row, partners, strict=True):
                share = 0.7 * partner / sum(partners) + 0.3 / len(row)
                expected += share * (norm - value) / 8
    assert float(loss(images, texts, groups, ids)) == pytest.approx(expected, abs=1e-6)
    assert not loss.log_scale.requires_grad


def learner(clusters: int = 1, chunk: int = 0) -> ClipLearner:
    loss = ContrastiveConfig(temperature=0.1, cluster_weight=0.5, chunk=chunk)
    return ClipLearner(tiny_encoder(clusters=clusters), loss)


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


def test_chunks_change_neither_loss_nor_gradient() -> None:
    results = []
    for size in (0, 4):
        made = learner(chunk=size).train()
        # Batch norms see a chunk at a time: held, so that both see the same.
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        made.embedder.image_projection.standardised.dropout.p = 0.0
        loss = made(**batch(made.embedder))
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in made.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)


def test_running_statistics_see_each_chunk_once() -> None:
    made, plain = learner(chunk=4).train(), learner().train()
    hold_recomputed(made)
    images = batch(made.embedder)["images"]
    made(**batch(made.embedder)).backward()
    with torch.no_grad():
        for part in images.split(4):
            plain.embedder.features(part)
    for name, buffer in plain.embedder.visual.named_buffers():
        torch.testing.assert_close(made.embedder.visual.get_buffer(name), buffer)


def test_the_cluster_classifier_has_its_share() -> None:
    made = learner(clusters=3).eval()
    torch.nn.init.normal_(made.embedder.neck["text"].classifier.weight)  # type: ignore[union-attr, arg-type]
    values = batch(made.embedder)
    loss = made(**values)
    images = made.embedder(values["images"])
    texts, logits = made.embedder.text_vectors(values["tokens"])
    contrastive = infonce(10.0 * images @ texts.T, torch.eye(6, dtype=torch.bool))
    assert logits is not None
    entropy = F.cross_entropy(logits, values["clusters"])
    torch.testing.assert_close(loss, (2 * contrastive + 0.5 * entropy) / 2.5)
