"""Metrics of tasks between texts and photos against a naive loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.common.errors import UserError
from visual_search.evaluation.metrics import hits_among, per_query


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_any_sets_of_right_answers(queries: int, gallery: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks = np.array([rng.permutation(gallery) for _ in range(queries)])
    right = [
        np.sort(rng.choice(gallery, rng.integers(1, gallery + 1), replace=False))
        for _ in range(queries)
    ]
    found = per_query(hits_among(ranks, right))
    for query in range(queries):
        wanted, hits, precisions = set(right[query].tolist()), 0, 0.0
        for place, row in enumerate(ranks[query].tolist(), 1):
            if row in wanted:
                hits += 1
                precisions += hits / place
        assert found["mAP@1000"][query] == pytest.approx(precisions / len(wanted))
        for k in (1, 5, 10):
            assert found[f"R@{k}"][query] == bool(wanted & set(ranks[query][:k].tolist()))
        first = ranks[query][: len(wanted)].tolist()
        assert found["R-precision"][query] == pytest.approx(len(wanted & set(first)) / len(wanted))


@pytest.mark.parametrize("line", ["distractors: true", "select: x", "query_domain: (x)"])
def test_what_is_of_images_alone_is_refused(tmp_path: Path, line: str) -> None:
    from visual_search.evaluation.tasks import read_task

    path = tmp_path / "task.yml"
    path.write_text(f"texts: {{pairs: a.parquet}}\n{line}\n")
    with pytest.raises(UserError, match=r"task\.yml: \w+ is of images' tables"):
        read_task(path)
