import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from torch import Tensor

from tests.commands import refused
from visual_search.model.embedder import create_neck
from visual_search.model.projections import (
    Whitening,
    fit_unlabelled,
    fit_whitening,
    lda,
    pca,
    start_neck,
)


def sample(n: int = 200, width: int = 12, classes: int = 20) -> tuple[Tensor, Tensor]:
    """Features of length 1 and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(n, width, generator=generator) * torch.linspace(0.1, 2.0, width)
    return F.normalize(centres[labels] + noise + 0.5, dim=1), labels


def same_up_to_sign(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Columns are the same up to a sign each, and one length of all."""
    ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-5)


def outputs(features: Tensor, projection: tuple[Tensor, Tensor]) -> np.ndarray:
    return (features @ projection[0].T + projection[1]).numpy()


def test_principal_components_are_those_of_the_singular_vectors() -> None:
    features, _ = sample()
    centred = features.double().numpy()
    centred = centred - centred.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    same_up_to_sign(outputs(features, pca(features, 4)), centred @ directions[:4].T)


def test_discriminants_solve_the_generalised_eigenproblem() -> None:
    (features, given), shrinkage = sample(), 0.7
    x, labels = features.double().numpy(), given.numpy()
    means = np.stack([x[labels == label].mean(axis=0) for label in range(20)])
    within = (x - means[labels]).T @ (x - means[labels]) / len(x)
    within += shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    total = np.cov(x.T, bias=True)
    _, vectors = eigh(total, within)  # scaled so that v' within v = 1
    directions = vectors[:, ::-1][:, :5]
    ours = outputs(features, lda(features, given, 5, shrinkage))
    same_up_to_sign(ours, (x - x.mean(axis=0)) @ directions)
    # A fresh layer's outputs are about as long.
    assert np.square(ours).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "norm-linear"])
def test_a_neck_starts_there(kind: str) -> None:
    units, _ = sample()
    features = units * torch.linspace(1.0, 9.0, 200)[:, None]
    neck = create_neck(kind, 12, 4)
    start_neck(neck, features)
    received = units if kind == "norm-linear" else features
    expected = torch.from_numpy(outputs(received, pca(received, 4)))
    with torch.no_grad():
        torch.testing.assert_close(neck(features), expected)


def test_what_cannot_be_is_refused() -> None:
    features, labels = sample()
    neck = create_neck("linear-bn", 12, 4)
    refused(r"lda sets .* set neck\.kind to norm-linear", start_neck, neck, features, labels)
    refused(r"write 1\.\.12", pca, features, 13)
    refused("no training class has two images", lda, features, torch.arange(200), 4)


def photos(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that differ in all directions; photos of a class mostly in the first."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 30, 600)
    centers = rng.normal(size=(30, 6))
    spread = rng.normal(size=(600, 6)) * np.array([3.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    vectors = torch.from_numpy(centers[labels] + spread).float()
    return F.normalize(vectors, dim=1), torch.from_numpy(labels)


def test_what_varies_within_classes_becomes_round() -> None:
    vectors, labels = photos()
    whitened = fit_whitening(vectors, labels, shrinkage=1e-9)(vectors).double().numpy()
    within = np.zeros((6, 6))
    for number in range(30):
        of_class = whitened[labels.numpy() == number]
        within += (of_class - of_class.mean(0)).T @ (of_class - of_class.mean(0))
    np.testing.assert_allclose(within / len(whitened), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)


def test_much_shrinkage_only_centres() -> None:
    vectors, labels = photos()
    expected = F.normalize(vectors - vectors.mean(dim=0), dim=1)
    fits = fit_whitening(vectors, labels, 1e6), fit_unlabelled(vectors, power=1.0, shrinkage=1e6)
    for fitted in fits:
        got = F.normalize(fitted(vectors), dim=1)
        torch.testing.assert_close(got @ got.T, expected @ expected.T, atol=1e-3, rtol=0)
    torch.testing.assert_close(Whitening(6)(3 * vectors), vectors)


def test_classes_of_one_photo_change_nothing_but_the_mean() -> None:
    vectors, labels = photos()
    lonely = torch.cat([vectors, vectors[:1]]), torch.cat([labels, torch.tensor([99])])
    one, two = (fit_whitening(*pair, shrinkage=1.0) for pair in ((vectors, labels), lonely))
    torch.testing.assert_close(one.projection, two.projection)
    refused("two images", fit_whitening, vectors[:3], torch.arange(3), shrinkage=1.0)


def test_a_photo_of_weight_two_is_a_photo_twice() -> None:
    vectors, labels = photos()
    rows = torch.cat([torch.arange(600), (labels < 10).nonzero().squeeze(1)])
    weights = torch.where(labels < 10, 2.0, 1.0)
    weighted = (
        fit_whitening(vectors, labels, 1.0, weights),
        fit_unlabelled(vectors, weights=weights),
    )
    repeated = fit_whitening(vectors[rows], labels[rows], 1.0), fit_unlabelled(vectors[rows])
    for one, two in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(one(vectors) @ one(vectors).T, two(vectors) @ two(vectors).T)
    (ours, _), (theirs, _) = (
        lda(vectors, labels, 3, 1.0, weights),
        lda(vectors[rows], labels[rows], 3, 1.0),
    )
    cosine = F.cosine_similarity(ours, theirs, dim=1)
    torch.testing.assert_close(cosine, torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_without_classes_it_is_the_components_to_a_power(power: float) -> None:
    vectors, _ = photos()
    components = PCA(4).fit(vectors.double().numpy())
    expected = components.transform(vectors.double().numpy())
    # scikit-learn divides by n - 1.
    expected *= (components.explained_variance_ * 599 / 600) ** (-power / 2)
    ours = fit_unlabelled(vectors, 4, power)(vectors).double().numpy()
    signs = np.sign((ours * expected).sum(axis=0))
    np.testing.assert_allclose(ours, expected * signs, atol=1e-4)


def test_few_images_have_few_directions() -> None:
    vectors, _ = photos()
    lengths = fit_unlabelled(vectors[:3], power=1.0).projection.norm(dim=0)
    assert (lengths[:2] > 1).all()
    assert (lengths[2:] == 0).all()
    for dimension, n, words in ((7, 9, r"write 0\.\.6"), (2, 1, "two images")):
        refused(words, fit_unlabelled, vectors[:n], dimension)
