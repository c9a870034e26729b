import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from torch import Tensor

from tests.commands import refused
from visual_search.common.errors import UserError
from visual_search.model.embedder import create_neck
from visual_search.model.projections import Sample, lda, pca, start_neck


def sample(seed: int = 0, n: int = 200, width: int = 12, classes: int = 20) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(n, width, generator=generator) * torch.linspace(0.1, 2.0, width)
    return Sample(F.normalize(centres[labels] + noise + 0.5, dim=1), labels)


def same_up_to_sign(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Columns are the same up to a sign each, and one length of all."""
    ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-5)


def outputs(given: Sample, kind: str, dimension: int, shrinkage: float = 1.0) -> np.ndarray:
    weight, bias = pca(given, dimension) if kind == "pca" else lda(given, dimension, shrinkage)
    return (given.features @ weight.T + bias).numpy()


def test_principal_components_are_those_of_the_singular_vectors() -> None:
    given = sample()
    centred = given.features.double().numpy()
    centred = centred - centred.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    same_up_to_sign(outputs(given, "pca", 4), centred @ directions[:4].T)


def test_discriminants_solve_the_generalised_eigenproblem() -> None:
    given, shrinkage = sample(), 0.7
    x, labels = given.features.double().numpy(), np.arange(200) % 20
    means = np.stack([x[labels == label].mean(axis=0) for label in range(20)])
    within = (x - means[labels]).T @ (x - means[labels]) / len(x)
    within += shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    total = np.cov(x.T, bias=True)
    _, vectors = eigh(total, within)  # scaled so that v' within v = 1
    directions = vectors[:, ::-1][:, :5]
    same_up_to_sign(outputs(given, "lda", 5, shrinkage), (x - x.mean(axis=0)) @ directions)


def test_a_weight_of_two_is_a_photo_twice() -> None:
    given, labels = sample(n=60), torch.arange(60) % 20
    rows = torch.cat([torch.arange(60), torch.arange(20)])
    repeated = Sample(given.features[rows], labels[rows])
    weighted = Sample(given.features, labels, 1.0 + (torch.arange(60) < 20))
    cosine = F.cosine_similarity(lda(repeated, 3)[0], lda(weighted, 3)[0], dim=1)
    torch.testing.assert_close(cosine, torch.ones(3), atol=1e-5, rtol=0)


def test_outputs_have_a_mean_square_length_of_1() -> None:
    lengths = np.square(outputs(sample(), "lda", 4)).sum(axis=1)
    assert lengths.mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "norm-linear"])
def test_a_neck_starts_there(kind: str) -> None:
    given = sample()
    features: Tensor = given.features * torch.linspace(1.0, 9.0, 200)[:, None]
    neck = create_neck(kind, 12, 4)
    start_neck(neck, "pca", Sample(features), 1.0)
    received = given.features if kind == "norm-linear" else features
    weight, bias = pca(Sample(received), 4)
    with torch.no_grad():
        torch.testing.assert_close(neck(features), received @ weight.T + bias)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"set neck\.kind to norm-linear"):
        start_neck(create_neck("linear-bn", 12, 4), "pca", sample(), 1.0)
    refused(r"write 1\.\.12", pca, sample(), 13)
    alone = Sample(sample().features, torch.arange(200))
    refused("no training class has two images", lda, alone, 4)
