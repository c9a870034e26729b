"""Starts of the projections against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.commands import refused
from tests.visual_search.text.test_encoder import tiny_encoder
from visual_search.text import towers
from visual_search.text.encoder import DualEncoder
from visual_search.text.projection_start import (
    NAMES_SHARE,
    add_class_names,
    imagenet_classifier,
    start_from_ridge,
)
from visual_search.text.projections import ClassNames
from visual_search.text.sentence_encoders import SentenceEncoder

TEXTS = ["красный стул", "синий стул", "стол", "красный стол", "лампа", "торшер", "синяя лампа"]
OWN = [[TEXTS[0]], [TEXTS[1], TEXTS[2]], [TEXTS[3]], [TEXTS[4]], [TEXTS[5], TEXTS[0]], [TEXTS[6]]]


def encoder(*towers: str, **projection: Any) -> tuple[DualEncoder, Tensor]:
    """An encoder that knows its texts, and the vectors of as many images."""
    made = tiny_encoder(*towers, **projection)
    made.text.fit(TEXTS)
    standardised = made.image_projection.standardised
    vectors = F.normalize(torch.randn(len(OWN), len(standardised.mean)), dim=1)
    standardised.measure(vectors)
    return made, vectors


def features(made: DualEncoder, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        values: Tensor = made.text(made.text.tokenize(texts))
    return values.double().numpy()


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, two)]
    return np.asarray(unit[0] @ unit[1].T)


@pytest.mark.parametrize("dimension", [12, 8, 5])
def test_cosines_are_those_of_a_ridge(dimension: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.decomposition import PCA

    made, vectors = encoder(dimension=dimension)
    start_from_ridge(made.train(), vectors, OWN, alpha=0.3)
    assert made.training
    targets = np.array([features(made, own).mean(axis=0) for own in OWN])
    model = linear.Ridge(alpha=0.3).fit(vectors.double().numpy(), targets)
    new = F.normalize(torch.randn(9, vectors.shape[1]), dim=1)
    seen = model.predict(new.double().numpy()) - targets.mean(axis=0)
    asked = features(made, TEXTS) - targets.mean(axis=0)
    if dimension < asked.shape[1]:
        kept = PCA(dimension).fit(asked).components_
        seen, asked = seen @ kept.T, asked @ kept.T
    with torch.no_grad():
        ours = made.eval()(new) @ made.embed_texts(TEXTS).T
    np.testing.assert_allclose(ours.numpy(), cosines(seen, asked), atol=1e-4)


def test_names_are_added_to_the_ridge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tower `use` has a random vector for each text."""

    def embed(texts: list[str]) -> list[np.ndarray]:
        return [np.random.default_rng(list(text.encode())).normal(size=512) for text in texts]

    monkeypatch.setattr(towers, "sentence_encoder", lambda name: SentenceEncoder(name, embed, 512))
    made, vectors = encoder("use", dimension=512, class_names="imagenet")
    made.eval()
    torch.save({"fc.weight": torch.randn(1000, vectors.shape[1])}, tmp_path / "model.pt")
    start_from_ridge(made, vectors, OWN, alpha=1.0)
    projections: Any = made.neck
    with torch.no_grad():
        before = made.features(vectors)
        add_class_names(made, str(tmp_path / "model.pt"), vectors)
        named = projections["photo"].names(vectors) @ projections["text"].weight[:, 8:].T
        added = made.features(vectors) - before
    torch.testing.assert_close(added, NAMES_SHARE * named, atol=1e-4, rtol=1e-4)
    lengths = before.norm(dim=1).mean(), named.norm(dim=1).mean()
    # Both were brought to the length of the texts: features of a standard deviation of 1.
    assert float(lengths[1] / lengths[0]) == pytest.approx(1.0, abs=0.1)


def test_texts_that_are_all_alike_start_nothing() -> None:
    alike = [["стол"]] * len(OWN)
    message = "features differ before training: add `use`"
    refused(message, start_from_ridge, *encoder(dimension=8), alike, alpha=1.0)


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
