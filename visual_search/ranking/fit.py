"""A whitening fitted to images of the target domain, whose products nobody needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from visual_search.common.errors import UserError
from visual_search.common.model_config import EmbedSettings
from visual_search.data.datasets import read_training_table
from visual_search.data.images import ImageItem
from visual_search.data.schema import BOX_COLUMNS
from visual_search.data.tables import (
    LABELLED_PATH_COLUMNS,
    image_items,
    read_gallery,
    read_queries,
    read_table,
)
from visual_search.model.embedder import Architecture, Embedder
from visual_search.model.projections import fit_unlabelled
from visual_search.ranking.embed import default_device, embed_images
from visual_search.ranking.rank import too_many_unreadable, trimmed


def images_of(table: Path, settings: EmbedSettings) -> Sequence[ImageItem]:
    """The images of a gallery.csv, a queries.csv, or a table to train on, as they are embedded.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    columns = set(read_table(table, []).columns)
    if columns & set(LABELLED_PATH_COLUMNS):
        images = read_training_table(table)
        return [images.item(row) for row in range(len(images))]
    if set(BOX_COLUMNS) <= columns:
        return image_items(read_queries(table), table.parent)
    return trimmed(image_items(read_gallery(table), table.parent), settings)


def whiten(
    embedder: Embedder,
    architecture: Architecture,
    settings: EmbedSettings,
    tables: Sequence[Path],
    power: float,
    dimension: int,
    shrinkage: float,
) -> Architecture:
    """Fit a whitening to the images of some tables, and make it the neck of the embedder.

    Labels in the tables have no part in it; a whitening that a training left is replaced.

    Args:
        embedder: changed in place.
        architecture: its own.
        settings: how images are embedded; the whitening is fitted to each of the views.
        tables: as :func:`images_of` reads them.
        power: 0 keeps the variances, 1 makes them equal.
        dimension: of the embedding; 0 keeps its width.
        shrinkage: 0 or more; the more, the closer to no whitening.

    Returns:
        The architecture with the whitening.

    Raises:
        UserError: for an embedder with another neck, bad tables, unreadable images, and more
            dimensions than there are.
    """
    if architecture.neck not in ("none", "whitening"):
        raise UserError(
            f"the model has a neck {architecture.neck}, and a whitening takes its place: train "
            "one with neck.kind none, or leave --fit-on out"
        )
    items = [item for table in tables for item in images_of(table, settings)]
    device, size = default_device(), architecture.input_size
    embedder.neck = nn.Identity()
    found = embed_images(
        embedder.to(device).eval(),
        items,
        size,
        device=device,
        settings=settings,
        label="whitening",
        each_view=True,
    )
    if sentence := too_many_unreadable(found.problems, len(items)):
        raise UserError(sentence)
    views = torch.cat(found.matrix.chunk(len(settings.fits), dim=1))
    whitening = fit_unlabelled(views, dimension, power, shrinkage)
    embedder.neck = whitening
    instead = ", in place of the one that the model had" if architecture.neck != "none" else ""
    unread = f", {len(found.problems)} damaged" if found.problems else ""
    print(
        f"whitening: {views.shape[1]} to {whitening.projection.shape[1]} dimensions, "
        f"power {power:g}, fitted to {len(items)} images{unread}{instead}"
    )
    return architecture.whitened(whitening)
