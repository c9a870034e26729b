"""What can be configured: frozen dataclasses, read from YAML and the command line.

Only this module and the entry points know jsonargparse; all below takes plain values.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from visual_search.errors import UserError


@dataclass(frozen=True)
class Product10KConfig:
    """Where Product10K, or a data set in its layout, lies.

    Args:
        train_valid_root: folder of the lists and of the photo folders.
        train_prefix: folder of the training photos.
        train_list: csv with the columns name, class.
        val_prefix: folder of the test photos.
        val_list: csv of the test photos, with the same columns.
    """

    train_valid_root: str = "dataset/Product10K"
    train_prefix: str = "train"
    train_list: str = "train.csv"
    val_prefix: str = "test"
    val_list: str = "test_kaggletest.csv"


@dataclass(frozen=True)
class DevSetConfig:
    """The development set that validation ranks, in the challenge's layout.

    Args:
        eval_root: folder that the image paths of both tables are relative to.
        gallery: csv with the columns seller_img_id, img_path, product_id.
        queries: csv with the columns user_img_id, img_path, bbox_x, …, bbox_h, product_id.
    """

    eval_root: str = "dataset/development_test_data"
    gallery: str = "gallery.csv"
    queries: str = "queries.csv"


@dataclass(frozen=True)
class DatasetConfig:
    """The photos, and how they reach the model.

    Args:
        product10k: the training photos.
        dev_set: the photos that validation ranks.
        train_on_test: train on Product10K's test photos too; the run's report says so.
        seed: of every random draw of the run.
        num_of_classes: at least the highest class plus one.
        input_size: side of the model's input in training, in pixels.
        input_size_valid: the same in validation and in the submission; 0 is as in training.
            Convolutional networks gain from a somewhat larger one (Touvron et al. 2019).
        batch_size: photos a step and process.
        augmentations: of the training photos.
        augmentations_valid: none, since validation is what the submission does.
        num_workers: processes that read training photos; 0 reads them in the training process.
        max_broken_share: stop when more of the photos read than this share cannot be read, 0..1.
    """

    product10k: Product10KConfig = field(default_factory=Product10KConfig)
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    train_on_test: bool = False
    seed: int = 42
    num_of_classes: int = 9700
    input_size: int = 224
    input_size_valid: int = 0
    batch_size: int = 48
    augmentations: Literal["none", "flip", "autoaugment", "phone"] = "autoaugment"
    augmentations_valid: Literal["none"] = "none"
    num_workers: int = 8
    max_broken_share: float = 0.05


@dataclass(frozen=True)
class BackboneConfig:
    """The network that sees the photo.

    Args:
        name: timm/<model>, or open_clip/<architecture>/<tag>.
        weights: hub, hub:<tag>, none, package:efficientnet_lite0, or a state-dict file.
        mean: subtracted from pixels scaled to 0..1, RGB.
        std: divides them after that, RGB.
        drop_path: stochastic depth rate, 0..1, for timm models that know it.
        freeze_batchnorm: keep the running statistics of the pretrained batch norms.
        frozen_stages: how many stages from the stem on are not trained, for timm models; what
            they learnt serves as it is, and a step costs less.
    """

    name: str = "timm/tf_efficientnet_lite0"
    weights: str = "package:efficientnet_lite0"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    drop_path: float = 0.0
    freeze_batchnorm: bool = False
    frozen_stages: int = 0


@dataclass(frozen=True)
class NeckConfig:
    """Between backbone and embedding.

    Args:
        kind: none, or linear-bn for a projection with batch norm.
        dimension: width of the embedding; 0 keeps the backbone's.
    """

    kind: Literal["none", "linear-bn"] = "none"
    dimension: int = 0


@dataclass(frozen=True)
class MarginConfig:
    """Sub-centre ArcFace with a margin per class: m_c = low + span * minmax(n_c ** power).

    Args:
        centers: sub-centres of each class.
        scale: s, the radius of the sphere the logits live on.
        low: margin of the most frequent class, radians.
        span: what the rarest class has above it, radians.
        power: negative; how fast the margin falls with the class's photos.
        dropout: of the embedding in front of the head, 0..1.
        imprint: start the centres at the mean embeddings of their classes, not at random.
    """

    centers: int = 3
    scale: float = 30.0
    low: float = 0.05
    span: float = 0.45
    power: float = -0.25
    dropout: float = 0.2
    imprint: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, linear warm-up, cosine to zero.

    Args:
        head_lr: peak learning rate of head and neck.
        backbone_lr_ratio: the backbone's learning rate as a share of the head's.
        weight_decay: of matrices and kernels; biases and norms have none.
        warmup_steps: optimiser steps of the linear warm-up.
        gradient_clip: largest norm of the whole gradient; 0 does not clip.
    """

    head_lr: float = 3e-4
    backbone_lr_ratio: float = 0.01
    weight_decay: float = 0.1
    warmup_steps: int = 4500
    gradient_clip: float = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        epochs: passes over the training photos.
        accumulate: batches an optimiser step.
        precision: no is fp32; bf16 and fp16 are mixed.
        channels_last: memory order of the convolutions.
        compile: run the model through torch.compile.
        validate_every: epochs between two validations; the last epoch is always validated.
    """

    epochs: int = 3
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    compile: bool = False
    validate_every: int = 1


@dataclass(frozen=True)
class PhaseConfig:
    """One training phase.

    Args:
        dataset: photos and how they are read.
        backbone: the network.
        neck: projection behind it.
        margin: the classification head.
        optim: optimiser and schedule.
        train: the loop.
        pretrain_model: run folder, .safetensors checkpoint or TorchScript export to start from.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrain_model: str | None = None


def parse_phase(
    parser: jsonargparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[jsonargparse.Namespace, PhaseConfig, str]:
    """Add the phase's options to `parser` and parse.

    Returns:
        The other arguments of `parser`; the phase; and its YAML, complete with defaults.

    Raises:
        UserError: naming file and key, for a key nobody knows or a value of a wrong type.
    """
    parser.exit_on_error = False
    parser.add_argument("--config", action="config", help="YAML file; several merge left to right")
    for part in dataclasses.fields(PhaseConfig):
        kind: Any = typing.get_type_hints(PhaseConfig)[part.name]
        if dataclasses.is_dataclass(kind):
            default = typing.cast(Any, kind)()
            parser.add_argument(f"--{part.name}", type=kind, default=default, sub_configs=True)
        else:
            parser.add_argument(
                f"--{part.name}", type=kind, default=part.default, help=_described(part.name)
            )
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    origins: dict[str, Path] = {}
    for path in _config_files(arguments):
        origins.update(_checked_keys(path, PhaseConfig))
    try:
        parsed = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(_with_origin(str(error), origins)) from error
    made = parser.instantiate(parsed)
    phase = PhaseConfig(**{part.name: made[part.name] for part in dataclasses.fields(PhaseConfig)})
    return made, phase, yaml.safe_dump(dataclasses.asdict(phase), sort_keys=False)


def read_backbone(path: Path) -> BackboneConfig:
    """A backbone from its own file, such as `config/backbone/efficientnet_lite0.yml`.

    Raises:
        UserError: naming file and key.
    """
    _checked_keys(path, BackboneConfig)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=BackboneConfig, sub_configs=True)
    try:
        parsed = parser.parse_args([f"--backbone={path}"])
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(f"{path}: {_last_cause(str(error))}") from error
    return parser.instantiate(parsed).backbone


def _described(name: str) -> str:
    match = re.search(rf"^\s*{name}: (.+)$", PhaseConfig.__doc__ or "", re.MULTILINE)
    return match.group(1) if match else name


def _config_files(arguments: Sequence[str]) -> list[Path]:
    files = []
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            files.append(Path(arguments[position + 1]))
        elif argument.startswith("--config="):
            files.append(Path(argument.partition("=")[2]))
    return files


def _checked_keys(path: Path, kind: Any, prefix: str = "") -> dict[str, Path]:
    """The file each dotted key comes from; refuses keys that `kind` does not have."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"the config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config {path} is not valid YAML: {error}") from error
    return _walk(path, values, kind, prefix)


def _walk(path: Path, values: Any, kind: Any, prefix: str) -> dict[str, Path]:
    if not isinstance(values, dict):
        place = f"{path}: {prefix.rstrip('.')}" if prefix else f"the config {path}"
        raise UserError(f"{place} must be a table of keys and values, not {values!r}")
    hints = typing.get_type_hints(kind)
    origins: dict[str, Path] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise UserError(f"{path}: unknown key '{prefix}{key}'; {advice}")
        origins[f"{prefix}{key}"] = path
        if not dataclasses.is_dataclass(hints[key]):
            continue
        if isinstance(value, str):  # a part in its own file, named relative to this one
            origins |= _checked_keys(path.parent / value, hints[key], f"{prefix}{key}.")
        else:
            origins |= _walk(path, value, hints[key], f"{prefix}{key}.")
    return origins


def _with_origin(message: str, origins: dict[str, Path]) -> str:
    message = _last_cause(message)
    found = re.search(r'key "([\w.]+)"', message)
    if found and found.group(1) in origins:
        return f"{origins[found.group(1)]}: {message}"
    return message


def _last_cause(message: str) -> str:
    """The innermost of jsonargparse's nested messages, on one line."""
    _, key, cause = message.rpartition("Parser key ")
    return " ".join((key + cause).replace("Parser key", "key").split())
