from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visual_search.faiss_index import FaissIndex, FaissSettings
from visual_search.search import top_k

pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[faiss]'")


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
    settings = FaissSettings(lists=40, probes=12, code_bytes=16)
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
    few = FaissIndex(tmp_path / "index", gallery, FaissSettings(40, 1, 16)).top_k(queries, 200)[1]
    assert (few == -1).any(dim=1).all()  # one cell holds some 100 photos
    assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in few)


def test_an_index_is_kept_and_of_one_gallery(gallery: np.ndarray, tmp_path: Path) -> None:
    settings = FaissSettings(lists=10, code_bytes=8)
    FaissIndex(tmp_path / "index", gallery, settings)
    built = (tmp_path / "index").stat().st_mtime_ns
    FaissIndex(tmp_path / "index", gallery, settings)
    assert (tmp_path / "index").stat().st_mtime_ns == built
    with pytest.raises(ValueError, match="remove it, and it is built anew"):
        FaissIndex(tmp_path / "index", gallery[:100], settings)
    with pytest.raises(ValueError, match="code_bytes is 7"):
        FaissIndex(tmp_path / "other", gallery, FaissSettings(code_bytes=7))
