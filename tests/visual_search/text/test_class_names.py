"""The classifier's names in the space of texts."""

from pathlib import Path

import pytest
import torch

from tests.commands import refused
from visual_search.text.class_names import ClassNames, imagenet_classifier, imagenet_names


def test_names_are_mixed_by_certainty() -> None:
    torch.manual_seed(0)
    part = ClassNames(6, sharpness=3.0)
    classes, names, photos = torch.randn(1000, 6), torch.randn(1000, 512), torch.randn(9, 6)
    part.fit(classes, names, photos)
    answers = part(photos)
    centred = names - names.mean(0)
    expected = torch.softmax(3.0 * photos @ classes.T, dim=1) @ centred
    torch.testing.assert_close(answers, expected / expected.square().mean().sqrt())
    assert float(answers.square().mean()) == pytest.approx(1.0, abs=1e-4)


def test_the_classifier_is_found(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    rows = torch.randn(1000, 4)
    torch.save({"conv": torch.zeros(3, 3), "fc.weight": rows, "fc.bias": rows[:, 0]}, weights)
    assert torch.equal(imagenet_classifier(str(weights)), rows)
    torch.save({"conv": torch.zeros(3, 3)}, weights)
    refused("no layer of 1000 classes", imagenet_classifier, str(weights))
    refused(r"needs backbone.weights with a classifier", imagenet_classifier, "hub")
    names = imagenet_names()
    assert len(names) == 1000
    assert names[0] == "tench"
