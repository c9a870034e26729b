"""Compare a chain with the ridge on all products: `python -m visual_search.main_text_folds …`."""

from __future__ import annotations

import argparse
from pathlib import Path

from visual_search.errors import UserError, exit_with_sentence


def main() -> None:
    """Parse the arguments, train on each fold, compare, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_text_folds",
        description="Deal the products of a table of pairs into folds, train a chain of "
        "visual_search.main_clip on all folds but one, in turns, and compare its phases with a "
        "ridge between the same frozen features on the products that each was not trained on, "
        "with paired 95 % intervals over the queries of all folds.",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML: the chain of phases")
    parser.add_argument("--pairs", type=Path, required=True, help="table of pairs")
    parser.add_argument("--folds", type=int, default=5, help="how many (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--force", action="store_true", help="train finished phases anew")
    arguments = parser.parse_args()

    from visual_search.main_phases import resolved_pairs
    from visual_search.main_ridge import print_comparison
    from visual_search.phase_chain import read_chain
    from visual_search.text_folds import compare_on_folds

    chain = read_chain(arguments.config)
    if chain.command != "main_clip":
        raise UserError(f"{arguments.config} trains no texts: it needs `command: main_clip`")
    found = compare_on_folds(
        chain,
        arguments.pairs,
        arguments.runs,
        arguments.folds,
        resolved_pairs,
        force=arguments.force,
    )
    print()
    print_comparison(found)
    print(f"figures: {arguments.runs / (chain.name + '_folds') / 'ridge.json'}")


if __name__ == "__main__":
    exit_with_sentence(main)
