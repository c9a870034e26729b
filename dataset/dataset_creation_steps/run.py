"""All five steps over all categories.

    python -m dataset.dataset_creation_steps.run --config config/amazon_pairs.yml

What is finished is skipped; what was killed goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated

from dataset.dataset_creation_steps.engine import DownloadConfig, Filling, Runner, start_engine
from dataset.dataset_creation_steps.get_pairs import category_file
from dataset.options import parsed
from visual_search.common.errors import UserError, run_command
from visual_search.common.ranges import Amount, CountFrom1, Range, check_ranges


@dataclass(frozen=True)
class PairsConfig:
    """The whole job; `config/amazon_pairs.yml` says what each key is."""

    folder: Path
    categories: list[str]
    run: Path = Path("runs/arcface_2nd")
    thresholds: list[Annotated[float, Range(-1, 1)]] = field(default_factory=lambda: [0.5, 0.6])
    min_images: CountFrom1 = 2
    images: Path = Path("dataset/images_mean_50k")
    evaluation: list[Path] = field(default_factory=list)
    snapshot_products: CountFrom1 = 1000
    piece_photos: CountFrom1 = 1000
    runner: Runner = "native"
    ray_address: str = "auto"
    gpus: Amount = 0.0
    retry_failed: bool = False
    overwrite: bool = False
    distance: Annotated[int, Range(0, 64)] = 4
    download: DownloadConfig = field(default_factory=DownloadConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    def filling(self, piece: int) -> Filling:
        """How images are fetched, with a record of what is done after each `piece`."""
        return Filling(self.download, piece, self.runner == "ray", self.retry_failed)


def build_pairs(config: PairsConfig) -> None:
    """Run what is not finished.

    Raises:
        UserError: when a file is missing or a step has nothing left.
    """
    from dataset.dataset_creation_steps import (
        analyse_pairs,
        download_images,
        extract_features,
        get_pairs,
        prepare_training_set,
    )
    from visual_search.model.checkpoint import load_checkpoint

    if not config.categories:
        raise UserError("categories is empty: name at least one")
    if not config.thresholds:
        raise UserError("thresholds is empty: name at least one")
    # All inputs, before the first of them is worked on for hours.
    prepare_training_set.evaluation_tables(config.evaluation)
    load_checkpoint(config.run)
    files = [
        [category_file(config.folder / f"{kind}{name}.json.gz") for kind in ("", "meta_")]
        for name in config.categories
    ]
    for path in chain(*files):
        if not path.is_file():
            raise UserError(f"{path} does not exist: download it, or leave its category out")
    if not config.evaluation:
        print("evaluation is empty: the images are not checked for leaks", flush=True)
    start_engine(config.runner, config.ray_address)
    selections = []
    for reviews, meta in files:
        pairs = get_pairs.default_output(reviews)
        if get_pairs.is_finished(reviews, meta, pairs):
            print(f"{pairs} is there", flush=True)
        else:
            get_pairs.get_pairs(reviews, meta, pairs)
        how, gpus = config.filling(config.snapshot_products), config.gpus
        extract_features.extract(pairs, config.run, how, gpus=gpus, overwrite=config.overwrite)
        analyse_pairs.analyse(pairs, None, config.thresholds, config.min_images)
        selections.append(analyse_pairs.selection_file(pairs, min(config.thresholds)))
    how = config.filling(config.piece_photos)
    download_images.download_images(selections, config.images, how)
    prepare_training_set.prepare_training_set(
        download_images.table_file(config.images),
        config.images.parent,
        config.thresholds,
        config.evaluation,
        min_images=config.min_images,
        distance=config.distance,
    )


def main() -> None:
    """Read the config and run."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="python -m dataset.dataset_creation_steps.run",
        description="All five steps from Amazon's reviews to training pairs, over all categories. "
        "What is finished is skipped, what was killed goes on.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; several merge left to right")
    parser.add_class_arguments(PairsConfig)
    build_pairs(PairsConfig(**parsed(parser)))
    print("next: python -m visual_search.main_phases --config config/phases.yml")


if __name__ == "__main__":
    run_command(main)
