"""Retrieval metrics against pytorch-metric-learning and OML: `python -m benchmarks.evaluate`."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, arguments, lower_is_better, processor, report
from benchmarks.ranker_peers import PACKAGES, call, interpreter
from visual_search.common.errors import run_command

DIMENSION = 512
# Stanford Online Products' test photos and classes; a smaller case has as many photos a class.
PHOTOS, CLASSES = 60_502, 11_316
# Of an embedding's length, what is a photo's own: so much that R@1 is 0.8, as a trained model's.
NOISE = 2.2
LIMIT_GB = 4.0


def embeddings(photos: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors round the centres of their classes, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = max(photos * CLASSES // PHOTOS, 1)
    centers = torch.nn.functional.normalize(torch.randn(classes, DIMENSION, generator=generator))
    labels = torch.arange(photos) % classes
    own = torch.randn(photos, DIMENSION, generator=generator) / DIMENSION**0.5
    return torch.nn.functional.normalize(centers[labels] + NOISE * own).numpy(), labels.numpy()


def run(way: str, job: Path, options: Namespace, repeats: int = 1) -> dict[str, Any]:
    """Seconds, peak memory and scores of one way, in a process of its own."""
    python = interpreter(way) if way in PACKAGES else Path(sys.executable)
    command = [str(python), "-m", "benchmarks.evaluate_child", way, str(job)]
    said = call([*command, str(options.threads), str(repeats)], {})
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(f"{way}: {answer['seconds']:.1f} s, {answer['peak'] / 1e9:.2f} GB", flush=True)
    return answer


def agreement(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The metrics both have, and how far they are apart at the most."""
    shared = [name for name in theirs if name in ours]
    apart = max(abs(ours[name] - theirs[name]) for name in shared)
    return f"{', '.join(shared)} differ by {apart:.1e} at the most"


def rows_of(photos: int, peers: dict[str, str], options: Namespace) -> tuple[list[Row], list[str]]:
    """Time and memory against each peer, agreement, and the roofline."""
    case = f"{photos:,} x {photos:,} x {DIMENSION}, leave-one-out"
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.npz"
        vectors, labels = embeddings(photos)
        np.savez(job, embeddings=vectors, labels=labels)
        del vectors
        mine = run("ours", job, options, min(options.repeats, 3))
        least = run("floor", job, options)
        theirs = {way: run(way, job, options) for way in peers}
    rows, notes = [], []
    memory = f"{case}: peak memory, all", mine["peak"] / 1e9
    for way, peer in peers.items():
        answer = theirs[way]
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


def peers_of() -> dict[str, dict[str, str]]:
    """The libraries, and the ways each is run."""
    name = f"pytorch-metric-learning {version('pytorch-metric-learning')}"
    return {
        "pytorch-metric-learning": {
            "pml": f"{name}, k = 1000",
            "pml_short": f"{name}, k = max_bin_count: no mAP@1000, R@10, R@100",
        },
        "oml": {"oml": PACKAGES["oml"][0].replace("==", " ")},
    }


def main() -> None:
    """Measure, print, record; a section for each library, each beside a run of ours."""
    parser = arguments("Time and memory of retrieval metrics against other libraries.")
    peers = peers_of()
    parser.add_argument(
        "--against", nargs="+", choices=list(peers), default=list(peers), help="libraries"
    )
    options = parser.parse_args()
    head = (
        f"{processor()}; {options.threads} threads, torch {torch.__version__}; each in a process "
        f"of its own on the same file; ours the median of {min(options.repeats, 3)}, theirs once"
    )
    for library in options.against:
        photos = 3000 if options.quick else PHOTOS
        rows, notes = rows_of(photos, peers[library], options)
        report(f"evaluate-{library}", rows, [head, *notes], options)


if __name__ == "__main__":
    run_command(main)
