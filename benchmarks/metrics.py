"""The challenge's mAP against the plain loop: `python -m benchmarks.metrics`."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np

from benchmarks.harness import (
    Row,
    alternating_medians,
    arguments,
    lower_is_better,
    processor,
    report,
)
from visual_search.errors import exit_with_sentence
from visual_search.evaluate import MAX_PREDICTIONS
from visual_search.metrics import average_precision


def loop(
    ranks: np.ndarray, gallery_products: np.ndarray, query_products: np.ndarray
) -> list[float]:
    """The contract's definition: for each query, over its hits among the first 1,000.

    Hits are found by numpy and photos are counted once for each product, as the kit's loop does;
    what is left to Python is the sum.
    """
    photos = dict(zip(*np.unique(gallery_products, return_counts=True), strict=True))
    answers = []
    for row, product in zip(ranks, query_products, strict=True):
        right = gallery_products[row[:MAX_PREDICTIONS]] == product
        hits, total = 0, 0.0
        for k, hit in enumerate(right.tolist(), start=1):
            if hit:
                hits += 1
                total += hits / k
        answers.append(total / photos[product])
    return answers


def random_case(queries: int, gallery: int) -> Sequence[np.ndarray]:
    """Ranks with hits near the top, as a model gives them, and the products of both sides."""
    rng = np.random.default_rng(0)
    products = np.array([f"product {i}" for i in range(gallery // 2)])
    gallery_products = products[rng.integers(0, len(products), gallery)]
    query_products = gallery_products[rng.integers(0, gallery, queries)]
    ranks = np.stack([rng.permutation(gallery)[:MAX_PREDICTIONS] for _ in range(queries)])
    place_of = {
        product: np.flatnonzero(gallery_products == product) for product in set(query_products)
    }
    for row, product in zip(ranks, query_products, strict=True):
        right = place_of[product][0]
        place = int(rng.integers(0, 20))
        elsewhere = np.flatnonzero(row == right)
        if len(elsewhere):
            row[elsewhere[0]] = row[place]
        row[place] = right
    return ranks, gallery_products, query_products


def rows_of(queries: int, gallery: int, repeats: int) -> tuple[list[Row], str]:
    """Time against the loop, and whether every bit is the same."""
    case = random_case(queries, gallery)
    same = np.array_equal(average_precision(*case), np.array(loop(*case)))
    ours, theirs = alternating_medians(
        [lambda: average_precision(*case), lambda: loop(*case)], repeats, warm_up=1
    )
    name = f"mAP@1000, {queries:,} queries, {gallery:,} photos"
    peer = f"loop in Python {platform.python_version()}"
    equal = "all bits equal" if same else "BITS DIFFER"
    return [lower_is_better(name, ours, peer, theirs, "s")], f"{name}: {equal}"


def main() -> None:
    """Measure, print, record."""
    options = arguments("Time of mAP against the contract's loop.").parse_args()
    sizes = [(100, 2000)] if options.quick else [(1935, 1067), (10_000, 26_000)]
    rows: list[Row] = []
    notes = [f"{processor()}; one thread, numpy {np.__version__}"]
    for queries, gallery in sizes:
        of_case, note = rows_of(queries, gallery, options.repeats)
        rows, notes = rows + of_case, [*notes, note]
    report("metrics", rows, notes, options)


if __name__ == "__main__":
    exit_with_sentence(main)
