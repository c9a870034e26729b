"""The frozen recipe's 64 numbers beside 64 principal components, on classes that neither saw.

    python -m benchmarks.universal

EfficientNet-Lite0's features, the same for both. The embedded catalogue's development set is of
other products than its training set, three seeds; GroceryStoreDataset is split by whole classes
into three folds, each held out once and ranked leave-one-out. The interval is a bootstrap over
classes of the paired difference, all queries of a class drawn together. Only the last epoch is
looked at, so that nothing is chosen on what it is judged by.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Row, arguments, higher_is_better, processor, report
from dataset.prepare_real_photos import GROCERY_FILES, GROCERY_TABLE, find_folder, prepare
from visual_search.common.errors import run_command

CONFIG = "config/universal/lite0.yml"
DIMENSION = 64
DRAWS = 4000


@dataclass(frozen=True)
class Pair:
    """Both embeddings on one held-out set."""

    recipe: np.ndarray
    """`(n_queries,)`, average precision, 0..1."""
    components: np.ndarray
    """The same of the principal components."""
    whole: np.ndarray
    """The same of all 1,280 features."""
    classes: np.ndarray
    """`(n_queries,)`: of each query."""


def main() -> None:
    """Train, compare and record."""
    options = build_parser().parse_args()
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
        for case, pairs in cases.items():
            found = list(pairs)
            recipe, components, whole = (
                float(np.mean([getattr(pair, part).mean() for pair in found]))
                for part in ("recipe", "components", "whole")
            )
            mean, low, high = paired_interval(found)
            rows.append(higher_is_better(f"{case}: mAP", recipe, "64-d PCA", components, "0..1"))
            rows.append(
                higher_is_better(f"{case}: mAP", recipe, "all 1,280 features", whole, "0..1")
            )
            each = ", ".join(
                f"{pair.recipe.mean():.4f} / {pair.components.mean():.4f}" for pair in found
            )
            notes.append(
                f"{case}: recipe / PCA {each}; difference {mean:+.4f}, 95 % {low:+.4f} to "
                f"{high:+.4f} (bootstrap over classes, {DRAWS} draws)"
            )
    report("universal", rows, notes, options)


def build_parser() -> argparse.ArgumentParser:
    """What every benchmark can be told, and where features are kept."""
    parser = arguments("Compare the frozen recipe's embedding with principal components.")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="of features")
    return parser


def demo(folder: Path, options: argparse.Namespace) -> Iterator[Pair]:
    """The embedded catalogue: its queries are of products that training does not have."""
    for seed in (0,) if options.quick else (0, 1, 2):
        yield trained(folder, f"demo{seed}", [f"--dataset.seed={seed}"], options.cache)


def groceries(folder: Path, data: Path, options: argparse.Namespace) -> Iterator[Pair]:
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


def trained(folder: Path, name: str, settings: list[str], cache: Path) -> Pair:
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

    features = embedded.backbone_sides()
    return Pair(
        scores(embedded.sides()),
        scores(features.reduced(DIMENSION)),
        scores(features),
        embedded.dev_set.query_products,
    )


def paired_interval(pairs: list[Pair]) -> tuple[float, float, float]:
    """Mean difference of recipe and components, and its 95 % percentile interval.

    Within each held-out set classes are drawn with replacement; the mean is over queries, then
    over the sets.
    """
    rng = np.random.default_rng(0)
    mean, draws = 0.0, np.zeros(DRAWS)
    for pair in pairs:
        _, codes = np.unique(pair.classes, return_inverse=True)
        difference = pair.recipe - pair.components
        sums, sizes = np.bincount(codes, weights=difference), np.bincount(codes)
        drawn = rng.integers(0, len(sizes), (DRAWS, len(sizes)))
        draws += sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) / len(pairs)
        mean += float(difference.mean()) / len(pairs)
    low, high = np.percentile(draws, [2.5, 97.5])
    return mean, float(low), float(high)


if __name__ == "__main__":
    run_command(main)
