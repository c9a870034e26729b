"""A trained image–text model from its run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visual_search.checkpoint import Checkpoint, load_checkpoint
from visual_search.dual_encoder import DualEncoder, TextArchitecture, rebuild_dual_encoder
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import UserError
from visual_search.images import ImageItem
from visual_search.model import Architecture, Embedder
from visual_search.pair_table import PairTable


@dataclass(frozen=True)
class TypedModel:
    """What a run learnt: photos and texts to one space."""

    encoder: DualEncoder
    """In evaluation mode."""
    input_size: int
    """Side in pixels at which photos are seen."""
    settings: EmbedSettings
    """How photos are embedded."""
    name: str
    """Of the run."""

    @property
    def photos(self) -> Embedder:
        """Pixels to unit vectors of the shared space."""
        return self.encoder.image_embedder()


def load_typed_model(source: Path, input_size: int = 0) -> TypedModel:
    """A run's best image–text model, on the CPU.

    Args:
        source: run folder or checkpoint folder.
        input_size: pixels at which photos are to be seen; 0 takes the model's own.

    Raises:
        UserError: when there is none, it is damaged, or was trained without texts.
    """
    found = load_checkpoint(source)
    text = _text_architecture(found)
    encoder = rebuild_dual_encoder(found.architecture, text, files=found.path.parent)
    try:
        encoder.load_state_dict(dict(found.state))
    except RuntimeError as error:
        raise UserError(f"{found.path} does not fit its model.json: {error}") from error
    settings = EmbedSettings.parsed(found.facts.get("embedding", {}), str(found.path))
    name = str(found.facts.get("run", source.name))
    return TypedModel(encoder.eval(), input_size or found.architecture.input_size, settings, name)


def load_image_side(found: Checkpoint) -> Embedder:
    """Pixels to unit vectors of the shared space, for commands that know images alone."""
    return load_typed_model(found.path.parent).photos


def run_settings(run: Path) -> dict[str, Any]:
    """The settings that a run was trained with, nested as in its YAML.

    Raises:
        UserError: when the folder holds none, or none of image–text training.
    """
    path = run / "config.yml"
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or "pairs" not in values.get("dataset", {}):
        raise UserError(f"{run} knows no texts: name a run of visual_search.main_clip")
    return values


def check_same(source: Path, visual: Architecture, text: TextArchitecture) -> Checkpoint:
    """A checkpoint to continue from, once its parts are those of the new phase.

    Raises:
        UserError: naming what differs.
    """
    found = load_checkpoint(source)
    earlier = _text_architecture(found)
    pairs: list[tuple[str, Any, Any]] = [
        ("backbone", found.architecture.backbone, visual.backbone),
        ("pooling", found.architecture.pooling, visual.pooling),
        ("head_conv", found.architecture.head_conv, visual.head_conv),
    ]
    for field in dataclasses.fields(TextArchitecture):
        if field.name != "tokens":
            pairs.append((field.name, getattr(earlier, field.name), getattr(text, field.name)))
    for part, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(
                f"pretrain_model {found.path} has {part} {theirs!r}, this phase {ours!r}"
            )
    return found


def _text_architecture(found: Checkpoint) -> TextArchitecture:
    values = found.facts.get("text")
    if not isinstance(values, dict):
        raise UserError(f"{found.path} knows no texts: name a run of visual_search.main_clip")
    try:
        return TextArchitecture(**{**values, "towers": tuple(values["towers"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"{found.path}: model.json describes no text tower: {error!r}") from error


def photo_items(table: PairTable) -> list[ImageItem]:
    """The photos of a table, to be embedded."""
    return [ImageItem(path) for path in table.paths]
