"""The images of a phase: the tables that it trains on, and the one that judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visual_search.common.errors import UserError
from visual_search.config import DatasetConfig, DevSetConfig, Product10KConfig, TableConfig
from visual_search.data.class_choice import choose_classes
from visual_search.data.datasets import (
    LabelledImages,
    combined,
    read_product10k,
    read_training_table,
)
from visual_search.data.dev_sets import DevSet, read_dev_set, read_dev_table
from visual_search.data.leak_record import Side, product10k_folder


def training_sides(dataset: DatasetConfig) -> list[Side]:
    """The tables that a phase trains on, and which of their images."""
    root, sides = Path(dataset.product10k.train_valid_root), []
    for name, prefix in _lists(dataset):
        file, folder = root / name, root / prefix
        sides.append(Side.of(file, None if folder == product10k_folder(file) else folder))
    for entry in dataset.all_tables():
        sides.append(Side.of(entry.file, entry.root, entry.fold))
    return sides


def _lists(dataset: DatasetConfig) -> list[tuple[str, str]]:
    """The lists of Product10K that are trained on, and the folders of their images."""
    place = dataset.product10k
    both = [(place.train_list, place.train_prefix), (place.val_list, place.val_prefix)]
    return both[: 1 + dataset.train_on_test] if place.use else []


def dev_sides(dev: DevSetConfig) -> list[Side]:
    """The tables that a phase is judged on, and which of their images."""
    if dev.table:
        return [Side.of(dev.table, dev.root, dev.fold)]
    return [Side.of(file, dev.eval_root) for file in dev_files(dev)]


def dev_files(dev: DevSetConfig) -> list[Path]:
    """The tables that a phase is judged on."""
    if dev.table:
        return [Path(dev.table)]
    return [Path(dev.eval_root, name) for name in (dev.gallery, dev.queries)]


def training_images(dataset: DatasetConfig) -> LabelledImages:
    """The training images of all data sets, those of the classes that were chosen."""
    place, tables, parts = dataset.product10k, dataset.all_tables(), []
    sources: list[Product10KConfig | TableConfig] = [*([place] if place.use else []), *tables]
    if not sources:
        raise UserError(
            "there is nothing to train on: dataset.product10k.use is false and dataset.tables empty"
        )
    if place.use:
        root = Path(place.train_valid_root)
        parts.append(read_product10k(root, _lists(dataset), dataset.num_of_classes))
    files = [Path(entry.file).resolve() for entry in tables]
    for entry, file in zip(tables, files, strict=True):
        if files.count(file) > 1:
            raise UserError(
                f"dataset.tables names {entry.file} twice, so that each of its classes would be "
                "two: remove one, or give it the weight 2 to draw its images twice as often"
            )
        folder = Path(entry.root) if entry.root else None
        parts.append(read_training_table(Path(entry.file), folder, fold=entry.fold))
    return choose_classes(
        combined(parts, [part.weight for part in sources]),
        [part.more_than for part in sources],
        [part.at_most for part in sources],
        dataset.max_classes,
        dataset.seed,
    )


def dev_set_of(dev: DevSetConfig, **rows: Any) -> DevSet:
    """The images that validation or a task ranks; `rows` of a table: see :func:`read_dev_table`."""
    if not dev.table:
        return read_dev_set(Path(dev.eval_root), dev.gallery, dev.queries)
    root = Path(dev.root) if dev.root else None
    return read_dev_table(Path(dev.table), root, fold=dev.fold, **rows)
