from __future__ import annotations

from pathlib import Path

import torch

from visual_search.datasets import read_product10k
from visual_search.heads import MarginHead
from visual_search.images import ImageItem, load_pixels
from visual_search.imprinting import imprint_centers, take_centers
from visual_search.model import build_embedder
from visual_search.sampled_classes import SampledMarginHead

CPU = torch.device("cpu")


def test_centres_stand_at_the_mean_of_their_class(product10k_folder: Path) -> None:
    torch.manual_seed(0)
    embedder, architecture = build_embedder(
        "timm/test_efficientnet", "none", 32, (0.5,) * 3, (0.5,) * 3
    )
    images = read_product10k(product10k_folder, "train.csv", "train", 8)
    head = MarginHead(architecture.dimension, torch.ones(8), centers=3)
    before = head.weight.detach().clone().view(8, 3, -1)
    embedder.train()
    imprint_centers(head, embedder, images, 32, device=CPU, progress=False)
    assert embedder.training
    after = head.weight.detach().view(8, 3, -1)
    embedder.eval()
    for number in range(6):
        vectors = []
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            if label == number:
                pixels = torch.from_numpy(load_pixels(ImageItem(path), 32)[0])[None]
                with torch.inference_mode():
                    vectors.append(embedder(pixels)[0])
        mean = torch.stack(vectors).mean(dim=0)
        cosines = torch.nn.functional.cosine_similarity(after[number], mean[None], dim=1)
        # A tenth of noise: cos(atan(0.1)) = 0.995, and the sub-centres still differ.
        assert cosines.min() > 0.99
        assert not torch.allclose(after[number, 0], after[number, 1], atol=1e-4)
        torch.testing.assert_close(after[number].norm(dim=1), before[number].norm(dim=1))
    # Classes 6 and 7 have no photo and keep what they had.
    assert torch.equal(after[6:], before[6:])


def test_a_head_takes_the_centres_of_another_of_the_same_classes() -> None:
    source = MarginHead(5, torch.ones(4), centers=2, seed=1)
    for head in (
        MarginHead(5, torch.ones(4), centers=2, seed=2),
        SampledMarginHead(5, torch.ones(4), centers=2, seed=2),
    ):
        assert take_centers(head, source.weight.detach())
        assert torch.equal(head.weight, source.weight)
    other = MarginHead(5, torch.ones(4), centers=3)
    before = other.weight.detach().clone()
    assert not take_centers(other, source.weight.detach())
    assert torch.equal(other.weight, before)
