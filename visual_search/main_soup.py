"""Average runs: `python -m visual_search.main_soup --runs runs/a runs/b --name soup`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    from visual_search.model import Embedder


def main() -> None:
    """Score each run and their average on the first run's development set; write the average."""
    options = build_parser().parse_args()

    from visual_search.run_folder import RunFolder

    run = RunFolder(options.folder, options.name)
    if run.path.exists():
        raise UserError(f"{run.path} exists already; choose another --name")

    from visual_search.embed import default_device
    from visual_search.evaluate import evaluate_on_dev_set
    from visual_search.phase_data import dev_files, dev_set_of
    from visual_search.run_embeddings import read_config
    from visual_search.soup import SOUPS, load_ingredients, write_soup

    ingredients = load_ingredients(options.runs)
    first = next(iter(ingredients.values()))
    config = read_config(options.runs[0])
    dev_set = dev_set_of(config.dataset.dev_set)
    device = default_device()
    settings = config.embedding.unmeasured(device.type == "cuda")

    def score(embedder: Embedder, what: str) -> float:
        size = first.architecture.input_size
        found = evaluate_on_dev_set(
            embedder.to(device), dev_set, size, device=device, settings=settings
        )
        print(f"{what}: mAP {found.mean_average_precision:.4f}", flush=True)
        return found.mean_average_precision

    soup = SOUPS[options.kind](ingredients, score)
    data = ", ".join(map(str, dev_files(config.dataset.dev_set)))
    text = (options.runs[0] / "config.yml").read_text("utf-8")
    write_soup(run.path, soup, options.kind, first, text, data)
    best = max(soup.scores.values())
    print(f"done: mAP {soup.mAP:.4f} of {len(soup.ingredients)} runs; the best alone {best:.4f}")
    print(f"next: python my_submission/to_torchscript.py {run.path}")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_soup",
        description="Average the weights of runs that began at the same weights (other seeds, "
        "rates, augmentations), and keep the average as a run of its own.",
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--name", required=True, help="the average is kept in <folder>/<name>")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument(
        "--kind",
        choices=["greedy", "uniform"],
        default="greedy",
        help="greedy takes in what does not lower mAP on the development set, which its own score "
        "is then slightly too kind on; uniform averages all (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    exit_with_sentence(main)
