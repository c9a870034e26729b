"""The loss of a batch of pairs; batches in chunks against whole ones."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.visual_search.text.test_encoder import TEXTS, tiny_encoder
from visual_search.text.config import ContrastiveConfig
from visual_search.text.losses import infonce
from visual_search.text.objective import ClipLearner


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


@pytest.mark.parametrize("chunk", [2, 4])
def test_chunks_change_neither_loss_nor_gradient(chunk: int) -> None:
    results = []
    for size in (0, chunk):
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
