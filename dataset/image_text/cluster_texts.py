"""Step 4: clusters of queries, for a projection each, and for batches of images that are alike.

python dataset/image_text/cluster_texts.py fit X.pairs.parquet
python dataset/image_text/cluster_texts.py assign X.pairs.parquet
python dataset/image_text/cluster_texts.py predict X.clusters "белый стол" "desk lamp"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.options import parsed
from visual_search.common.errors import run_command

if TYPE_CHECKING:
    import jsonargparse

    from visual_search.text.clusters import ClusterReport, TextClusters
    from visual_search.text.config import ClusterConfig

REPORT, PAGE, MAP = "report.json", "report.html", "map.png"


def clusters_folder(pairs: Path) -> Path:
    """`X.clusters` for `X.pairs.parquet`."""
    return pairs.with_name(f"{pairs.name.removesuffix('.parquet').removesuffix('.pairs')}.clusters")


def build_parser() -> jsonargparse.ArgumentParser:
    """Of the three commands."""
    import jsonargparse

    from visual_search.text.config import ClusterConfig

    parser = jsonargparse.ArgumentParser(
        prog="cluster_texts.py", description="Clusters of queries.", exit_on_error=False
    )
    commands = parser.add_subcommands()

    def command(name: str, description: str) -> jsonargparse.ArgumentParser:
        made = jsonargparse.ArgumentParser(description=description, exit_on_error=False)
        commands.add_subcommand(name, made, help=description)
        return made

    fit = command(
        "fit",
        "Cluster the frequent n-grams of the training queries; write the clusters, a report and a "
        "map.",
    )
    fit.add_argument("pairs", type=Path, help="X.pairs.parquet of text_cleaning.py")
    fit.add_argument("--config", action="config", help="config/image_text/clusters.yml")
    fit.add_argument("--output", type=Path | None, help="folder (default: X.clusters)")
    fit.add_class_arguments(ClusterConfig)
    assign = command(
        "assign",
        "Add to a table of pairs the cluster of each query and of each image. Killed, the same "
        "command goes on where it was.",
    )
    assign.add_argument("pairs", type=Path, help="X.pairs.parquet")
    assign.add_argument("--clusters", type=Path | None, help="folder (default: X.clusters)")
    assign.add_argument("--output", type=Path | None, help="table (default: the same)")
    predict = command("predict", "Say which cluster queries belong to.")
    predict.add_argument("clusters", type=Path, help="X.clusters")
    predict.add_argument("queries", type=str, nargs="+", help="as typed")
    return parser


def fit(pairs: Path, folder: Path, config: ClusterConfig) -> tuple[TextClusters, ClusterReport]:
    """Cluster the training queries of a table, and write everything that `fit` writes.

    Raises:
        UserError: when it is no such table, or too small.
    """
    from dataset.image_text.clusters import draw_map, write_report
    from dataset.image_text.text_statistics import TopNgrams
    from visual_search.common.files import write_json
    from visual_search.text.clusters import fit_clusters
    from visual_search.text.pairs import TRAIN, open_pairs

    file = open_pairs(pairs)
    top = TopNgrams(config.ngram, max(1_000_000, 5 * config.max_ngrams), shorter=True)
    for batch in file.iter_batches(10_000, columns=["texts", "split"]):
        rows = zip(batch["texts"].to_pylist(), batch["split"].to_pylist(), strict=True)
        top.add(text for texts, split in rows if split == TRAIN for text in texts)
    clusters, report = fit_clusters(top.most_common(config.max_ngrams), config)
    clusters.save(folder, config)
    write_json(folder / REPORT, {"names": clusters.names} | asdict(report))
    draw_map(folder / MAP, clusters, config.seed)
    write_report(folder / PAGE, pairs.name, clusters, report, folder / MAP)
    return clusters, report


def main() -> None:
    """Run one of the three."""
    values = parsed(build_parser())
    name = values["subcommand"]
    steps: dict[str, Callable[..., None]] = {"fit": _fit, "assign": _assign, "predict": _predict}
    steps[name](**values[name])


def _fit(pairs: Path, output: Path | None, config: object, **rules: Any) -> None:
    from visual_search.text.config import ClusterConfig

    folder = output or clusters_folder(pairs)
    clusters, report = fit(pairs, folder, ClusterConfig(**rules))
    columns = zip(clusters.names, report.sizes, report.silhouettes, strict=True)
    for number, (name, size, silhouette) in enumerate(columns):
        print(f"{number:3d} {size:6d} n-grams, silhouette {silhouette:+.3f}: {name}")
    accuracy = "" if report.accuracy is None else f", held-out accuracy {report.accuracy:.3f}"
    print(
        f"{folder}: {clusters.count} clusters of {report.ngrams} n-grams, silhouette "
        f"{report.silhouette:.3f}{accuracy}; {PAGE}, {MAP}"
    )
    print(f"next: python dataset/image_text/cluster_texts.py assign {pairs}")


def _assign(pairs: Path, clusters: Path | None, output: Path | None) -> None:
    from dataset.image_text.clusters import assign

    sizes = assign(pairs, clusters or clusters_folder(pairs), output or pairs)
    print(f"{output or pairs}: images of clusters 0, 1, …: {', '.join(map(str, sizes))}")


def _predict(clusters: Path, queries: list[str]) -> None:
    from dataset.image_text.text_normalization import clean, language_of
    from visual_search.text.clusters import TextClusters

    known = TextClusters.load(clusters)
    found = known.predict([clean(query, language_of(query)) for query in queries])
    for query, number in zip(queries, found.tolist(), strict=True):
        print(f"{number}\t{known.names[number]}\t{query}")


if __name__ == "__main__":
    run_command(main)
