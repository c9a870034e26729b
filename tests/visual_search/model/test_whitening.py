from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from tests.commands import refused
from visual_search.model.projections import Whitening, fit_unlabelled, fit_whitening


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


@pytest.mark.parametrize("fit", [partial(fit_whitening, shrinkage=1.0), fit_unlabelled])
def test_a_photo_of_weight_two_is_a_photo_twice(fit: Callable[..., Whitening]) -> None:
    vectors, labels = photos()
    rows = torch.cat([torch.arange(600), (labels < 10).nonzero().squeeze(1)])
    given = {"labels": labels} if isinstance(fit, partial) else {}
    one = fit(vectors, **given, weights=torch.where(labels < 10, 2.0, 1.0))
    two = fit(vectors[rows], **{name: value[rows] for name, value in given.items()})
    torch.testing.assert_close(one(vectors) @ one(vectors).T, two(vectors) @ two(vectors).T)


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
