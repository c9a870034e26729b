from pathlib import Path
from typing import Any

import torch

from visual_search.config import BackboneConfig, DatasetConfig, MarginConfig, PhaseConfig
from visual_search.data.augment import Mixer
from visual_search.data.datasets import TrainingImages, read_product10k
from visual_search.data.images import ImageItem, load_pixels
from visual_search.losses.margin_head import MarginHead
from visual_search.losses.partial_fc import SampledMarginHead
from visual_search.model.embedder import build_embedder
from visual_search.objective import Learner, Objective
from visual_search.phase import ImagePhase

CPU = torch.device("cpu")


def test_centres_stand_at_the_mean_of_their_class(product10k_folder: Path) -> None:
    torch.manual_seed(0)
    embedder, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    images = read_product10k(product10k_folder, "train.csv", "train", 8)
    head = MarginHead(architecture.dimension, torch.ones(8), MarginConfig(centers=3))
    before = head.weight.detach().clone().view(8, 3, -1)
    embedder.train()
    learner = Learner(embedder, Objective(head, None, None))
    training = TrainingImages(images, lambda image: torch.zeros(0), 32, 0)
    unused: Any = None  # nothing is validated here
    config = PhaseConfig(dataset=DatasetConfig(input_size=32), margin=MarginConfig(imprint=True))
    phase = ImagePhase(config, training, unused, unused, learner, architecture, Mixer("none"))
    phase.start_weights(CPU, is_main_process=False)
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
    config = MarginConfig(centers=2)
    source = MarginHead(5, torch.ones(4), config, seed=1)
    for head in (
        MarginHead(5, torch.ones(4), config, seed=2),
        SampledMarginHead(5, torch.ones(4), config, seed=2),
    ):
        assert head.take_centers(source.weight.detach())
        assert torch.equal(head.weight, source.weight)
    other = MarginHead(5, torch.ones(4), MarginConfig(centers=3))
    before = other.weight.detach().clone()
    assert not other.take_centers(source.weight.detach())
    assert torch.equal(other.weight, before)
