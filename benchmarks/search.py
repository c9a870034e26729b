"""Exact top-1000 search against faiss and torch: `python -m benchmarks.search`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

from benchmarks.harness import (
    MB,
    Row,
    alternating_medians,
    arguments,
    extra_memory,
    lower_is_better,
    peer_module,
    processor,
    report,
)
from visual_search.common.errors import UserError, run_command
from visual_search.ranking.search import BLOCK_QUERIES, BLOCK_ROWS, top_k, top_k_in_blocks

K = 1000
# Rows of queries that peers without blocks of their own are given at once, or they would hold
# every similarity in memory.
PEER_ROWS = 256


@dataclass(frozen=True)
class Case:
    """Sizes of a search."""

    queries: int
    gallery: int
    dimension: int

    def __str__(self) -> str:
        return f"{self.queries:,} x {self.gallery:,} x {self.dimension}, top {K}"

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random unit vectors: no peer can guess where the neighbours are."""
        generator = torch.Generator().manual_seed(0)
        sides = []
        for rows in (self.queries, self.gallery):
            side = torch.randn(rows, self.dimension, generator=generator)
            sides.append(side.div_(side.norm(dim=1, keepdim=True)))
        return sides[0], sides[1]


CASES = [Case(256, 200_000, 512), Case(10_000, 100_000, 512), Case(1000, 1_000_000, 512)]
QUICK = [Case(64, 20_000, 64)]

Search = Callable[[], Any]


def ours(case: Case, threads: int) -> Search:
    """The kit's search."""
    torch.set_num_threads(threads)
    queries, gallery = case.matrices()
    return lambda: top_k(queries, gallery, K)[1].numpy()


def by_faiss(case: Case, threads: int) -> Search:
    """IndexFlatIP."""
    faiss = peer_module("faiss")
    faiss.omp_set_num_threads(threads)
    queries, gallery = (side.numpy() for side in case.matrices())
    index = faiss.IndexFlatIP(case.dimension)
    index.add(gallery)
    return lambda: index.search(queries, K)[1]


def by_torch(case: Case, threads: int) -> Search:
    """All similarities of some queries, then `topk`."""
    torch.set_num_threads(threads)
    queries, gallery = case.matrices()

    def search() -> np.ndarray:
        return torch.cat(
            [(q @ gallery.T).topk(K).indices for q in queries.split(PEER_ROWS)]
        ).numpy()

    return search


def in_blocks(case: Case, threads: int) -> Search:
    """The kit's search where faiss is not installed."""
    torch.set_num_threads(threads)
    queries, gallery = case.matrices()
    return lambda: top_k_in_blocks(queries, gallery, K)[1].numpy()


def products(case: Case, threads: int) -> Search:
    """Nothing but the matrix products, in blocks: no exact search is faster."""
    torch.set_num_threads(threads)
    queries, gallery = case.matrices()

    def search() -> None:
        for rows in gallery.split(BLOCK_ROWS):
            for some in queries.split(BLOCK_QUERIES):
                some @ rows.T

    return search


PEERS: dict[str, Callable[[Case, int], Search]] = {
    "faiss-cpu": by_faiss,
    "torch": by_torch,
}
WAYS = {"faiss-cpu": "IndexFlatIP", "torch": "topk"}


def rows_of(case: Case, options: Namespace) -> tuple[list[Row], list[str]]:
    """Time against each peer, memory against faiss, and the roofline."""
    threads = options.threads
    searches = {name: make(case, threads) for name, make in PEERS.items()}
    mine, blocks, floor = (make(case, threads) for make in (ours, in_blocks, products))
    agreement = float((mine() == searches["faiss-cpu"]()).mean())
    repeats = options.repeats if case.queries * case.gallery < 1e8 else min(options.repeats, 3)
    calls = [mine, blocks, floor, *searches.values()]
    seconds, seconds_of_blocks, least, *others = alternating_medians(calls, repeats, warm_up=1)
    rows = []
    for name, theirs in zip(searches, others, strict=True):
        peer = f"{name} {version(name)} {WAYS[name]}"
        rows.append(lower_is_better(f"{case}: time", seconds, peer, theirs, "s"))
    flat = f"faiss-cpu {version('faiss-cpu')} {WAYS['faiss-cpu']}"
    by_flat = others[list(searches).index("faiss-cpu")]
    case_of_blocks = f"{case}: time without faiss"
    rows.append(lower_is_better(case_of_blocks, seconds_of_blocks, flat, by_flat, "s"))
    del searches, calls, mine, blocks, floor
    memory = (
        extra_memory(make, case, threads, own_process=not options.quick) / MB
        for make in (ours, by_faiss)
    )
    name = f"{case}: memory beside the vectors"
    rows.append(lower_is_better(name, next(memory), flat, next(memory), "MB"))
    flops = 2 * case.queries * case.gallery * case.dimension
    note = (
        f"{case}: the products alone take {least:.2f} s ({flops / least / 1e9:.0f} GFLOP/s), "
        f"{least / seconds:.0%} of ours; {agreement:.2%} of places agree with faiss"
    )
    return rows, [note]


def blas() -> str:
    """Which kernels faiss and numpy multiply by, and with how many threads."""
    peer_module("faiss")
    found = [x for x in threadpool_info() if x["user_api"] == "blas"]
    return "; ".join(
        f"{Path(x['filepath']).parent.name}: {x['internal_api']} {x.get('version')}, kernel "
        f"{x.get('architecture', 'unknown')}, {x['num_threads']} threads"
        for x in found
    )


def main() -> None:
    """Measure, print, record."""
    options = arguments("Time and memory of exact search against other libraries.").parse_args()
    rows: list[Row] = []
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in os.environ:
            raise UserError(f"unset {name}: it makes faiss take a slower kernel")
    notes = [f"{processor()}; {options.threads} threads, torch {torch.__version__}; {blas()}"]
    for case in QUICK if options.quick else CASES:
        of_case, notes_of_case = rows_of(case, options)
        rows, notes = rows + of_case, notes + notes_of_case
    report("search", rows, notes, options)


if __name__ == "__main__":
    run_command(main)
