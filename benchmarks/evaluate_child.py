"""One way to score embeddings, in a process of its own: `evaluate_child WAY JOB.npz`.

It imports little of the benchmark's own environment but numpy and torch, for OML stands in another
one. What it prints last is JSON: seconds, peak memory and scores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import peak_resident

Scores = dict[str, float]
DEPTH = 1000


def ours(embeddings: torch.Tensor, labels: np.ndarray) -> Scores:
    """Every metric of the kit."""
    from visual_search.evaluation.metrics import hits_of_ranks, per_query
    from visual_search.ranking.rank import nearest_rows

    everyone = np.arange(len(labels))
    ranks = nearest_rows(embeddings, embeddings, own=everyone, width=DEPTH)
    hits = hits_of_ranks(ranks, labels, labels, everyone)
    return {name: float(np.nanmean(values)) for name, values in per_query(hits).items()}


def floor(embeddings: torch.Tensor, labels: np.ndarray) -> Scores:
    """Nothing but the products of all with all, in float32."""
    out = torch.empty(4096, 4096)
    for one in embeddings.split(4096):
        for other in embeddings.split(4096):
            if len(one) == len(other) == 4096:
                torch.mm(one, other.T, out=out)
            else:
                one @ other.T
    return {}


def metric_learning(k: int | str) -> Callable[[torch.Tensor, np.ndarray], Scores]:
    """pytorch-metric-learning's calculator, without its clustering metrics."""

    def score(embeddings: torch.Tensor, labels: np.ndarray) -> Scores:
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        names = {
            "precision_at_1": "R@1",
            "r_precision": "R-precision",
            "mean_average_precision_at_r": "MAP@R",
            "mean_average_precision": "mAP@1000",
        }
        if k == "max_bin_count":
            del names["mean_average_precision"]  # not of 1,000 ranks then
        calculator = AccuracyCalculator(include=tuple(names), k=k, device=torch.device("cpu"))
        given = torch.from_numpy(labels)
        found = calculator.get_accuracy(embeddings, given, embeddings, given, True)
        return {names[name]: float(value) for name, value in found.items()}

    return score


def oml(embeddings: torch.Tensor, labels: np.ndarray) -> Scores:
    """Open Metric Learning's retrieval results, and its metrics of them."""
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_retrieval_metrics
    from oml.retrieval.retrieval_results import RetrievalResults

    everyone, given = torch.arange(len(labels)), torch.from_numpy(labels)
    distances, retrieved, right = batched_knn(
        embeddings, everyone, everyone, top_n=DEPTH, labels_gt=given
    )
    results = RetrievalResults(distances, retrieved, right)
    found = calc_retrieval_metrics(
        results.retrieved_ids,
        results.gt_ids,
        cmc_top_k=(1, 5, 10, 100),
        precision_top_k=(5,),
        map_top_k=(DEPTH,),
        reduce=True,
    )
    recalls = {f"R@{k}": float(value) for k, value in found["cmc"].items()}
    return {**recalls, "precision@5": float(found["precision"][5])}


WAYS: dict[str, Callable[[torch.Tensor, np.ndarray], Scores]] = {
    "ours": ours,
    "floor": floor,
    "pml": metric_learning(DEPTH),
    "pml_short": metric_learning("max_bin_count"),
    "oml": oml,
}


def main() -> None:
    """Score a small piece to warm up, then all of it, a few times."""
    way, job, threads, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    if way.startswith("pml"):
        import faiss

        faiss.omp_set_num_threads(threads)
    with np.load(job) as given:
        embeddings, labels = torch.from_numpy(given["embeddings"]), given["labels"]
    small = min(len(labels), 2048)
    score = WAYS[way]
    with torch.inference_mode():
        score(embeddings[:small].clone(), labels[:small] % 100)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            scores = score(embeddings, labels)
            seconds.append(time.perf_counter() - started)
    answer = {"seconds": float(np.median(seconds)), "peak": peak_resident(), "scores": scores}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
