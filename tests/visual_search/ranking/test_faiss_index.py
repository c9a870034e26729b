from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.commands import refused
from visual_search.ranking.faiss_index import CodedGallery, FaissIndex, FaissSettings, faiss_search
from visual_search.ranking.rerank import rank
from visual_search.ranking.search import top_k

faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[faiss]'")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make so small an index slow."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def gallery(tmp_path: Path) -> np.ndarray:
    """4,000 half-precision unit vectors round 100 centres, as a memory map on disk."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 32))[np.arange(4000) % 100] + 0.6 * rng.normal(size=(4000, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "gallery.npy", vectors.astype(np.float16))
    return np.load(tmp_path / "gallery.npy", mmap_mode="r")


def queries_near(gallery: np.ndarray) -> torch.Tensor:
    noise = 0.05 * np.random.default_rng(1).normal(size=(50, 32))
    return F.normalize(torch.from_numpy(gallery[:50].astype(np.float32) + noise).float())


def test_recall_is_high_and_scores_are_exact(gallery: np.ndarray, tmp_path: Path) -> None:
    queries = queries_near(gallery)
    settings = FaissSettings(lists=40, probes=12, code_bytes=8)
    scores, indexes = FaissIndex(tmp_path / "index", gallery, settings).top_k(queries, 20)
    _, exact = top_k(queries, gallery, 20)
    recall = np.mean(
        [len(set(a) & set(b)) / 20 for a, b in zip(indexes.tolist(), exact.tolist(), strict=True)]
    )
    assert recall > 0.95
    assert torch.equal(indexes[:, 0], exact[:, 0])
    products = queries @ torch.from_numpy(gallery.astype(np.float32)).T
    torch.testing.assert_close(scores, products.gather(1, indexes), rtol=0, atol=1e-5)
    assert (scores.diff(dim=1) <= 0).all()
    few = FaissIndex(tmp_path / "index", gallery, FaissSettings(40, 1, 8)).top_k(queries, 200)[1]
    assert (few == -1).any(dim=1).all()  # one cell holds some 100 photos
    assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in few)


def test_an_index_is_kept_and_of_one_gallery(gallery: np.ndarray, tmp_path: Path) -> None:
    settings = FaissSettings(lists=10, code_bytes=4)
    FaissIndex(tmp_path / "index", gallery, settings)
    built = (tmp_path / "index").stat().st_mtime_ns
    FaissIndex(tmp_path / "index", gallery, settings)
    assert (tmp_path / "index").stat().st_mtime_ns == built
    with pytest.raises(ValueError, match="remove it, and it is built anew"):
        FaissIndex(tmp_path / "index", gallery[:100], settings)


def test_a_small_gallery_is_left_to_the_exact_search(gallery: np.ndarray) -> None:
    small = torch.from_numpy(gallery[:100].astype(np.float32))
    refused("needs 256 gallery images or more, not 100", faiss_search, small[:2], small, 10)


def test_a_ranking_can_use_it(gallery: np.ndarray) -> None:
    queries, everyone = queries_near(gallery), torch.from_numpy(gallery.astype(np.float32))
    search = partial(faiss_search, settings=FaissSettings(10, 10, 7))  # 7: 4 divides 32
    approximate = rank(queries, everyone, (), 1000, search)
    exact = rank(queries, everyone, (), 1000)
    assert approximate.shape == (50, 1000)
    assert (approximate[:, 0] == exact[:, 0]).all()


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 32, generator=generator) + 0.2, dim=1)


@pytest.mark.parametrize(
    ("kind", "bytes_a_row", "least"),
    [("float16", 64, 0.999), ("int8", 32, 0.95), ("binary", 12, 0)],
)
def test_codes_take_their_bytes_and_rank_nearly_alike(
    kind: str, bytes_a_row: int, least: float
) -> None:
    queries, everyone = unit(50, 1), unit(2000)
    coded = CodedGallery(kind, everyone, unit(400, 2))
    assert coded.bytes_searched == coded.bytes_stored == bytes_a_row
    scores, rows = coded.top_k(queries, everyone, 10)
    assert (scores.diff(dim=1) <= 0).all()
    wanted = top_k(queries, everyone, 10)[1]
    assert recall(rows, wanted) >= least
    if kind != "binary":
        torch.testing.assert_close(
            scores, (queries @ everyone.T).gather(1, rows), atol=0.05, rtol=0
        )


def recall(rows: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((rows[:, :, None] == wanted[:, None, :]).any(dim=1).float().mean())


@pytest.mark.parametrize(("candidates", "k"), [(40, 100), (100, 10), (3000, 5000)])
def test_the_first_hits_are_ordered_anew_and_the_rest_stays(candidates: int, k: int) -> None:
    queries, everyone = unit(6, seed=3), unit(800)
    _, plain = CodedGallery("binary", everyone, everyone).top_k(queries, everyone, 800)
    # int8 alone scores all; its first 800 are all of them.
    scores, order = CodedGallery("int8", everyone, everyone).top_k(queries, everyone, 800)
    exact = torch.empty(6, 800).scatter_(1, order, scores)
    coded = CodedGallery("binary", everyone, everyone, "int8", candidates)
    assert (coded.bytes_searched, coded.bytes_stored) == (12, 44)
    _, rows = coded.top_k(queries, everyone, k)
    first = min(candidates, k, 800)
    for row, before, of_row in zip(rows.tolist(), plain.tolist(), exact.tolist(), strict=True):
        anew = sorted(before[:first], key=lambda index: -of_row[index])
        assert row == [*anew, *before[first:]][:k]


def test_rescoring_finds_more_than_bits_alone() -> None:
    queries, everyone = unit(50, seed=4), unit(2000)
    wanted = top_k(queries, everyone, 10)[1]
    alone, rescored = (
        recall(
            CodedGallery("binary", everyone, everyone, more, 200).top_k(queries, everyone, 200)[1][
                :, :10
            ],
            wanted,
        )
        for more in ("", "int8")
    )
    assert rescored > 0.85 > alone
