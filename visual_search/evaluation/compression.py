"""Embeddings of a run, and how much quality smaller ones keep: fewer dimensions, fewer bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.files import write_figure, write_json, write_text
from visual_search.common.page import markdown
from visual_search.config_reader import read_config
from visual_search.data.dev_sets import DevSet
from visual_search.data.factory import dev_set_of, training_images
from visual_search.data.images import ImageItem
from visual_search.evaluation.dev_set import precisions_of
from visual_search.model.checkpoint import load_checkpoint, save_checkpoint
from visual_search.model.embedder import Embedder, create_neck
from visual_search.model.projections import pca, project_features, start_neck
from visual_search.ranking.embed import default_device, refuse_broken_model
from visual_search.ranking.rank import MAX_PREDICTIONS, nearest_rows, trimmed, without_own
from visual_search.ranking.search import order_ties
from visual_search.ranking.store import Backbone, FeatureSource

TRAINING, GALLERY, QUERIES = "training images", "gallery images", "query images"
CODES = {"float16": "SQfp16", "int8": "SQ8", "binary": "RaBitQ"}
"""Two bytes, a byte or a bit a dimension (and 8 bytes a row of the last: Gao and Long, RaBitQ,
SIGMOD 2024), as faiss's index factory calls them. The queries stay in float32."""
CODINGS = ("float32", *CODES)


class Sides(NamedTuple):
    """Embeddings of one model: of the training images, and of both sides of a development set."""

    training: Tensor
    """`(n, dimension)`, unit vectors: what projections and scales are fitted to."""
    gallery: Tensor
    queries: Tensor

    @property
    def dimension(self) -> int:
        """Width of the embeddings."""
        return self.training.shape[1]

    def reduced(self, dimension: int, method: str = "pca") -> Sides:
        """Fewer dimensions.

        Args:
            dimension: how many.
            method: prefix, the first ones; or fitted to the training images' embeddings: pca, or
                umap (McInnes et al. 2018), which keeps neighbours and no distances.
        """
        if method == "prefix":
            made = [side[:, :dimension] for side in self]
        elif method == "umap":
            from umap import UMAP

            fitted = UMAP(n_components=dimension, metric="cosine", random_state=0)
            places = torch.from_numpy(fitted.fit_transform(self.training.numpy()))
            others = (torch.from_numpy(fitted.transform(side.numpy())) for side in self[1:])
            made = [side - places.mean(dim=0) for side in (places, *others)]
        else:
            weight, bias = pca(self.training, dimension)
            made = [side @ weight.T + bias for side in self]
        return Sides(*(F.normalize(side, dim=1) for side in made))


def points_of(
    source: str, sides: Sides, dimensions: Iterable[int], dev_set: DevSet, method: str = "pca"
) -> Iterator[dict[str, Any]]:
    """What every dimension scores in every coding: a row of the table, of `bytes` an image.

    Args:
        source: of the embeddings, in words.
        sides: the embeddings at their full width, which is measured too.
        dimensions: to be measured; above the full width they are left out.
        dev_set: what is ranked.
        method: see :meth:`Sides.reduced`.
    """
    series = f"{source}, {'prefixes' if method == 'prefix' else method.upper()}"
    for dimension in sorted({min(d, sides.dimension) for d in (*dimensions, sides.dimension)}):
        small = sides.reduced(dimension, method) if dimension < sides.dimension else sides
        for coding in CODINGS:
            size, ranks = coded_ranks(coding, small, dev_set.own)
            score = float(precisions_of(dev_set, ranks).mean())
            place = {"series": series, "dimension": dimension, "coding": coding, "bytes": size}
            yield {**place, "mAP": round(score, 6)}


def coded_ranks(coding: str, sides: Sides, own: np.ndarray | None) -> tuple[int, np.ndarray]:
    """Rank a gallery that is stored in short codes, which are fitted to the training images.

    Args:
        coding: one of :data:`CODINGS`.
        sides: the embeddings.
        own: where the queries are rows of the gallery, which: it is left out.

    Returns:
        Bytes of a gallery image, and gallery rows as of
        :func:`visual_search.ranking.rank.nearest_rows`.
    """
    if coding == "float32":
        return 4 * sides.dimension, nearest_rows(sides.queries, sides.gallery, own=own)

    import faiss

    index = faiss.index_factory(sides.dimension, CODES[coding], faiss.METRIC_INNER_PRODUCT)
    index.train(sides.training.numpy())
    index.add(sides.gallery.numpy())
    width = min(MAX_PREDICTIONS + (own is not None), len(sides.gallery))
    scores, rows = map(torch.from_numpy, index.search(sides.queries.numpy(), width))
    order_ties(scores, rows)
    ranks = rows.numpy()
    return index.sa_code_size(), ranks if own is None else without_own(ranks, own)


def write_points(points: Sequence[Mapping[str, Any]], folder: Path, title: str) -> Path:
    """Write `compression.json`, `compression.md` and `compression.png`; returns the picture."""
    from matplotlib.figure import Figure

    write_json(folder / "compression.json", {"title": title, "points": points})
    head = ["embedding", "dimensions", "stored as", "bytes", "mAP"]
    cells = [[*{**point, "mAP": f"{point['mAP']:.4f}"}.values()] for point in points]
    write_text(folder / "compression.md", markdown([head, *cells]) + "\n")
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = dict(zip(CODINGS, ("-o", "--s", "-^", ":v"), strict=True))
    table = pd.DataFrame(points)
    for number, (series, rows) in enumerate(table.groupby("series", sort=False)):
        for coding, line in rows.groupby("coding", sort=False):
            axes.plot(
                line["bytes"],
                line["mAP"],
                styles[str(coding)],
                color=f"C{number}",
                label=f"{series}, {coding}",
                markersize=4,
                linewidth=1,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="bytes of a gallery image", ylabel="mAP", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    write_figure(folder / "compression.png", figure)
    return folder / "compression.png"


class RunEmbeddings:
    """Reads a run's config and best model; embeds through the store of features."""

    def __init__(self, run: Path) -> None:
        """
        Args:
            run: a run folder.

        Raises:
            UserError: when it has no config or no model, and for data that is not there.
        """
        self.run, self.config = run, read_config(run)
        self.checkpoint = load_checkpoint(run)
        self.architecture = self.checkpoint.architecture
        self.embedder = self.checkpoint.embedder()
        self.images = training_images(self.config.dataset)
        self.dev_set = dev_set_of(self.config.dataset.dev_set)
        self.nested = bool(self.config.margin.nested)
        """Whether prefixes of the embedding were trained."""

    def sides(self, *, of_backbone: bool = False) -> Sides:
        """Unit vectors of the run's own width, or of the features in front of its neck."""
        model: Embedder = Backbone(self.embedder)
        neck = self.embedder.neck
        if of_backbone:
            neck = nn.Identity()
        elif not self.config.embedding.is_plain:  # their mean is behind the neck
            model, neck = self.embedder, nn.Identity()
        device, own = default_device(), self.dev_set.own

        def of(side: str) -> Tensor:
            return project_features(neck.to(device), self._features(model, side), device)

        training, gallery = of(TRAINING), of(GALLERY)
        queries = of(QUERIES) if own is None else gallery[torch.from_numpy(own)]
        return Sides(training, gallery, queries)

    def write_smaller(self, dimension: int, of_backbone: bool, output: Path | None) -> Path:
        """Write a checkpoint of fewer dimensions.

        Args:
            dimension: of the embedding.
            of_backbone: project the backbone's features on their principal components; otherwise
                cut the run's embedding: take the first outputs of its neck.
            output: folder; None is the run's name with the width added.

        Raises:
            UserError: when the run's embedding cannot be cut, or not there.
        """
        folder = output or self.run.with_name(f"{self.run.name}_{dimension}")
        if folder.exists():
            raise UserError(f"{folder} exists already; name another --output")
        neck, kind = self.embedder.neck, self.architecture.neck
        if of_backbone:
            features, kind = self._features(Backbone(self.embedder), TRAINING), "norm-linear"
            neck = create_neck(kind, features.shape[1], dimension)
            start_neck(neck, features, weights=self.images.weights())
        elif not self.nested:
            raise UserError(
                f"{self.run} was not trained with margin.nested, so a cut embedding would be poor; "
                "train it so, or add --of-backbone"
            )
        elif not 0 < dimension < self.architecture.dimension:
            raise UserError(
                f"--write must be below the run's {self.architecture.dimension} dimensions"
            )
        else:
            state = {name: v[:dimension] if v.ndim else v for name, v in neck.state_dict().items()}
            width = next(m.in_features for m in neck.modules() if isinstance(m, nn.Linear))
            neck = create_neck(kind, width, dimension)
            neck.load_state_dict(state)
        self.embedder.neck = neck
        architecture = dataclasses.replace(self.architecture, neck=kind, dimension=dimension)
        facts = {**self.checkpoint.facts, "run": folder.name, "mAP": None}
        facts["cut_from"] = str(self.run)
        save_checkpoint(folder / "best", architecture, self.embedder.state_dict(), {}, facts)
        return folder

    def _features(self, model: Embedder, side: str) -> Tensor:
        cache, device = Path(self.config.train.feature_cache), default_device()
        source = FeatureSource(model, self.architecture, self.config.embedding, cache, device)
        items: Sequence[ImageItem] = self.dev_set.queries
        if side == TRAINING:
            items = [self.images.item(row) for row in range(len(self.images))]
        elif side == GALLERY:
            items = trimmed(self.dev_set.gallery, self.config.embedding)
        found = source.features(items, side)
        refuse_broken_model(found.problems(items), len(items))
        return found.matrix
