"""Step 4: clusters of queries, for a projection each, and for batches of images that are alike.

python dataset/image_text/cluster_texts.py fit X.pairs.parquet
python dataset/image_text/cluster_texts.py assign X.pairs.parquet
python dataset/image_text/cluster_texts.py predict X.clusters "белый стол" "desk lamp"
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataset.options import parsed
from visual_search.common.errors import print_next, run_command
from visual_search.text.config import ClusterConfig

PIECE_IMAGES = 10_000


def clusters_folder(pairs: Path) -> Path:
    """`X.clusters` for `X.pairs.parquet`."""
    return pairs.with_name(f"{pairs.name.removesuffix('.parquet').removesuffix('.pairs')}.clusters")


def fit(pairs: Path, output: Path | None = None, **rules: Any) -> None:
    """Cluster the frequent n-grams of the training queries; write the clusters, a report and a map.

    Args:
        pairs: X.pairs.parquet of text_cleaning.py.
        output: folder; X.clusters when None.
        rules: fields of :class:`visual_search.text.config.ClusterConfig`.

    Raises:
        UserError: when it is no such table, or too small.
    """
    from dataset.image_text.cluster_report import MAP, PAGE, write_report
    from dataset.image_text.clusters import fit_clusters
    from dataset.image_text.text_statistics import TopNgrams
    from visual_search.common.files import write_json
    from visual_search.text.pairs import TRAIN, open_pairs

    config, folder = ClusterConfig(**rules), output or clusters_folder(pairs)
    top = TopNgrams(config.ngram, max(1_000_000, 5 * config.max_ngrams), shorter=True)
    for batch in open_pairs(pairs).iter_batches(10_000, columns=["texts", "split"]):
        rows = zip(batch["texts"].to_pylist(), batch["split"].to_pylist(), strict=True)
        top.add(text for texts, split in rows if split == TRAIN for text in texts)
    clusters, report = fit_clusters(top.most_common(config.max_ngrams), config)
    clusters.save(folder, config)
    write_json(folder / "report.json", report)
    write_report(folder, pairs.name, clusters, report, config.seed)
    columns = (report[key] for key in ("sizes", "silhouettes", "names"))
    for number, (size, silhouette, name) in enumerate(zip(*columns, strict=True)):
        print(f"{number:3d} {size:6d} n-grams, silhouette {silhouette:+.3f}: {name}")
    held_out = "" if report["accuracy"] is None else f", held-out accuracy {report['accuracy']:.3f}"
    print(
        f"{folder}: {clusters.count} clusters of {report['ngrams']} n-grams, silhouette "
        f"{report['silhouette']:.3f}{held_out}; {PAGE}, {MAP}"
    )
    print_next("dataset/image_text/cluster_texts.py", "assign", pairs)


def assign(pairs: Path, clusters: Path | None = None, output: Path | None = None) -> None:
    """Add to a table of pairs the cluster of each query and of each image.

    Killed, the same command goes on where it was.

    Args:
        pairs: X.pairs.parquet.
        clusters: folder; X.clusters when None.
        output: the table to write; the same when None.

    Raises:
        UserError: when table or clusters are missing or none of the kind.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import (
        fingerprint,
        read_rows,
        read_snapshot,
        source_of,
        write_snapshot,
    )
    from dataset.image_text.clusters import FACTS, MODEL, TextClusters, clustered
    from visual_search.common.files import written_atomically
    from visual_search.common.progress import progress_bar
    from visual_search.data.leak_record import fingerprint as file_fingerprint
    from visual_search.text.pairs import CLUSTER_FIELDS, SCHEMA, open_pairs

    rows, columns = open_pairs(pairs).metadata.num_rows, pa.schema([*SCHEMA, *CLUSTER_FIELDS])
    folder, output = clusters or clusters_folder(pairs), output or pairs
    known = TextClusters.load(folder)
    # A piece of another table or other clusters is done again.
    source = fingerprint(*map(file_fingerprint, (pairs, folder / MODEL, folder / FACTS)))
    work = output.with_name(f".{output.name}.clusters")
    work.mkdir(parents=True, exist_ok=True)
    pieces = [work / f"{start}.piece" for start in range(0, rows, PIECE_IMAGES)]
    with progress_bar("clustering", "piece", total=len(pieces)) as bar:
        for number, path in enumerate(pieces):
            if not path.is_file() or source_of(path) != source:
                start = number * PIECE_IMAGES
                table = read_rows(pairs, start, start + PIECE_IMAGES, SCHEMA.names)
                write_snapshot(path, clustered(table, known), source)
            bar.update()
    sizes = np.zeros(known.count, dtype=np.int64)
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, columns) as writer:
        for path in pieces:
            table = read_snapshot(path)
            writer.write_table(table.select(columns.names).cast(columns))
            sizes += np.bincount(table["cluster"].to_numpy(), minlength=known.count)
    shutil.rmtree(work)
    print(f"{output}: images of clusters 0, 1, …: {', '.join(map(str, sizes.tolist()))}")


def predict(clusters: Path, queries: list[str]) -> None:
    """Say which cluster queries belong to.

    Args:
        clusters: X.clusters.
        queries: as typed.
    """
    from dataset.image_text.clusters import TextClusters
    from dataset.image_text.text_normalization import clean, language_of

    known = TextClusters.load(clusters)
    found = known.predict([clean(query, language_of(query)) for query in queries])
    for query, number in zip(queries, found.tolist(), strict=True):
        print(f"{number}\t{known.names[number]}\t{query}")


def main() -> None:
    """Run one of the three, whose arguments are the command's."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="cluster_texts.py", description="Clusters of queries.", exit_on_error=False
    )
    commands = parser.add_subcommands()
    steps: dict[str, Callable[..., None]] = {"fit": fit, "assign": assign, "predict": predict}
    for name, step in steps.items():
        words = " ".join(str(step.__doc__).partition("Args:")[0].split())
        one = jsonargparse.ArgumentParser(description=words, exit_on_error=False)
        commands.add_subcommand(name, one, help=words)
        if step is fit:
            one.add_argument("--config", action="config", help="config/image_text/clusters.yml")
        one.add_function_arguments(step, as_group=False, as_positional=True, skip={"queries"})
        if step is predict:
            one.add_argument("queries", type=str, nargs="+", help="as typed")
    values = parsed(parser)
    name = values["subcommand"]
    values[name].pop("config", None)
    steps[name](**values[name])


if __name__ == "__main__":
    run_command(main)
