"""The frozen recipe's 64 numbers beside 64 principal components, on classes that neither saw.

    python -m benchmarks.universal

EfficientNet-Lite0's features, the same for both. The embedded catalogue's development set is of
other products than its training set, three seeds; GroceryStoreDataset is split by whole classes
into three folds, each held out once and ranked leave-one-out. The interval is a bootstrap over
classes of the paired difference. Only the last epoch is looked at, so that nothing is chosen on
what it is judged by.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Row, arguments, higher_is_better, processor, report
from dataset.prepare_real_photos import GROCERY_FILES, GROCERY_TABLE, find_folder, prepare
from visual_search.common.errors import run_command
from visual_search.evaluation.compare import mean_interval

CONFIG = "config/universal/lite0.yml"
DIMENSION = 64

Scores = tuple[dict[str, np.ndarray], np.ndarray]
"""Average precisions of a held-out set's queries by the recipe's 64 numbers, by as many principal
components and by the whole features, each `(n_queries,)`; and the queries' classes."""


def main() -> None:
    """Train, compare and record."""
    parser = arguments("Compare the frozen recipe's embedding with principal components.")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="of features")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    notes = [f"{processor()}; EfficientNet-Lite0, frozen; {CONFIG}, last epoch"]
    with TemporaryDirectory() as folder:
        cases = {"embedded catalogue, 206 other products, 3 seeds": demo(Path(folder), options)}
        data = os.getenv("VPR_REAL_DATA")
        if data and find_folder(Path(data), GROCERY_FILES):
            cases["GroceryStoreDataset, classes held out, 3 folds"] = groceries(
                Path(folder), Path(data), options
            )
        else:
            print("VPR_REAL_DATA names no GroceryStoreDataset: left out", flush=True)
        for case, sets in cases.items():
            found = list(sets)
            recipe, components, whole = (
                float(np.mean([scores[part].mean() for scores, _ in found]))
                for part in ("recipe", "components", "whole")
            )
            for peer, value in (("64-d PCA", components), ("all 1,280 features", whole)):
                rows.append(higher_is_better(f"{case}: mAP", recipe, peer, value, "0..1"))
            gain = mean_interval(
                np.concatenate([scores["recipe"] - scores["components"] for scores, _ in found]),
                np.concatenate([[f"{n} {c}" for c in of] for n, (_, of) in enumerate(found)]),
            )
            each = ", ".join(
                f"{scores['recipe'].mean():.4f} / {scores['components'].mean():.4f}"
                for scores, _ in found
            )
            notes.append(
                f"{case}: recipe / PCA {each}; difference {gain.mean:+.4f}, 95 % {gain.low:+.4f} "
                f"to {gain.high:+.4f} (bootstrap over classes)"
            )
    report("universal", rows, notes, options)


def demo(folder: Path, options: argparse.Namespace) -> Iterator[Scores]:
    """The embedded catalogue: its queries are of products that training does not have."""
    for seed in (0,) if options.quick else (0, 1, 2):
        yield trained(folder, f"demo{seed}", [f"--dataset.seed={seed}"], options.cache)


def groceries(folder: Path, data: Path, options: argparse.Namespace) -> Iterator[Scores]:
    """Each third of the classes held out in turn, every photo against all others of its third."""
    from dataset.get_kfold_split import write_folds

    prepare(data, folder / "real")
    write_folds(folder / "real" / GROCERY_TABLE, 3, whole_classes=True)
    table = folder / "real" / "folds.csv"
    for fold in (0,) if options.quick else (0, 1, 2):
        settings = [
            "--dataset.product10k.use=false",
            f'--dataset.tables=[{{"file": "{table}", "fold": {fold}}}]',
            f"--dataset.dev_set.table={table}",
            f"--dataset.dev_set.fold={fold}",
            "--dataset.input_size=224",
        ]
        yield trained(folder, f"grocery{fold}", settings, options.cache)


def trained(folder: Path, name: str, settings: list[str], cache: Path) -> Scores:
    """Train the recipe with these settings, and rank what it holds out with all three."""
    import jsonargparse

    from visual_search.common.run_folder import RunFolder
    from visual_search.config_reader import parse_phase
    from visual_search.evaluation.compression import RunEmbeddings, Sides
    from visual_search.evaluation.dev_set import evaluate_embeddings
    from visual_search.phase import build_image_phase
    from visual_search.train import train_phase

    common = ["--config", CONFIG, f"--train.feature_cache={cache}", "--train.validate_every=1000"]
    _, config, text = parse_phase(jsonargparse.ArgumentParser(), [*common, *settings])
    run = RunFolder(folder, name)
    train_phase(config, build_image_phase, run, text)
    embedded = RunEmbeddings(run.path)

    def scores(sides: Sides) -> np.ndarray:
        found = evaluate_embeddings(embedded.dev_set, sides.gallery, sides.queries)
        return found.average_precisions

    features = embedded.sides(of_backbone=True)
    found = {
        "recipe": scores(embedded.sides()),
        "components": scores(features.reduced(DIMENSION)),
        "whole": scores(features),
    }
    return found, embedded.dev_set.query_products


if __name__ == "__main__":
    run_command(main)
