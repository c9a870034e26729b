"""Retrieval metrics against pytorch-metric-learning and OML: `python -m benchmarks.evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, arguments, lower_is_better, peak_resident, processor, report
from benchmarks.ranker_peers import PACKAGES, call, interpreter
from visual_search.common.errors import run_command

DIMENSION = 512
# Stanford Online Products' test photos and classes; a smaller case has as many photos a class.
PHOTOS, CLASSES = 60_502, 11_316
# Of an embedding's length, what is a photo's own: so much that R@1 is 0.8, as a trained model's.
NOISE = 2.2
LIMIT_GB = 4.0
DEPTH = 1000

LIBRARIES = ("pytorch-metric-learning", "oml")

Scores = dict[str, float]


def embeddings(photos: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors round the centres of their classes, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = max(photos * CLASSES // PHOTOS, 1)
    centers = torch.nn.functional.normalize(torch.randn(classes, DIMENSION, generator=generator))
    labels = torch.arange(photos) % classes
    own = torch.randn(photos, DIMENSION, generator=generator) / DIMENSION**0.5
    return torch.nn.functional.normalize(centers[labels] + NOISE * own).numpy(), labels.numpy()


def ours(embeddings: torch.Tensor, labels: np.ndarray) -> Scores:
    """Every metric of the kit."""
    from visual_search.evaluation.metrics import hits_of_ranks, per_query
    from visual_search.ranking.rank import nearest_rows

    everyone = np.arange(len(labels))
    ranks = nearest_rows(embeddings, embeddings, own=everyone, width=DEPTH)
    hits = hits_of_ranks(ranks, labels, labels, everyone)
    return {str(name): float(mean) for name, mean in per_query(hits).mean().items()}


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


def score_job(way: str, job: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Score a small piece to warm up, then all of it, a few times: what :func:`run` reads."""
    torch.set_num_threads(threads)
    if way.startswith("pml"):
        import faiss

        faiss.omp_set_num_threads(threads)
    with np.load(job) as given:
        embeddings, labels = torch.from_numpy(given["embeddings"]), given["labels"]
    small, score = min(len(labels), 2048), WAYS[way]
    with torch.inference_mode():
        score(embeddings[:small].clone(), labels[:small] % 100)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            scores = score(embeddings, labels)
            seconds.append(time.perf_counter() - started)
    return {"seconds": float(np.median(seconds)), "peak": peak_resident(), "scores": scores}


def run(way: str, job: Path, options: Namespace, repeats: int = 1) -> dict[str, Any]:
    """Seconds, peak memory and scores of one way, in a process of its own."""
    python = interpreter(way) if way in PACKAGES else Path(sys.executable)
    told = {"way": way, "job": job, "threads": options.threads, "repeats": repeats}
    words = [f"--{name}={value}" for name, value in told.items()]
    said = call([str(python), "-m", "benchmarks.evaluate", *words], {})
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(f"{way}: {answer['seconds']:.1f} s, {answer['peak'] / 1e9:.2f} GB", flush=True)
    return answer


def agreement(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The metrics both have, and how far they are apart at the most."""
    shared = [name for name in theirs if name in ours]
    apart = max(abs(ours[name] - theirs[name]) for name in shared)
    return f"{', '.join(shared)} differ by {apart:.1e} at the most"


def compared(peers: dict[str, str], options: Namespace) -> tuple[list[Row], list[str]]:
    """Time and memory against each way of a peer, agreement, and the roofline."""
    photos, repeats = 3000 if options.quick else PHOTOS, min(options.repeats, 3)
    case = f"{photos:,} x {photos:,} x {DIMENSION}, leave-one-out"
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.npz"
        vectors, labels = embeddings(photos)
        np.savez(job, embeddings=vectors, labels=labels)
        del vectors
        mine, least = run("ours", job, options, repeats), run("floor", job, options)
        theirs = {peer: run(way, job, options) for way, peer in peers.items()}
    rows: list[Row] = []
    notes = [
        f"{processor()}; {options.threads} threads, torch {torch.__version__}; each in a process "
        f"of its own on the same file; ours the median of {repeats}, theirs once"
    ]
    memory = f"{case}: peak memory, all", mine["peak"] / 1e9
    for peer, answer in theirs.items():
        rows += [
            lower_is_better(f"{case}: time", mine["seconds"], peer, answer["seconds"], "s"),
            lower_is_better(*memory, peer, answer["peak"] / 1e9, "GB"),
        ]
        notes.append(f"{case}, {peer}: {agreement(mine['scores'], answer['scores'])}")
    rows.append(lower_is_better(*memory, "limit", LIMIT_GB, "GB"))
    flops = 2 * photos * photos * DIMENSION
    notes.append(
        f"{case}: roofline: the products alone take {least['seconds']:.1f} s "
        f"({flops / least['seconds'] / 1e9:.0f} GFLOP/s), "
        f"{least['seconds'] / mine['seconds']:.0%} of ours; "
        + ", ".join(f"{name} {value:.4f}" for name, value in mine["scores"].items())
    )
    return rows, notes


def main() -> None:
    """Measure, print, record; a section for each library, each beside a run of ours."""
    parser = arguments("Time and memory of retrieval metrics against other libraries.")
    add = parser.add_argument
    add("--against", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="libraries")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a process of this benchmark's own
    add("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(score_job(options.way, options.job, options.threads, options.repeats)))
        return
    name = f"pytorch-metric-learning {version('pytorch-metric-learning')}"
    short = f"{name}, k = max_bin_count: no mAP@1000, R@10, R@100"
    peers = {
        "pytorch-metric-learning": {"pml": f"{name}, k = 1000", "pml_short": short},
        "oml": {"oml": PACKAGES["oml"][0].replace("==", " ")},
    }
    for library in options.against:
        report(f"evaluate-{library}", *compared(peers[library], options), options)


if __name__ == "__main__":
    run_command(main)
