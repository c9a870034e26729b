from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from visual_search import similarity
from visual_search.similarity import nearest_similarity, similarities, similarity_gradients


def by_autograd(
    embeddings: torch.Tensor, weight: torch.Tensor, centers: int, normalize: bool
) -> torch.Tensor:
    if normalize:
        embeddings, weight = F.normalize(embeddings, dim=1), F.normalize(weight, dim=1)
    return (embeddings @ weight.T).view(len(embeddings), -1, centers).amax(dim=2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("block", [1, 1000, 1 << 30])
def test_values_and_gradients_are_autograds(
    monkeypatch: pytest.MonkeyPatch, block: int, centers: int, normalize: bool
) -> None:
    monkeypatch.setattr(similarity, "_CACHED_BYTES", block)
    torch.manual_seed(0)
    embeddings = (torch.randn(5, 8, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(11 * centers, 8, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(5, 11, dtype=torch.float64)
    expected = by_autograd(embeddings, weight, centers, normalize)
    wanted = torch.autograd.grad((expected * pull).sum(), (embeddings, weight))
    values = nearest_similarity(embeddings, weight, centers, normalize=normalize)
    got = torch.autograd.grad((values * pull).sum(), (embeddings, weight))
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("centers", [1, 2])
def test_reserved_memory_holds_the_values_then_the_gradient(centers: int) -> None:
    torch.manual_seed(0)
    embeddings, weight = torch.randn(4, 6), torch.randn(7 * centers, 6)
    pull = torch.randn(4, 7)
    plain = similarities(embeddings, weight, centers)
    thrifty = similarities(embeddings, weight, centers, reserve=True)
    assert torch.equal(plain.values, thrifty.values)
    assert thrifty.reserved is not None
    assert thrifty.values.data_ptr() == thrifty.reserved.data_ptr()

    def pulls(start: int, stop: int, _: torch.Tensor) -> torch.Tensor:
        return pull[:, start:stop].clone()

    expected = similarity_gradients(plain, weight, pulls)
    got = similarity_gradients(thrifty, weight, pulls)
    assert torch.equal(got[0], expected[0])
    assert expected[1] is not None
    assert got[1] is not None
    assert torch.equal(got[1], expected[1])
    assert got[1].data_ptr() == thrifty.reserved.data_ptr()


def test_more_rows_than_the_reserved_memory_is_wide() -> None:
    embeddings, weight = torch.randn(9, 6), torch.randn(7, 6)
    assert similarities(embeddings, weight, reserve=True).reserved is None


def test_only_some_classes() -> None:
    torch.manual_seed(0)
    embeddings, weight = torch.randn(4, 6), torch.randn(10, 6)
    picked = torch.tensor([1, 4])
    whole, some = (
        similarities(embeddings, weight, 2),
        similarities(embeddings, weight, 2, picked=picked),
    )
    torch.testing.assert_close(some.values, whole.values[:, picked])


def test_vectors_without_length_have_cosine_zero_and_no_gradient() -> None:
    embeddings = torch.zeros(2, 4, requires_grad=True)
    weight = torch.randn(3, 4)
    weight[1] = 0
    weight.requires_grad_()
    values = nearest_similarity(embeddings, weight)
    values.sum().backward()
    assert values.tolist() == [[0.0] * 3] * 2
    assert embeddings.grad is not None
    assert weight.grad is not None
    assert embeddings.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_even_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 16).to(dtype).requires_grad_()
    weight = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        values = nearest_similarity(embeddings, weight)
    expected = by_autograd(embeddings.double(), weight.double(), 1, True)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, atol=1e-6, rtol=1e-6)
    values.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == dtype
