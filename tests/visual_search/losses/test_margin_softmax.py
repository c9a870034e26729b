import pytest
import torch
import torch.nn.functional as F

from visual_search.losses import margin_softmax
from visual_search.losses.margin_softmax import Similarities, similarities, similarity_gradients


def gradients(
    similar: Similarities, weight: torch.Tensor, pull: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the sum of `pull` times the values."""
    of_embeddings, of_weight = similarity_gradients(
        similar, weight, lambda start, stop, out: out.copy_(pull[:, start:stop])
    )
    assert of_weight is not None
    return of_embeddings, of_weight


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
    monkeypatch.setattr(margin_softmax, "_CACHED_BYTES", block)
    torch.manual_seed(0)
    embeddings = (torch.randn(5, 8, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(11 * centers, 8, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(5, 11, dtype=torch.float64)
    expected = by_autograd(embeddings, weight, centers, normalize)
    wanted = torch.autograd.grad((expected * pull).sum(), (embeddings, weight))
    similar = similarities(embeddings, weight, centers, normalize=normalize)
    torch.testing.assert_close(similar.values, expected)
    torch.testing.assert_close(gradients(similar, weight, pull), wanted)


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

    expected, got = gradients(plain, weight, pull), gradients(thrifty, weight, pull)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert got[1].data_ptr() == thrifty.reserved.data_ptr()


def test_more_rows_than_the_reserved_memory_is_wide() -> None:
    embeddings, weight = torch.randn(9, 6), torch.randn(7, 6)
    assert similarities(embeddings, weight, reserve=True).reserved is None


def test_vectors_without_length_have_cosine_zero_and_no_gradient() -> None:
    embeddings, weight = torch.zeros(2, 4), torch.randn(3, 4)
    weight[1] = 0
    similar = similarities(embeddings, weight)
    assert similar.values.tolist() == [[0.0] * 3] * 2
    for gradient in gradients(similar, weight, torch.ones(2, 3)):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_even_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings, weight = torch.randn(3, 16).to(dtype), torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        similar = similarities(embeddings, weight)
        found = gradients(similar, weight, torch.ones(3, 5))
    wide = embeddings.double().requires_grad_()
    expected = by_autograd(wide, weight.double(), 1, True)
    assert similar.values.dtype == torch.float32
    torch.testing.assert_close(similar.values.double(), expected.detach(), atol=1e-6, rtol=1e-6)
    expected.sum().backward()
    torch.testing.assert_close(found[0].double(), wide.grad, atol=1e-5, rtol=1e-5)
