"""A chain of image–text phases on several folds of products, each asked for once.

A few hundred products that are asked for decide little between two systems. Dealt into folds, each
is asked for by a model that was trained on the others, and the queries of all folds are compared
together: cross-validation (Stone, "Cross-Validatory Choice and Assessment of Statistical
Predictions", 1974).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.errors import UserError
from visual_search.files import write_json
from visual_search.pair_table import TEST, TRAIN, open_pairs, write_pairs
from visual_search.phase_chain import Chain, Resolve, run_chain, warm_processes
from visual_search.ridge_comparison import Judged, comparison, judge
from visual_search.typed_model import run_settings

Train = Callable[[Chain, Path], object]
"""Trains the phases of a chain into a folder of runs."""


def fold_tables(pairs: Path, folder: Path, folds: int, seed: int = 42) -> list[Path]:
    """Deal the products of a table into folds; in table k those of fold k test, the others train.

    All rows take part, whatever their split was. Products of one name go to one fold each as they
    come: what is new is the product, not the word.

    Args:
        pairs: table of pairs.
        folder: of `fold_1.parquet` and so on; photos are named relative to it.
        folds: 2 or more.
        seed: of the deal.

    Raises:
        UserError: when the table is none, or has fewer products than folds.
    """
    open_pairs(pairs)
    table = pq.read_table(pairs)
    groups = table["group"].to_pylist()
    products = sorted(set(groups))
    if not 2 <= folds <= len(products):
        raise UserError(f"{pairs} has {len(products)} products: they make 2 to as many folds")
    dealt = np.random.default_rng(seed).permutation(len(products)) % folds
    fold_of = dict(zip(products, dealt.tolist(), strict=True))
    place = table.schema.get_field_index("split")
    paths = table.schema.get_field_index("image_path")
    absolute = [str(pairs.parent.resolve() / name) for name in table["image_path"].to_pylist()]
    table = table.set_column(paths, "image_path", pa.array(absolute))
    written = []
    for fold in range(folds):
        splits = [TEST if fold_of[group] == fold else TRAIN for group in groups]
        path = folder / f"fold_{fold + 1}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(path, table.set_column(place, "split", pa.array(splits)))
        written.append(path)
    return written


def fold_chain(chain: Chain, pairs: Path) -> Chain:
    """The same phases on another table, their names ending in its own."""
    steps = tuple(
        replace(
            step,
            name=f"{step.name}_{pairs.stem}",
            overrides={**step.overrides, "dataset.pairs": str(pairs), "dataset.root": ""},
        )
        for step in chain.steps
    )
    return replace(chain, name=f"{chain.name}_{pairs.stem}", steps=steps)


def compare_on_folds(
    chain: Chain,
    pairs: Path,
    runs: Path,
    folds: int,
    resolve: Resolve,
    *,
    seed: int = 42,
    force: bool = False,
) -> dict[str, Any]:
    """Train the chain on each fold, and compare its phases with the ridge over all of them.

    Args:
        chain: of :mod:`visual_search.main_clip`.
        pairs: table of pairs, with its photos relative to its folder.
        runs: folder of all runs; tables, table of phases and figures are in `<chain>_folds`.
        folds: 2 or more.
        resolve: completes a phase's settings.
        seed: of the deal and of the bootstrap.
        force: train anew what is finished.

    Returns:
        What :func:`visual_search.ridge_comparison.comparison` says; it is written to
        `<chain>_folds/ridge.json` too.
    """
    folder = runs / f"{chain.name}_folds"
    judged: list[Judged] = []
    with warm_processes() as processes:
        for table in fold_tables(pairs, folder, folds, seed):
            print(f"\n== {table.stem.replace('_', ' ')} of {folds}", flush=True)
            part = fold_chain(chain, table)
            run_chain(part, runs, resolve, force=force, processes=processes)
            judged.append(_judged(chain, part, table, runs, seed))
    found = comparison(judged, seed)
    write_json(folder / "ridge.json", found)
    return found


def _judged(chain: Chain, part: Chain, table: Path, runs: Path, seed: int) -> Judged:
    names: Sequence[str] = [step.name for step in chain.steps]
    folders = [runs / step.name for step in part.steps]
    settings = run_settings(folders[0])
    return judge(
        dict(zip(names, folders, strict=True)),
        table,
        column=settings["dataset"]["text_column"],
        language=settings["dataset"]["test_language"],
        cache=Path(settings["train"]["feature_cache"]),
        seed=seed,
    )
