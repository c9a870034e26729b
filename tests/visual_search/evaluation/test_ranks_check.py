from __future__ import annotations

import numpy as np
import pytest

from visual_search.common.errors import UserError
from visual_search.evaluation.metrics import check_ranks


def rows(n_queries: int, n_gallery: int) -> np.ndarray:
    width = max(n_gallery, 1000)
    rng = np.random.default_rng(0)
    real = np.stack([rng.permutation(n_gallery)[:1000] for _ in range(n_queries)])
    filler = np.tile(np.arange(n_gallery, width), (n_queries, 1))
    return np.concatenate([real, filler], axis=1)[:, :1000]


@pytest.mark.parametrize("n_gallery", [3, 1000, 1400])
def test_valid_arrays_pass(n_gallery: int) -> None:
    check_ranks(rows(4, n_gallery), 4, n_gallery)


def test_arrays_that_would_fail_or_score_wrongly_are_refused() -> None:
    good = rows(4, 1400)

    def refusal(ranks: object, n_gallery: int = 1400) -> str:
        with pytest.raises(UserError) as caught:
            check_ranks(ranks, 4, n_gallery)
        return str(caught.value)

    assert "list" in refusal(good.tolist())
    assert "float64" in refusal(good.astype(float))
    assert "(3, 1000)" in refusal(good[:3])
    assert "(4, 999)" in refusal(good[:, :999])
    negative, outside, twice = good.copy(), good.copy(), good.copy()
    negative[2, 5] = -1
    outside[1, 7] = 1400
    twice[3, 9] = twice[3, 0]
    assert "row 2" in refusal(negative)
    assert "gallery row 1400" in refusal(outside)
    assert "row 3 of the ranker's array names a gallery row twice" in refusal(twice)
    early = rows(4, 3)
    early[0, [0, 3]] = early[0, [3, 0]]
    assert "in front of" in refusal(early, 3)
