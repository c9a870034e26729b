"""What a fit of clusters is like, as a page with a map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from dataset.image_text.clusters import TextClusters
from visual_search.common.files import write_figure
from visual_search.common.page import Section, write_page

PAGE, MAP = "report.html", "map.png"
MAP_POINTS = 3000
LABELLED = 30
"""Clusters whose names are written on the map, the largest."""


def _draw_map(path: Path, clusters: TextClusters, seed: int) -> None:
    """A point for each n-gram (of a sample, where there are many), coloured by cluster.

    Near points mean alike: t-SNE (van der Maaten 2008).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = np.random.default_rng(seed).permutation(len(clusters.vectors))[:MAP_POINTS]
    labels = clusters.labels[rows]
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # A thousand steps of a millisecond each: threads that wait for one another take far longer
    # where somebody else has a core.
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        places = tsne.fit_transform(clusters.vectors[rows])
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots()
    strong_first = [*range(0, 20, 2), *range(1, 20, 2)]  # tab20 has ten pairs, strong and light
    colours = colormaps["tab20"](np.resize(strong_first, clusters.count))
    axes.scatter(places[:, 0], places[:, 1], c=colours[labels], s=12, linewidths=0)
    for number in range(min(clusters.count, LABELLED)):
        inside = places[labels == number]
        if len(inside):
            # At the place nearest to the median: it is one of the cluster's own.
            nearest = np.linalg.norm(inside - np.median(inside, axis=0), axis=1).argmin()
            frame = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": colours[number]}
            words, bbox = f"{number}: {clusters.names[number]}", frame | {"alpha": 0.85}
            place = tuple(inside[nearest])
            axes.annotate(words, place, fontsize=8, ha="center", va="center", bbox=bbox)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{len(rows)} n-grams of {clusters.count} clusters")
    write_figure(path, figure)


def write_report(
    folder: Path, name: str, clusters: TextClusters, report: dict[str, Any], seed: int
) -> None:
    """The page and the map of the clusters of the table `name`.

    `report` is that of :func:`dataset.image_text.clusters.fit_clusters`; `seed` is of the map.
    """
    _draw_map(folder / MAP, clusters, seed)
    facts = {
        "n-grams": f"{report['ngrams']:,}",
        "encoder": clusters.encoder.name,
        "silhouette": f"{report['silhouette']:.3f}",
    }
    if report["accuracy"] is not None:
        facts["accuracy of the vote on held-out n-grams"] = f"{report['accuracy']:.3f}"
    columns = [
        range(clusters.count),
        *(report[key] for key in ("names", "sizes", "weights")),
        [f"{value:+.3f}" for value in report["silhouettes"]],
        [" · ".join(texts) for texts in report["examples"]],
    ]
    heading = ("", "name", "n-grams", "times in the texts", "silhouette", "most frequent")
    sections = [
        Section("In all", ["Silhouettes lie between -1 and 1; 1 is well apart."], facts),
        Section(
            "Clusters",
            ["Named by the words that set them apart."],
            tables={"": [heading, *zip(*columns, strict=True)]},
        ),
        Section("Map", ["Near points mean alike."], pictures={"": folder / MAP}),
    ]
    write_page(folder / PAGE, f"Clusters of the queries of {name}", sections)
