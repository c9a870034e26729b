"""What can be configured of the photos that a phase trains on and is measured by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Product10KConfig:
    """Where Product10K, or a data set in its layout, lies.

    Args:
        use: train on it; false leaves the other tables.
        train_valid_root: folder of the lists and of the photo folders.
        train_prefix: folder of the training photos.
        train_list: csv with the columns name, class.
        val_prefix: folder of the test photos.
        val_list: csv of the test photos, with the same columns.
        weight: how often a photo is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more photos than this; 0 takes all.
        at_most: photos of a class, drawn at random; 0 takes all.
    """

    use: bool = True
    train_valid_root: str = "dataset/Product10K"
    train_prefix: str = "train"
    train_list: str = "train.csv"
    val_prefix: str = "test"
    val_list: str = "test_kaggletest.csv"
    weight: float = 1.0
    more_than: int = 0
    at_most: int = 0


@dataclass(frozen=True)
class TableConfig:
    """A further table of training photos; its classes are numbered behind the others'.

    Args:
        file: csv: Amazon pairs (image_path, label), dataset_info.csv or folds.csv.
        root: folder its paths are relative to; empty is the csv's own.
        fold: of a folds.csv, the fold that is held out; -1 holds none out.
        weight: how often a photo is drawn in an epoch; 1 is once, 0.5 every second epoch.
        more_than: a class needs more photos than this; 0 takes all.
        at_most: photos of a class, drawn at random; 0 takes all.
    """

    file: str
    root: str = ""
    fold: int = -1
    weight: float = 1.0
    more_than: int = 0
    at_most: int = 0


@dataclass(frozen=True)
class DevSetConfig:
    """The development set that validation ranks: in the challenge's layout, or a table.

    Args:
        eval_root: folder that the image paths of both tables are relative to.
        gallery: csv with the columns seller_img_id, img_path, product_id.
        queries: csv with the columns user_img_id, img_path, bbox_x, …, bbox_h, product_id.
        table: instead of these, a dataset_info.csv or folds.csv, of which the held-out rows are
            ranked: queries against gallery where evaluation_status says so, else each photo
            against all others.
        root: folder that the table's paths are relative to; empty is its own.
        fold: of a folds.csv, the fold that is held out; -1 for the rows that always test.
    """

    eval_root: str = "dataset/development_test_data"
    gallery: str = "gallery.csv"
    queries: str = "queries.csv"
    table: str = ""
    root: str = ""
    fold: int = -1


@dataclass(frozen=True)
class SamplerConfig:
    """Which photos meet in a batch.

    Args:
        kind: shuffle; m-per-class for pair losses; size-balanced draws small classes more often.
        images_per_class: of m-per-class, photos of a class in a batch.
        size_power: of size-balanced, a class is drawn in proportion to its size to this power.
    """

    kind: Literal["shuffle", "m-per-class", "size-balanced"] = "shuffle"
    images_per_class: int = 2
    size_power: float = 0.5


@dataclass(frozen=True)
class MixingConfig:
    """Two photos in one, with both labels.

    Args:
        kind: none, mixup (blended), cutmix (a patch of the other), or both in turn.
        alpha: of the beta distribution that the share is drawn from.
        probability: share of the batches that are mixed, 0..1.
    """

    kind: Literal["none", "mixup", "cutmix", "both"] = "none"
    alpha: float = 0.4
    probability: float = 1.0


@dataclass(frozen=True)
class DatasetConfig:
    """The photos, and how they reach the model.

    Args:
        product10k: the training photos.
        tables: further training photos.
        dev_set: the photos that validation ranks.
        train_on_test: train on Product10K's test photos too; the run's report says so.
        seed: of every random draw of the run.
        num_of_classes: of Product10K: at least its highest class plus one.
        max_classes: train on so many classes of all data sets together, drawn at random; 0 on all.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and in the submission; 0 is as in training.
            Convolutional networks gain from a somewhat larger one (Touvron et al. 2019).
        batch_size: photos a step and process.
        sampler: which photos meet in a batch.
        augmentations: of the training photos.
        augmentations_valid: none, since validation is what the submission does.
        random_erasing: share of the training photos with an erased rectangle, 0..1.
        mixing: mixup or cutmix.
        num_workers: processes that read training photos; 0 reads them in the training process.
        max_broken_share: stop when more of the photos read than this share cannot be read, 0..1.
    """

    product10k: Product10KConfig = field(default_factory=Product10KConfig)
    tables: tuple[TableConfig, ...] = ()
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    train_on_test: bool = False
    seed: int = 42
    num_of_classes: int = 9700
    max_classes: int = 0
    input_size: int = 224
    input_size_valid: int = 0
    batch_size: int = 48
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augmentations: Literal[
        "none", "flip", "plain", "autoaugment", "randaugment", "trivialaugment", "phone"
    ] = "autoaugment"
    augmentations_valid: Literal["none"] = "none"
    random_erasing: float = 0.0
    mixing: MixingConfig = field(default_factory=MixingConfig)
    num_workers: int = 8
    max_broken_share: float = 0.05
