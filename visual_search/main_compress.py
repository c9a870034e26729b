"""Measure mAP against bytes an image: `python -m visual_search.main_compress --run runs/X`."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from visual_search.common.errors import print_next, run_command
from visual_search.common.ranges import whole_number


def main() -> None:
    """Embed what the run trained on and is judged on; cut, project and encode; draw the curve."""
    options = build_parser().parse_args()

    from visual_search.evaluation.compression import RunEmbeddings, points_of, write_points
    from visual_search.evaluation.dev_set import unmatched_sentence

    run = RunEmbeddings(options.run)
    if options.write:
        written = run.write_smaller(options.write, options.of_backbone, options.output)
        print(f"wrote {written}")
        print_next("my_submission/to_torchscript.py", written)
        return
    if sentence := unmatched_sentence(run.dev_set):
        print(sentence)
    series = {options.run.name: run.sides()}
    if options.of_backbone:
        series["its backbone alone"] = run.sides(of_backbone=True)
    points = []
    for (source, sides), method in product(series.items(), dict.fromkeys(options.method)):
        cut = run.nested and method == "pca" and source == options.run.name
        way = "prefix" if cut else method
        for point in points_of(source, sides, options.dimensions, run.dev_set, way):
            points.append(point)
            words = "{series}: {dimension} dimensions, {coding}, {bytes} bytes: mAP {mAP:.4f}"
            print(words.format(**point), flush=True)
    folder = options.output or options.run / "compression"
    picture = write_points(points, folder, f"{options.run.name} on its development set")
    print(f"curve {picture}, table {folder / 'compression.md'}")
    way = [] if run.nested and not options.of_backbone else ["--of-backbone"]
    width = min(options.dimensions)
    if way or width < run.architecture.dimension:
        print_next(
            "-m", "visual_search.main_compress", "--run", options.run, *way, "--write", width
        )


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_compress",
        description="Measure a run's embeddings with fewer dimensions and fewer bits, on the "
        "development set of its own config; or write a model of fewer dimensions.",
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder, with its config.yml")
    parser.add_argument(
        "--dimensions",
        type=whole_number(1),
        nargs="+",
        default=[8, 16, 32, 64, 128, 256, 512],
        help="widths to measure, beside the full one (default: 8 16 … 512)",
    )
    parser.add_argument(
        "--of-backbone",
        action="store_true",
        help="also the features in front of the run's neck; with --write, these instead",
    )
    parser.add_argument(
        "--method",
        choices=("pca", "umap"),
        nargs="+",
        default=["pca"],
        help="how dimensions become fewer: principal components, or the prefixes of a nested "
        "embedding; umap needs pip install -e '.[umap]' (default: pca)",
    )
    parser.add_argument(
        "--write",
        type=whole_number(1),
        default=0,
        metavar="DIMENSION",
        help="write a model of this width instead of the curve: a prefix of a nested embedding, "
        "or, with --of-backbone, principal components of the backbone's features",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder (default: compression/ in the run; for --write the run's name with the "
        "width added)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
