"""The frozen recipe's 64 numbers beside 64 principal components, on classes that neither saw.

    python -m benchmarks.universal

EfficientNet-Lite0's features, the same for both. The embedded catalogue's development set is of
other products than its training set, three seeds; GroceryStoreDataset is split by whole classes
into three folds, each held out once and ranked leave-one-out. The interval is a bootstrap over
classes of the paired difference. Only the last epoch is looked at, so that nothing is chosen on
what it is judged by.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import Row, arguments, higher_is_better, processor, report
from dataset.get_kfold_split import write_folds
from dataset.prepare_real_photos import GROCERY_FILES, GROCERY_TABLE, find_folder, prepare
from visual_search.common.errors import run_command
from visual_search.evaluation.compare import mean_interval

CONFIG = "config/universal/lite0.yml"
DIMENSION = 64


def main() -> None:
    """Train, compare and record."""
    parser = arguments("Compare the frozen recipe's embedding with principal components.")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="of features")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    notes = [f"{processor()}; EfficientNet-Lite0, frozen; {CONFIG}, last epoch"]
    with TemporaryDirectory() as folder:
        for case, settings in cases(Path(folder), options.quick).items():
            sets = [
                trained(Path(folder) / f"run{len(rows)}_{number}", words, options.cache)
                for number, words in enumerate(settings)
            ]
            means = pd.DataFrame([scores.mean() for scores, _ in sets])
            recipe, components, whole = means.mean()
            for peer, value in (("64-d PCA", components), ("all 1,280 features", whole)):
                rows.append(higher_is_better(f"{case}: mAP", recipe, peer, value, "0..1"))
            every = pd.concat([scores for scores, _ in sets])
            classes = [f"{number} {name}" for number, (_, of) in enumerate(sets) for name in of]
            gain = mean_interval((every.recipe - every.components).to_numpy(), np.array(classes))
            each = [f"{one.recipe:.4f} / {one.components:.4f}" for one in means.itertuples()]
            notes.append(
                f"{case}: recipe / PCA {', '.join(each)}; difference {gain.mean:+.4f}, 95 % "
                f"{gain.low:+.4f} to {gain.high:+.4f} (bootstrap over classes)"
            )
    report("universal", rows, notes, options)


def cases(folder: Path, quick: bool) -> dict[str, list[list[str]]]:
    """Settings of the trainings, by what is held out of them: three seeds, three folds."""
    numbers = (0,) if quick else (0, 1, 2)
    found = {
        # Its queries are of products that training does not have.
        "embedded catalogue, 206 other products, 3 seeds": [
            [f"--dataset.seed={seed}"] for seed in numbers
        ]
    }
    data = os.getenv("VPR_REAL_DATA")
    if not (data and find_folder(Path(data), GROCERY_FILES)):
        print("VPR_REAL_DATA names no GroceryStoreDataset: left out", flush=True)
        return found
    prepare(Path(data), folder / "real")
    write_folds(folder / "real" / GROCERY_TABLE, 3, whole_classes=True)
    table = folder / "real" / "folds.csv"
    # Each third of the classes held out in turn, every photo against all others of its third.
    found["GroceryStoreDataset, classes held out, 3 folds"] = [
        [
            "--dataset.product10k.use=false",
            f'--dataset.tables=[{{"file": "{table}", "fold": {fold}}}]',
            f"--dataset.dev_set.table={table}",
            f"--dataset.dev_set.fold={fold}",
            "--dataset.input_size=224",
        ]
        for fold in numbers
    ]
    return found


def trained(run: Path, settings: list[str], cache: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Train the recipe with these settings, and rank what it holds out.

    Returns the average precisions of the queries, by the recipe's 64 numbers, by as many principal
    components and by the whole features, a column each; and the queries' classes.
    """
    from visual_search.evaluation.compression import RunEmbeddings
    from visual_search.evaluation.dev_set import evaluate_embeddings

    place = ["--runs", str(run.parent), "--name", run.name, f"--train.feature_cache={cache}"]
    words = ["--config", CONFIG, *place, "--train.validate_every=1000", *settings]
    subprocess.run([sys.executable, "-m", "visual_search.main_arcface", *words], check=True)
    embedded = RunEmbeddings(run)
    features = embedded.sides(of_backbone=True)
    ways = {
        "recipe": embedded.sides(),
        "components": features.reduced(DIMENSION),
        "whole": features,
    }
    dev_set = embedded.dev_set
    found = {
        name: evaluate_embeddings(dev_set, sides.gallery, sides.queries).average_precisions
        for name, sides in ways.items()
    }
    return pd.DataFrame(found), dev_set.query_products


if __name__ == "__main__":
    run_command(main)
