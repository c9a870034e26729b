"""What the approximate search of an index loses, measured on that index."""

from __future__ import annotations

import numpy as np

from visual_search.serve.records import IndexedModel
from visual_search.serve.store import Store

PROBES, DEPTH = 100, 100


def measured_recall(store: Store, model: IndexedModel, seed: int = 0) -> str:
    """Ask with some of the index's own embeddings, exactly and approximately; in a line.

    They are moved half their length away at random: their own image would always be found.
    """
    rng = np.random.default_rng(seed)
    _, _, matrix = store.vectors(model)
    rows = rng.permutation(len(matrix))[:PROBES]
    moved = rng.standard_normal((len(rows), model.dimension)).astype(np.float32)
    moved *= 0.5 / np.linalg.norm(moved, axis=1, keepdims=True)
    probes = matrix[rows] + moved
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    shares = []
    for probe in probes:
        exact, found = (
            {hit.image for hit in store.search(model, probe, DEPTH, by_product=False, exact=exact)}
            for exact in (True, False)
        )
        shares.append(len(exact & found) / len(exact))
    return (
        f"approximate search finds {np.mean(shares):.1%} of the exact first {DEPTH}, "
        f"{np.min(shares):.1%} of the worst of {len(rows)} queries"
    )
