"""Compare runs with a ridge on the same features: `python -m visual_search.main_ridge --runs …`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_search.errors import exit_with_sentence


def main() -> None:
    """Parse the arguments, fit, compare, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_ridge",
        description="Score runs of visual_search.main_clip beside a ridge regression between the "
        "same frozen features, with paired 95 % intervals, and beside ridges that get more. "
        "Direction, text features and strength are chosen on a held-out fifth of the training "
        "data.",
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--pairs", type=Path, help="table of pairs (the first run's own)")
    parser.add_argument("--output", type=Path, required=True, help="json file of all figures")
    arguments = parser.parse_args()

    from visual_search.files import write_json
    from visual_search.ridge_comparison import comparison, judge
    from visual_search.typed_model import run_settings

    settings = run_settings(arguments.runs[0])["dataset"]
    root = Path(settings["root"]) if settings["root"] and not arguments.pairs else None
    pairs = arguments.pairs or Path(settings["pairs"])
    runs = {run.name: run for run in arguments.runs}
    asked = {"column": settings["text_column"], "language": settings["test_language"]}
    found = comparison([judge(runs, pairs, root, **asked)])
    write_json(arguments.output, found)
    print_comparison(found)
    print(f"figures: {arguments.output}")


def print_comparison(found: Mapping[str, Any]) -> None:
    """What the ridge chose, and a line for each measure."""
    ridges = [name for name in found if name.startswith("ridge")]
    for name in ridges:
        print(f"{name}: {_chosen(found[name]['choices'])}")
    for direction, scores in found["ridge"]["scores"].items():
        for name, value in scores.items():
            words = f"{direction} {name}".ljust(22) + f"ridge {value:.3f}"
            for other in ridges[1:]:
                words += f"   {other[6:]} {found[other]['scores'][direction][name]:.3f}"
            for run, values in found["runs"].items():
                gain = values["gain"][direction][name]
                words += f"   {run} {values['scores'][direction][name]:.3f}"
                words += f" [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            print(words)


def _chosen(choices: Sequence[Mapping[str, Any]]) -> str:
    """Direction, features and strength, and how often each was chosen where there are folds."""
    words = Counter(
        f"{c['direction']}, text features {c['text_features']}, alpha {c['alpha']:g}"
        for c in choices
    )
    return "; ".join(f"{word} ({n}x)" if len(choices) > 1 else word for word, n in words.items())


if __name__ == "__main__":
    exit_with_sentence(main)
