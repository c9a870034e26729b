"""The cluster of each query and image, added to a table of pairs; the report and map of a fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.figure import Figure

from dataset.dataset_creation_steps.snapshots import (
    fingerprint,
    read_rows,
    read_snapshot,
    source_of,
    write_snapshot,
)
from visual_search.common.files import write_figure, written_atomically
from visual_search.common.page import Section, write_page
from visual_search.common.progress import progress_bar
from visual_search.data.leak_record import fingerprint as file_fingerprint
from visual_search.text.clusters import FACTS, MODEL, ClusterReport, TextClusters
from visual_search.text.pairs import CLUSTER_FIELDS, SCHEMA, open_pairs

CLUSTERED = pa.schema([*SCHEMA, *CLUSTER_FIELDS])


def assign(pairs: Path, clusters: Path, output: Path, piece_images: int = 10_000) -> list[int]:
    """Write the table of pairs with the columns `clusters` and `cluster`; images of each cluster.

    Pieces that are done lie beside the output, which may be the same table, until all are.

    Raises:
        UserError: when table or clusters are missing or none of the kind.
    """
    rows = open_pairs(pairs).metadata.num_rows
    known = TextClusters.load(clusters)
    source = fingerprint(
        file_fingerprint(pairs), *(file_fingerprint(clusters / name) for name in (MODEL, FACTS))
    )
    work = output.with_name(f".{output.name}.clusters")
    work.mkdir(parents=True, exist_ok=True)
    starts = range(0, rows, piece_images)
    sizes = np.zeros(known.count, dtype=np.int64)
    with progress_bar("clustering", "image", total=rows) as bar:
        for start in starts:
            path = work / f"{start}.piece"
            # A piece of another table or other clusters is done again.
            if not path.is_file() or source_of(path) != source:
                table = read_rows(pairs, start, start + piece_images, SCHEMA.names)
                write_snapshot(path, clustered(table, known), source)
            bar.update(min(piece_images, rows - start))
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, CLUSTERED) as writer:
        for start in starts:
            table = read_snapshot(work / f"{start}.piece")
            writer.write_table(table.select(CLUSTERED.names).cast(CLUSTERED))
            sizes += np.bincount(table["cluster"].to_numpy(), minlength=known.count)
    shutil.rmtree(work)
    return sizes.tolist()


def clustered(table: pa.Table, clusters: TextClusters) -> pa.Table:
    """The rows with the cluster of each query, and that of the mean of an image's embeddings."""
    texts = table["texts"].to_pylist()
    ends = np.cumsum([len(row) for row in texts])[:-1]
    vectors = clusters.encoder.encode([text for row in texts for text in row])
    of_queries = np.split(clusters.predict_vectors(vectors), ends)
    means = np.stack([rows.mean(axis=0) for rows in np.split(vectors, ends)])
    columns = ([row.tolist() for row in of_queries], clusters.predict_vectors(means).tolist())
    for field, column in zip(CLUSTER_FIELDS, columns, strict=True):
        table = table.append_column(pa.field(*field), pa.array(column, field[1]))
    return table


MAP_POINTS = 3000
LABELLED = 30
"""Clusters whose names are written on the map, the largest."""


def map_places(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Places in the plane where near vectors stay near, `(n, 2)`: t-SNE (van der Maaten 2008)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    few = min(50, *vectors.shape)
    reduced = PCA(few, random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # A thousand steps of a millisecond each: threads that wait for one another take far longer
    # where somebody else has a core.
    with threadpool_limits(1):
        found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return np.asarray(found)


def draw_map(path: Path, clusters: TextClusters, seed: int) -> None:
    """A point for each n-gram (of a sample, where there are many), coloured by cluster."""
    rows = np.random.default_rng(seed).permutation(len(clusters.vectors))[:MAP_POINTS]
    labels = clusters.labels[rows]
    places = map_places(clusters.vectors[rows], seed)
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
    path: Path, name: str, clusters: TextClusters, report: ClusterReport, picture: Path
) -> None:
    """The page: sizes and silhouettes, examples, the map."""
    accuracy = "" if report.accuracy is None else f"{report.accuracy:.3f}"
    facts = {
        "n-grams": f"{report.ngrams:,}",
        "encoder": clusters.encoder.name,
        "silhouette": f"{report.silhouette:.3f}",
        "accuracy of the vote on held-out n-grams": accuracy,
    }
    silhouettes = [f"{silhouette:+.3f}" for silhouette in report.silhouettes]
    examples = [" · ".join(some) for some in report.examples]
    names, numbers = clusters.names, range(clusters.count)
    rows: list[tuple[object, ...]] = [
        ("", "name", "n-grams", "times in the texts", "silhouette", "most frequent"),
        *zip(numbers, names, report.sizes, report.weights, silhouettes, examples, strict=True),
    ]
    sections = [
        Section("In all", ["Silhouettes lie between -1 and 1; 1 is well apart."], facts),
        Section("Clusters", ["Named by the words that set them apart."], tables={"": rows}),
        Section("Map", ["Near points mean alike."], pictures={"": picture}),
    ]
    write_page(path, f"Clusters of the queries of {name}", sections)
