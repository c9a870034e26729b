from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.ranking import search
from visual_search.ranking.k_reciprocal import KReciprocal
from visual_search.ranking.search import stable_top_k, top_k, top_k_in_blocks


def naive_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Sort all by falling score, then by index: Python's own sort."""
    rows = [sorted((-score, index) for index, score in enumerate(row)) for row in scores]
    return np.array([[index for _, index in row[:k]] for row in rows])


@pytest.fixture(params=["blocks", "faiss"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of searching, also for galleries so small that faiss is not asked."""
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs the extra [faiss]")
        monkeypatch.setattr(search, "BLOCK_ROWS", 0)
    else:
        monkeypatch.setattr(search, "_faiss", lambda: None)
    return str(request.param)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.integers(1, 9),
    n_gallery=st.integers(1, 200),
    k=st.integers(1, 60),
    block=st.one_of(st.integers(1, 300), st.just(0)),
    levels=st.sampled_from([1, 2, 5, 1000]),
    order=st.sampled_from(["random", "rising", "falling"]),
)
def test_equals_a_full_sort_with_ties_by_index(
    seed: int, n_queries: int, n_gallery: int, k: int, block: int, levels: int, order: str
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: products and sums are exact, so ties are real ties, at the cut as well.
    queries = rng.integers(-levels, levels + 1, (n_queries, 3)).astype(np.float32)
    gallery = rng.integers(-levels, levels + 1, (n_gallery, 3)).astype(np.float32)
    if order != "random":  # every row beats, or none does, what was found before it
        rising = np.argsort(gallery @ queries[0], kind="stable")
        gallery = gallery[rising if order == "rising" else rising[::-1]]
    both = torch.from_numpy(queries), torch.from_numpy(np.ascontiguousarray(gallery))
    if block == 300:  # with every copy searched once
        scores, indexes = top_k(*both, k)
    elif block:
        scores, indexes = top_k_in_blocks(*both, k, block)
    else:  # by faiss, where it is installed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "BLOCK_ROWS", 1)
            scores, indexes = top_k(*both, k)
    expected = naive_top_k(queries @ gallery.T, min(k, n_gallery))
    np.testing.assert_array_equal(indexes.numpy(), expected)
    np.testing.assert_array_equal(
        scores.numpy(), np.take_along_axis(queries @ gallery.T, expected, axis=1)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_copies_rank_by_row_whatever_searches(
    way: str, threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a matrix product, copies of a vector can get similarities that differ."""
    generator = torch.Generator().manual_seed(0)
    some = torch.nn.functional.normalize(torch.randn(40, 203, generator=generator)).to(dtype)
    some[7] = 0  # as rows of images that cannot be read
    group = torch.randint(0, 40, (531,), generator=generator)
    queries = torch.nn.functional.normalize(torch.randn(10, 203, generator=generator))
    queries[9] = 0
    torch.set_num_threads(threads)
    found = [top_k(queries, some[group], k) for k in (1, 10, 300, 600)]
    copied = some[group] if dtype == torch.bfloat16 else some[group].numpy()
    mapped = top_k(queries, copied, 300)
    overlapped = KReciprocal(weight=1).rank(queries, some[group].float(), 300)
    # All copies of a vector have the similarity of the vector, and come in order of their rows.
    similarities = (queries.double() @ some.double().T).float()[:, group]
    expected = similarities.sort(dim=1, descending=True, stable=True).indices
    for scores, rows in found:
        assert torch.equal(rows, expected[:, : rows.shape[1]])
        torch.testing.assert_close(scores, similarities.gather(1, rows), atol=1e-5, rtol=1e-5)
    assert torch.equal(mapped[1], expected[:, :300])
    assert torch.equal(overlapped, expected[:, :300])


@pytest.mark.parametrize("k", [1, 5, 12])
def test_what_is_no_number_comes_last(way: str, k: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # One column: a similarity is one product, so that numpy's is ours.
        queries = rng.choice([1.0, -2.0, np.nan, np.inf, 0.0], (4, 1)).astype(np.float32)
        gallery = rng.choice([1.0, 0.5, -1.0, np.nan, -np.inf], (12, 1)).astype(np.float32)
        with np.errstate(invalid="ignore"):
            products = queries * gallery.T
        products[np.isnan(products)] = -np.inf
        _, indexes = top_k(torch.from_numpy(queries), torch.from_numpy(gallery), k)
        np.testing.assert_array_equal(indexes.numpy(), naive_top_k(products, k))


def test_real_numbers_in_blocks_of_the_usual_size(way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(70, 32, generator=generator)
    gallery = torch.randn(30_000, 32, generator=generator)
    scores, indexes = top_k(queries, gallery, 1000)
    exact = queries.double() @ gallery.double().T
    by_numpy = np.argsort(-exact.numpy(), axis=1, kind="stable")[:, :1000]
    # Neighbours in the order may change places where they differ by rounding.
    assert (indexes.numpy() == by_numpy).mean() > 0.999
    assert torch.allclose(scores.double(), exact.gather(1, indexes), atol=1e-4)
    assert (scores.diff(dim=1) <= 0).all()


def test_zero_and_minus_zero_tie(way: str) -> None:
    _, indexes = top_k(torch.tensor([[-1.0]]), torch.tensor([[0.0], [-0.0], [0.0], [-0.0]]), 3)
    assert indexes.tolist() == [[0, 1, 2]]
    assert stable_top_k(torch.tensor([[0.0, -0.0, 1.0, 0.0]]), 3)[1].tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_memory_map_is_searched_on_disk(way: str, kind: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored: np.ndarray = rng.integers(-8, 8, (5000, 4)).astype(kind)
    np.save(tmp_path / "gallery.npy", stored)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    queries = rng.integers(-8, 8, (3, 4)).astype(np.float32)
    _, indexes = top_k(torch.from_numpy(queries), mapped, 100)
    expected = naive_top_k(queries @ stored.astype(np.float32).T, 100)
    np.testing.assert_array_equal(indexes.numpy(), expected)
    _, indexes = top_k_in_blocks(torch.from_numpy(queries), mapped, 100, 700)
    np.testing.assert_array_equal(indexes.numpy(), expected)


def test_empty_sides(way: str) -> None:
    scores, indexes = top_k(torch.zeros(0, 3), torch.zeros(5, 3), 2)
    assert scores.shape == indexes.shape == (0, 2)
    scores, indexes = top_k(torch.zeros(2, 3), torch.zeros(0, 3), 2)
    assert scores.shape == indexes.shape == (2, 0)


def test_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of columns"):
        top_k(torch.zeros(2, 3), torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="k must be"):
        top_k(torch.zeros(2, 3), torch.zeros(2, 3), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_ranks() -> None:
    rng = np.random.default_rng(1)
    queries, gallery = (
        torch.from_numpy(rng.integers(-9, 9, (n, 8)).astype(np.float32)) for n in (50, 20_000)
    )
    ours = top_k(queries.cuda(), gallery.cuda(), 300)
    for gpu, cpu in zip(ours, top_k(queries, gallery, 300), strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=0)
