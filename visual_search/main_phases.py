"""Train a chain of phases: `python -m visual_search.main_phases --config config/phases.yml`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from visual_search.common.errors import run_command


def main() -> None:
    """Parse the arguments, train what is not trained yet, and print the table of scores."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_phases",
        description="Train a chain of phases; each starts from the best model of the one before. "
        "A finished phase is skipped, an unfinished one continues.",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML: the list of phases")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="just these phases")
    parser.add_argument(
        "--retrain", action="store_true", help="train finished phases anew that have changed"
    )
    parser.add_argument("--force", action="store_true", help="train them anew in any case")
    parser.add_argument(
        "--launch", default="", help="what starts a phase: 'torchrun --nproc_per_node 8'"
    )
    arguments = parser.parse_args()

    from visual_search.phase_chain import read_chain, run_chain

    chain = read_chain(arguments.config)
    table = run_chain(
        chain,
        arguments.runs,
        partial(resolved, command=chain.command),
        only=arguments.only,
        retrain=arguments.retrain,
        force=arguments.force,
        launch=arguments.launch,
    )
    print(f"table: {table}")


def resolved(arguments: Sequence[str], command: str = "main_arcface") -> str:
    """The complete config, as YAML, of a phase's command-line arguments.

    Args:
        arguments: of the command.
        command: main_arcface, or main_clip of images with queries.
    """
    import jsonargparse

    from visual_search.config import PhaseConfig
    from visual_search.config_reader import parse_config
    from visual_search.text.config import ClipConfig

    kind: type[Any] = ClipConfig if command == "main_clip" else PhaseConfig
    return parse_config(jsonargparse.ArgumentParser(), kind, arguments)[2]


if __name__ == "__main__":
    run_command(main)
