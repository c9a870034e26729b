"""Classes against dimensions: `python -m visual_search.main_sweep --config FILE --name NAME`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.errors import exit_with_sentence

if TYPE_CHECKING:
    import jsonargparse

    from visual_search.run_folder import RunFolder


def main() -> None:
    """Parse the arguments, train the cells that are missing, and draw the picture."""
    from visual_search.config_reader import parse_phase

    arguments, phase, _ = parse_phase(build_parser())

    from visual_search.run_folder import RunFolder
    from visual_search.sweep import cells, run_sweep, write_sweep

    folder = RunFolder(Path(arguments.runs), arguments.name).path
    wanted = cells(arguments.classes, arguments.dimensions, arguments.seeds)
    title = f"{arguments.name}: {phase.backbone.name}, {phase.dataset.input_size} px"
    run_sweep(
        folder,
        wanted,
        phase.margin.nested,
        resolved,
        train_cell,
        after=lambda: write_sweep(folder, title),
    )
    picture = write_sweep(folder, title)
    print(f"\n{(folder / 'sweep.md').read_text('utf-8')}\nplot {picture}")
    print("next: more --classes, --dimensions or --seeds add to the same picture")


def build_parser() -> jsonargparse.ArgumentParser:
    """The options beside the phase's own."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="python -m visual_search.main_sweep",
        description="Train one config over numbers of training classes and widths of the "
        "embedding, and draw mAP over them; the same command continues. A config with "
        "train.cache_features makes it minutes.",
    )
    parser.add_argument("--name", type=str, required=True, help="the sweep is kept in runs/<name>")
    parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
    parser.add_argument(
        "--classes", type=int, nargs="+", required=True, help="numbers of classes; 0 is all"
    )
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64], help="of the embedding")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[42], help="each draws other classes"
    )
    return parser


def settings_arguments(settings: Mapping[str, Any]) -> list[str]:
    """This command's arguments with a cell's settings behind them."""
    from visual_search.phase_chain import as_options

    return [*sys.argv[1:], *as_options(settings)]


def resolved(settings: Mapping[str, Any]) -> str:
    """The complete config, as YAML, of a cell."""
    from visual_search.config_reader import parse_phase

    return parse_phase(build_parser(), settings_arguments(settings))[2]


def train_cell(settings: Mapping[str, Any], run: RunFolder) -> float:
    """Train one cell, or continue it; returns its best mAP."""
    from visual_search.config_reader import parse_phase
    from visual_search.train import train_phase

    _, config, text = parse_phase(build_parser(), settings_arguments(settings))
    return train_phase(config, run, text)


if __name__ == "__main__":
    exit_with_sentence(main)
