"""What can be configured of the images that a phase trains on, and of those that judge it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from visual_search.common.ranges import (
    Amount,
    Batch,
    Count,
    CountFrom1,
    CountOrAll,
    Positive,
    Seed,
    Share,
    Side,
    SideOr0,
    Workers,
)
from visual_search.common.unused import Unless, When

_TEST = When("dataset.train_on_test")


@dataclass(frozen=True)
class Product10KConfig:
    """Where Product10K, or a data set in its layout, lies.

    Args:
        use: train on it; false leaves the other tables.
        train_valid_root: folder of the lists and of the image folders.
        train_prefix: folder of the training images.
        train_list: csv with the columns name, class.
        val_prefix: folder of the test images.
        val_list: csv of the test images, with the same columns.
        weight: how often an image is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more images than this; 0 takes all.
        at_most: images of a class, drawn at random; 0 takes all.
    """

    use: bool = True
    train_valid_root: str = "dataset/Product10K"
    train_prefix: str = "train"
    train_list: str = "train.csv"
    val_prefix: Annotated[str, _TEST] = "test"
    val_list: Annotated[str, _TEST] = "test_kaggletest.csv"
    weight: Positive = 1.0
    more_than: Count = 0
    at_most: Count = 0


@dataclass(frozen=True)
class TableConfig:
    """A further table of training images; its classes are numbered behind the others'.

    Args:
        file: csv: Amazon pairs (image_path, label), dataset_info.csv or folds.csv.
        root: folder its paths are relative to; empty is the csv's own.
        fold: of a folds.csv, the fold that is held out; -1 holds none out.
        weight: how often an image is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more images than this; 0 takes all.
        at_most: images of a class, drawn at random; 0 takes all.
    """

    file: str
    root: str = ""
    fold: CountOrAll = -1
    weight: Positive = 1.0
    more_than: Count = 0
    at_most: Count = 0


@dataclass(frozen=True)
class AmazonReviewConfig:
    """The review photos as the challenge's winner names them; an entry of `tables` does the same.

    Args:
        root: folder of the list and of the image folder.
        prefix: folder of the images, in it.
        list: csv with the columns image_path, label; empty: none.
    """

    root: Annotated[str, When("list")] = ""
    prefix: Annotated[str, When("list")] = ""
    list: str = ""


@dataclass(frozen=True)
class DevSetConfig:
    """The development set that validation ranks: in the challenge's layout, or a table.

    Args:
        eval_root: folder that the image paths of both tables are relative to.
        gallery: csv with the columns seller_img_id, img_path, product_id.
        queries: csv with the columns user_img_id, img_path, bbox_x, …, bbox_h, product_id.
        table: instead of these, a dataset_info.csv or folds.csv, of which the held-out rows are
            ranked: queries against gallery where evaluation_status says so, else each image
            against all others.
        root: folder that the table's paths are relative to; empty is its own.
        fold: of a folds.csv, the fold that is held out; -1 for the rows that always test.
    """

    eval_root: Annotated[str, Unless("table")] = "dataset/development_test_data"
    gallery: Annotated[str, Unless("table")] = "gallery.csv"
    queries: Annotated[str, Unless("table")] = "queries.csv"
    table: str = ""
    root: Annotated[str, When("table")] = ""
    fold: Annotated[CountOrAll, When("table")] = -1


@dataclass(frozen=True)
class SamplerConfig:
    """Which images meet in a batch.

    Args:
        kind: shuffle; m-per-class for pair losses.
        images_per_class: of m-per-class, images of a class in a batch.
        by_size: of m-per-class, classes come in proportion to their images, as the challenge's
            winner drew its pairs; false shows all classes equally often.
        size_power: of earlier versions.
    """

    kind: Literal["shuffle", "m-per-class"] = "shuffle"
    images_per_class: Annotated[CountFrom1, When("kind", "m-per-class")] = 2
    by_size: Annotated[bool, When("kind", "m-per-class")] = False
    size_power: Annotated[Amount, When("")] = 0.5


@dataclass(frozen=True)
class MixingConfig:
    """Two images in one, with both labels.

    Args:
        kind: none, mixup (blended), cutmix (a patch of the other), or both in turn.
        alpha: of the beta distribution that the share is drawn from.
        probability: share of the batches that are mixed.
    """

    kind: Literal["none", "mixup", "cutmix", "both"] = "none"
    alpha: Annotated[Positive, When("kind")] = 0.4
    probability: Annotated[Share, When("kind")] = 1.0


@dataclass(frozen=True)
class DatasetConfig:
    """The images, and how they reach the model.

    Args:
        product10k: the training images.
        tables: further training images.
        amazon_review: the same, of review photos.
        dev_set: the images that validation ranks.
        train_on_test: train on Product10K's test images too; the run's report says so.
        seed: of every random draw of the run.
        num_of_classes: of Product10K: at least its highest class plus one.
        max_classes: train on so many classes of all data sets together, drawn at random; 0 on all.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and in the submission; 0 is as in training.
            Convolutional networks gain from a somewhat larger one (Touvron et al. 2019).
        batch_size: images a step and process.
        sampler: which images meet in a batch.
        augmentations: of the training images; default is AutoAugment alone, as the winner had it.
        augmentations_valid: none (or default), since validation is what the submission does.
        random_erasing: share of the training images with an erased rectangle.
        mixing: mixup or cutmix.
        num_workers: processes that read training images; 0 reads them in the training process.
        max_broken_share: stop when more of the images read than this share cannot be read.
    """

    product10k: Annotated[Product10KConfig, When("dataset.product10k.use")] = field(
        default_factory=Product10KConfig
    )
    tables: tuple[TableConfig, ...] = ()
    amazon_review: AmazonReviewConfig = field(default_factory=AmazonReviewConfig)
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    train_on_test: bool = False
    seed: Seed = 42
    num_of_classes: Annotated[CountFrom1, When("dataset.product10k.use")] = 9700
    max_classes: Count = 0
    input_size: Side = 224
    input_size_valid: SideOr0 = 0
    batch_size: Batch = 48
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augmentations: Literal[
        "none", "default", "flip", "plain", "autoaugment", "randaugment", "trivialaugment", "phone"
    ] = "autoaugment"
    augmentations_valid: Literal["none", "default"] = "none"
    random_erasing: Share = 0.0
    mixing: MixingConfig = field(default_factory=MixingConfig)
    num_workers: Workers = 8
    max_broken_share: Share = 0.05

    def all_tables(self) -> tuple[TableConfig, ...]:
        """`tables`, and that of `amazon_review`."""
        place = self.amazon_review
        if not place.list:
            return self.tables
        root = Path(place.root)
        return *self.tables, TableConfig(str(root / place.list), str(root / place.prefix))
