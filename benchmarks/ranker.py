"""The whole way from files to ranks beside a plain one, clip-retrieval's and OML's.

The plain one reads by PIL in a DataLoader with a worker a core, computes in fp32, and sorts all.

    python -m benchmarks.ranker
    python -m benchmarks.ranker --device cuda

The same weights and files for all, each in a process of its own, in turns. Photos a second are of
reading and embedding all photos; making and checking our plan is in our time, model loading in
nobody's. The roofline says what the machine allows: reading alone, the model alone
(both as our way does them), and the bound of the two.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, arguments, higher_is_better, lower_is_better, processor, report
from benchmarks.ranker_child import Job
from benchmarks.ranker_peers import PACKAGES, run_way
from dataset.prepare_real_photos import CHALLENGE_FILES, find_folder
from visual_search.common.errors import UserError, run_command
from visual_search.common.model_config import BackboneConfig
from visual_search.data.dev_sets import DevSet, read_dev_set
from visual_search.evaluation.dev_set import precisions_of
from visual_search.model.embedder import build_embedder
from visual_search.ranking.export import export_torchscript
from visual_search.ranking.rank import fill_to_width
from visual_search.ranking.search import top_k

PROJECT = Path(__file__).resolve().parent.parent
DEMO = PROJECT / "dataset" / "demo" / "development_test_data"
CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Case:
    """A model, how it is filled, and the side of its photos in pixels."""

    model: str
    weights: str
    size: int
    batch: int = 32
    """Of the others; ours goes by rule."""
    copies: int = 1
    """All photos are read so often: a GPU is done with a few hundred before it is warm."""

    def __str__(self) -> str:
        return f"{self.model.rpartition('/')[2]}, {self.size} px"


CASES = {
    "cpu": [
        Case("timm/tf_efficientnet_lite0", "package:efficientnet_lite0", 224),
        Case("timm/convnext_atto", "none", 224),
        Case("timm/vit_tiny_patch16_224", "none", 224),
    ],
    "cuda": [
        Case("timm/tf_efficientnet_lite0", "package:efficientnet_lite0", 224, copies=20),
        Case("open_clip/ViT-L-14", "none", 224, copies=10),
        Case("open_clip/convnext_xxlarge", "none", 272, copies=3),
    ],
}
QUICK = [Case("timm/test_efficientnet", "none", 64, 8)]
OTHERS = {
    "seed": "PIL, DataLoader, fp32, full sort",
    **{way: PACKAGES[way][0].replace("==", " ") for way in ("clip-retrieval", "oml")},
}
"""Whom we compare with, by their way's name."""


def measure(
    case: Case, dev_set: DevSet, ways: Sequence[str], options: Namespace
) -> dict[str, dict[str, Any]]:
    """Run all ways in turns; of each the seconds of the median run, with its `rate` and `mAP`."""
    torch.manual_seed(0)
    mean, std = (HALF, HALF) if "lite" in case.model else (CLIP_MEAN, CLIP_STD)
    with torch.device(options.device):  # a GPU draws random weights at once
        embedder, architecture = build_embedder(
            BackboneConfig(case.model, case.weights, mean, std), case.size
        )
    photos = [*dev_set.gallery, *dev_set.queries] * case.copies
    n_gallery = len(dev_set.gallery)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with TemporaryDirectory() as temporary:
        job = Path(temporary) / "job.json"
        export_torchscript(embedder, architecture, {}, job.parent / "weights")
        del embedder
        weights, folder = job.parent / "weights", job.parent / "photos"
        device = torch.device(options.device)
        given = case.size, photos, n_gallery, folder, case.batch, options.threads, device
        Job(weights, *given).write(job)
        for number in range(options.repeats):
            for way in ways:
                print(f"{case}: {way}, run {number + 1} of {options.repeats}", flush=True)
                vectors, seconds = run_way(way, job)
                rate = len(photos) / seconds["embedding"]
                print(f"  {rate:.1f} photos/s", flush=True)
                runs[way].append({**seconds, "rate": rate, "mAP": score(vectors, dev_set)})
    return {
        way: sorted(runs[way], key=lambda run: run["rate"])[len(runs[way]) // 2] for way in ways
    }


def score(vectors: np.ndarray, dev_set: DevSet) -> float:
    """mAP of embeddings, gallery first, then the queries, then copies of both."""
    n_gallery = len(dev_set.gallery)
    rows = torch.from_numpy(vectors[: n_gallery + len(dev_set.queries)])
    _, indexes = top_k(rows[n_gallery:], rows[:n_gallery], 1000)
    ranks = fill_to_width(indexes.numpy(), n_gallery)
    return float(precisions_of(dev_set, ranks).mean())


def rows_of(case: Case, results: dict[str, dict[str, Any]], on_gpu: bool) -> list[Row]:
    """Our figures beside each of the others'."""
    ours, rows = results["ours"], []
    for way, other in results.items():
        if way == "ours":
            continue
        for what, key, unit in (("files to embeddings", "rate", "photos/s"), ("mAP", "mAP", "mAP")):
            row = f"{case}: {what}", ours[key], OTHERS[way], other[key], unit
            rows.append(higher_is_better(*row))
    if "seed" in results:
        theirs = results["seed"]["ranking"]
        rows.append(lower_is_better(f"{case}: ranking", ours["ranking"], "full sort", theirs, "s"))
    bound = roofline(ours["decode_alone"], ours["model_alone"], on_gpu)
    share = higher_is_better(
        f"{case}: of the roofline", ours["rate"], "the bound", bound, "photos/s"
    )
    return [*rows, share]


def roofline(decode: float, model: float, separate: bool) -> float:
    """Images a second at the most, by those of reading and of the model alone.

    `separate`: two devices share the work; else the same cores do both.
    """
    return min(decode, model) if separate else 1 / (1 / decode + 1 / model)


def notes_of(case: Case, results: dict[str, dict[str, Any]]) -> list[str]:
    """Where the time goes, and what bounds it."""
    ours = results["ours"]
    decode, model = ours["decode_alone"], ours["model_alone"]
    slower = "reading photos" if decode < model else "the model"
    notes = [
        f"{case}, all photos {case.copies} times: reading alone {decode:.0f} photos/s, the model "
        f"alone {model:.0f}; the bottleneck is {slower}; chosen: {ours['settings']} in "
        f"{ours['plan']:.1f} s"
    ]
    for way, seconds in results.items():
        notes.append(
            f"{case}, {way}: {seconds['embedding']:.1f} s, of them {seconds['model']:.1f} s in the "
            f"model and {max(seconds['embedding'] - seconds['model'], 0):.1f} s beside it"
        )
    return notes


def data_folder(named: Path | None) -> Path:
    """The images to measure on: a real development set where one is at hand, else the demo's."""
    if named is not None:
        return named
    data = os.getenv("VPR_REAL_DATA")
    return (find_folder(Path(data), CHALLENGE_FILES) if data else None) or DEMO


def shortened(dev_set: DevSet, photos: int) -> DevSet:
    """About so many photos, as many of the gallery as of the queries in proportion."""
    share = photos / (len(dev_set.gallery) + len(dev_set.queries))
    if not photos or share >= 1:
        return dev_set
    n, m = max(round(share * len(dev_set.gallery)), 2), round(share * len(dev_set.queries))
    return DevSet(
        dev_set.gallery[:n],
        dev_set.queries[: max(m, 2)],
        dev_set.gallery_products[:n],
        dev_set.query_products[: max(m, 2)],
    )


def main() -> None:
    """Measure every case and print the table."""
    parser = arguments(str(__doc__).partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="of the model")
    add("--data", type=Path, help="a development set; default: the real half")
    add("--photos", type=int, default=0, help="take so many; 0: all")
    add("--models", nargs="*", help="of the cases, those whose name holds one")
    add(
        "--ways", nargs="*", choices=list(OTHERS), default=list(OTHERS), help="whom to compare with"
    )
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device on this machine")
    cases = [
        case
        for case in CASES[options.device]
        if not options.models or any(name in case.model for name in options.models)
    ]
    ways, folder = ["ours", *options.ways], data_folder(options.data).resolve()
    if options.quick:
        cases, ways, folder = QUICK, ["ours", "seed"], DEMO
        options.repeats, options.photos = 1, 60
    dev_set = shortened(read_dev_set(folder), options.photos)
    rows: list[Row] = []
    notes = [
        f"{processor()}, {options.threads} used; torch {torch.__version__}; "
        f"{len(dev_set.gallery)} gallery and {len(dev_set.queries)} query photos of "
        f"{folder.name}; the others in fp32, contiguous, batches of {cases[0].batch}"
    ]
    if options.device == "cuda":
        notes.append(torch.cuda.get_device_name())
    for case in cases:
        results = measure(case, dev_set, ways, options)
        rows += rows_of(case, results, options.device == "cuda")
        notes += notes_of(case, results)
    report("ranker" if options.device == "cpu" else "ranker-cuda", rows, notes, options)


if __name__ == "__main__":
    run_command(main)
