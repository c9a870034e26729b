"""Search by text: a trained image–text model, and a gallery that answers it.

search = TextSearch(load_text_model(Path("runs/demo_text")), gallery_images(Path("photos")))
search.images_for(["красный стул"], 10)[0]        # [Hit(place=…, score=…, label=…), …]
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.image_files import is_image
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.data.tables import image_items, read_gallery
from visual_search.model.checkpoint import Checkpoint, load_checkpoint
from visual_search.model.clip_folder import (
    MEAN,
    STD,
    clip_settings,
    is_clip_folder,
    open_clip_settings,
)
from visual_search.model.embedder import Architecture, Embedder, build_embedder, rebuild_embedder
from visual_search.model.patches import resized_state
from visual_search.ranking.embed import (
    Embeddings,
    default_device,
    embed_images,
    refuse_broken_model,
)
from visual_search.ranking.rank import UNUSED
from visual_search.ranking.search import top_k
from visual_search.ranking.store import model_folder, stored_features, weights_fingerprint
from visual_search.text.config import ProjectionConfig, TextConfig
from visual_search.text.encoder import (
    DualEncoder,
    network_facts,
    network_settings,
)
from visual_search.text.first_ru_clip import (
    TOKENS,
    first_ru_clip_state,
    is_first_ru_clip,
    load_first_ru_clip,
    visual_settings,
)
from visual_search.text.pairs import TEST, read_pairs


@dataclass(frozen=True)
class TextSearchModel:
    """What a run learnt: images and texts to one space."""

    encoder: DualEncoder
    """In evaluation mode."""
    architecture: Architecture
    """Of the visual tower: the same weights are another model with another activation."""
    input_size: int
    """Side in pixels at which images are seen."""
    settings: EmbedSettings
    """How images are embedded."""

    @property
    def embedder(self) -> Embedder:
        """Pixels to unit vectors of the shared space."""
        return self.encoder.image_embedder()

    def facts(self, part: nn.Module) -> tuple[str, dict[str, Any]]:
        """What embeddings depend on: the weights of a part of it, and the settings."""
        shape = self.architecture
        if shape.settings:  # they say all; the folder that they come from may move
            shape = dataclasses.replace(shape, backbone="clip")
        settings = {"size": self.input_size, **dataclasses.asdict(self.settings)}
        settings["architecture"] = dataclasses.asdict(shape)
        return weights_fingerprint(part.state_dict()), settings

    def embed_images(self, images: Sequence[ImageItem], part: str = "") -> Embeddings:
        """Images as unit vectors of the shared space; `part` of the whole is in the progress.

        Raises:
            UserError: when the model is broken.
        """
        device = default_device()
        self.encoder.to(device)
        label, settings = "images" + part, self.settings
        found = embed_images(
            self.embedder, images, self.input_size, device=device, settings=settings, label=label
        )
        refuse_broken_model(found.problems, len(images))
        return found


def load_text_model(source: Path, input_size: int = 0) -> TextSearchModel:
    """A run's best image–text model, or a CLIP as others trained it, on the CPU.

    Args:
        source: run folder or checkpoint folder; `open_clip/<architecture>/<tag>`; or a folder of
            :mod:`visual_search.model.clip_folder`.
        input_size: pixels; 0 takes the model's own.

    Raises:
        UserError: when there is none, it is damaged, or was trained without texts.
    """
    if source.parts[:1] == ("open_clip",) and not source.is_dir():
        return _pretrained(str(source), input_size)
    if is_first_ru_clip(source):
        return _first_ru_clip(source, input_size)
    if is_clip_folder(source):
        return _pretrained(f"clip/{source}", input_size)
    found = load_checkpoint(source)
    architecture, own = found.architecture, found.architecture.input_size
    size, width, state = input_size or own, architecture.dimension, dict(found.state)
    visual = rebuild_embedder(dataclasses.replace(architecture, input_size=size))
    encoder = DualEncoder(visual, width, *_settings(found), files=found.path.parent)
    try:
        encoder.load_state_dict(state if size == own else resized_state(state, encoder))
    except RuntimeError as error:
        raise UserError(f"{found.path} does not fit its model.json: {error}") from error
    settings = EmbedSettings.parsed(found.facts.get("embedding", {}), str(found.path))
    return TextSearchModel(encoder.eval(), architecture, size, settings.at(size, own))


def _pretrained(name: str, input_size: int) -> TextSearchModel:
    """Both towers of one CLIP, and nothing behind them."""
    library, _, model = name.partition("/")
    settings = clip_settings(Path(model)) if library == "clip" else open_clip_settings(model)
    size, width = input_size or settings["vision_cfg"]["image_size"], settings["embed_dim"]
    pixels: Any = (tuple(settings[key]) for key in ("mean", "std"))
    visual, architecture = build_embedder(BackboneConfig(name, "hub", *pixels), size)
    text, projection = TextConfig((name,), "hub"), ProjectionConfig("none", width)
    encoder = DualEncoder(visual, width, text, projection)
    return TextSearchModel(encoder.eval(), architecture, size, EmbedSettings())


def _first_ru_clip(folder: Path, input_size: int) -> TextSearchModel:
    state = first_ru_clip_state(folder)
    settings = visual_settings(state)
    size = input_size or int(settings["vision_cfg"]["image_size"])
    backbone = BackboneConfig(f"clip/{json.dumps(settings)}", "none", MEAN, STD)
    visual, architecture = build_embedder(backbone, size)
    text = TextConfig((f"hf/{folder}",), "none", tokens=TOKENS, pooling="end")
    projection = ProjectionConfig("ru-clip", len(state["neck.text.norm.bias"]))
    encoder = DualEncoder(visual, architecture.dimension, text, projection)
    load_first_ru_clip(encoder, folder)
    return TextSearchModel(encoder.eval(), architecture, size, EmbedSettings())


def load_image_side(found: Checkpoint, input_size: int = 0) -> Embedder:
    """Pixels to unit vectors of the shared space, for commands that know images alone."""
    return load_text_model(found.path.parent, input_size).embedder


def check_same(
    source: Path, visual: Architecture, text: TextConfig, projection: ProjectionConfig
) -> Checkpoint:
    """A checkpoint to continue from, once its parts are those of the new phase.

    Raises:
        UserError: naming what differs.
    """
    found = load_checkpoint(source)
    theirs, ours = network_facts(*_settings(found)), network_facts(text, projection)
    parts = [(part, theirs[part], ours[part]) for part in ours if part != "tokens"]
    for part in ("backbone", "pooling", "layers", "head_conv"):
        parts.append((part, getattr(found.architecture, part), getattr(visual, part)))
    for part, one, other in parts:
        if one != other:
            raise UserError(f"pretrain_model {found.path} has {part} {one!r}, this phase {other!r}")
    return found


def _settings(found: Checkpoint) -> tuple[TextConfig, ProjectionConfig]:
    values = found.facts.get("text")
    if not isinstance(values, dict):
        raise UserError(f"{found.path} knows no texts: name a run of visual_search.main_clip")
    try:
        return network_settings(values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{found.path}: model.json describes no text tower: {error!r}") from error


@dataclass(frozen=True)
class Hit:
    """One answer."""

    place: int
    """Row of the image in the gallery, or of the name in the list."""
    label: str
    """The image's path, or the name."""
    score: float
    """Cosine, -1..1."""


class TextSearch:
    """A gallery that answers queries typed as text; its images are embedded once."""

    def __init__(
        self, model: TextSearchModel, gallery: Sequence[ImageItem], cache: Path | None = None
    ) -> None:
        """Damaged images have a place, are listed in `problems`, and answer nothing.

        `cache` is the folder where embeddings are kept for the next time.
        """
        self.model, self.gallery = model, list(gallery)
        if cache is None:
            found = model.embed_images(self.gallery)
            self.vectors: Tensor = found.matrix
            """`(n, d)`, unit vectors."""
            self.problems = found.problems
        else:
            folder = model_folder(cache, *model.facts(model.embedder))
            stored = stored_features(folder, self.gallery, model.embed_images)
            self.vectors, self.problems = stored.matrix, stored.problems(self.gallery)

    def images_for(self, queries: Sequence[str], count: int = 10) -> list[list[Hit]]:
        """The gallery images nearest to each query as typed, best first: `count`, or all there are.

        Raises:
            UserError: for an empty query, or where no image can be read.
        """
        if not all(query.strip() for query in queries):
            raise UserError("an empty query finds nothing: type a word or more")
        lost = unread(self.problems)
        rows = [row for row, item in enumerate(self.gallery) if str(item.path) not in lost]
        if not rows:
            path, reason = next(iter(lost.items()))
            raise UserError(f"no image of the gallery can be read, for example {path}: {reason}")
        vectors = self.model.encoder.embed_texts(list(queries))
        labels = [str(self.gallery[row].path) for row in rows]
        found = nearest(vectors, self.vectors[rows], labels, count)
        return [[dataclasses.replace(hit, place=rows[hit.place]) for hit in hits] for hits in found]


def unread(problems: Sequence[ImageProblem]) -> dict[str, str]:
    """Of which images nothing is used, by path, and why."""
    return {
        one.path: one.reason.rpartition(";")[0] for one in problems if one.reason.endswith(UNUSED)
    }


def nearest(asked: Tensor, answers: Tensor, labels: Sequence[str], count: int) -> list[list[Hit]]:
    """The `count` nearest of `answers` `(n, d)` to each row of `asked` `(m, d)`, best first."""
    scores, rows = top_k(asked.float(), answers, count)
    return [
        [Hit(row, labels[row], score) for row, score in zip(places, values, strict=True)]
        for places, values in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def gallery_images(source: Path) -> list[ImageItem]:
    """The images of a gallery: a folder, a `gallery.csv`, or a table of pairs (its test rows).

    Raises:
        UserError: when there is no image.
    """
    if source.is_dir():
        return [ImageItem(path) for path in images_in(source, "**/*")]
    if source.suffix == ".parquet":
        return read_pairs(source, TEST).items()
    if source.suffix == ".csv":
        return image_items(read_gallery(source), source.parent)
    raise UserError(f"{source} is no gallery: name a folder, a gallery.csv or a pairs.parquet")


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The images among a folder's files of a pattern, by content, in the order of their names.

    Other files are counted in a line on stdout.

    Raises:
        UserError: when none of them is an image.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        if is_image(path):
            images.append(path)
        else:
            others[path.suffix.lower() or "without an ending"] += 1
    counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
    if not images:
        raise UserError(
            f"{folder} holds no image" + (f", but other files: {counts}" * bool(others))
        )
    if others:
        print(f"{folder}: {len(images)} images; passed over, as they are no images: {counts}")
    return images
