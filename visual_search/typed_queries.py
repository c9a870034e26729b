"""From typed queries to ranked gallery photos, and from photos to names.

search = TypedSearch(load_typed_model(Path("runs/demo_text")), gallery_photos(Path("photos")))
search.photos_for(["красный стул"], 10)[0]        # [Hit(place=…, score=…, label=…), …]
name_photos(search.model, [ImageItem(Path("a.jpg"))], ["стул", "стол"], 2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from visual_search.contact_sheet import Cell
from visual_search.embed import Embeddings, default_device, embed_images
from visual_search.embedding_cache import cached_embeddings, embeddings_fingerprint
from visual_search.errors import UserError
from visual_search.feature_store import weights_fingerprint
from visual_search.images import ImageItem
from visual_search.pair_table import read_pairs
from visual_search.prompts import embed_names, language_of_names, templates_for
from visual_search.search import top_k
from visual_search.tables import image_items, read_gallery
from visual_search.typed_model import TypedModel
from visual_search.zero_shot import SUFFIXES


@dataclass(frozen=True)
class Hit:
    """One answer."""

    place: int
    """Row of the photo in the gallery, or of the name in the list."""
    label: str
    """The photo's path, or the name."""
    score: float
    """Cosine, -1..1."""


class TypedSearch:
    """A gallery that answers typed queries; its photos are embedded once."""

    def __init__(
        self,
        model: TypedModel,
        gallery: Sequence[ImageItem],
        cache: Path | None = None,
        progress: bool = True,
    ) -> None:
        """
        Args:
            model: photos and texts to one space.
            gallery: its photos; damaged ones have a place and are told in `problems`.
            cache: folder where their embeddings are kept for the next time.
            progress: whether there are progress bars.
        """
        self.model, self.gallery, self.progress = model, list(gallery), progress
        if cache is None:
            found = self._embedded()
        else:
            settings = {"size": model.input_size, **dataclasses.asdict(model.settings)}
            weights = weights_fingerprint(model.photos.state_dict())
            key = embeddings_fingerprint(weights, self.gallery, settings)
            found, _ = cached_embeddings(cache, key, self._embedded)
        self.vectors: Tensor = found.matrix
        """`(n, d)`, unit vectors."""
        self.problems = found.problems

    def photos_for(self, queries: Sequence[str], count: int = 10) -> list[list[Hit]]:
        """The gallery photos nearest to each query, best first.

        Args:
            queries: as typed.
            count: photos a query; fewer where the gallery is smaller.

        Raises:
            UserError: for an empty query.
        """
        for query in queries:
            if not query.strip():
                raise UserError("an empty query finds nothing: type a word or more")
        vectors = self.model.encoder.embed_texts(list(queries))
        return nearest(vectors, self.vectors, [str(i.path) for i in self.gallery], count)

    def _embedded(self) -> Embeddings:
        return embedded_photos(self.model, self.gallery, "gallery", self.progress)


def name_photos(
    model: TypedModel,
    photos: Sequence[ImageItem],
    names: Sequence[str],
    count: int = 5,
    progress: bool = True,
) -> list[list[Hit]]:
    """The names nearest to each photo, best first.

    Args:
        model: photos and texts to one space.
        photos: any.
        names: candidates, in one language.
        count: names a photo.
        progress: whether there is a progress bar.
    """
    vectors = embedded_photos(model, photos, "photos", progress).matrix
    templates = templates_for(language_of_names(names))
    return nearest(vectors, embed_names(model.encoder, names, templates), names, count)


def embedded_photos(
    model: TypedModel, photos: Sequence[ImageItem], label: str, progress: bool = True
) -> Embeddings:
    """Photos as unit vectors of the space shared with texts."""
    device = default_device()
    model.encoder.to(device)
    return embed_images(
        model.photos,
        photos,
        model.input_size,
        device=device,
        settings=model.settings,
        label=label,
        progress=progress,
    )


def nearest(asked: Tensor, answers: Tensor, labels: Sequence[str], count: int) -> list[list[Hit]]:
    """The `count` nearest of `answers` `(n, d)` to each row of `asked` `(m, d)`, best first."""
    scores, rows = top_k(asked.float(), answers, count)
    return [
        [Hit(row, labels[row], score) for row, score in zip(places, values, strict=True)]
        for places, values in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def gallery_photos(source: Path) -> list[ImageItem]:
    """The photos of a gallery: a folder, a `gallery.csv`, or a table of pairs (its test rows).

    Raises:
        UserError: when there is no photo.
    """
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"the folder {source} holds no photo")
        return [ImageItem(path) for path in found]
    if source.suffix == ".parquet":
        return [ImageItem(path) for path in read_pairs(source, "test").paths]
    if source.suffix == ".csv":
        return image_items(read_gallery(source), source.parent)
    raise UserError(f"{source} is no gallery: name a folder, a gallery.csv or a pairs.parquet")


def sheet_rows(hits: Sequence[Sequence[Hit]], captions: Sequence[str]) -> list[list[Cell]]:
    """Rows for a contact sheet: the query stands under its first photo, above the score."""
    return [
        [
            Cell(
                Path(hit.label),
                f"{captions[row]}\n" * (place == 0) + f"{hit.score:.3f}",
                "gainsboro",
            )
            for place, hit in enumerate(found)
        ]
        for row, found in enumerate(hits)
    ]
