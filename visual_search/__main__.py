"""The commands, with a line each: `python -m visual_search`."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from visual_search import __version__
from visual_search.common.errors import run_command

GROUPS = {
    "train": ("arcface", "clip", "phases", "tune", "soup"),
    "judge": ("evaluate", "compress", "cv_lb"),
    "use": ("export", "query", "zero_shot", "index", "serve", "demo"),
}
"""The commands in the order in which they are used."""


def main() -> None:
    """List the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search",
        description="Train image embedders and rank gallery images for a user's photo.",
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"visual_search {__version__}", help="print it"
    )
    parser.parse_args()
    parser.print_help()


def epilog() -> str:
    """The commands by group, each with the first line of its docstring."""
    here = Path(__file__).parent
    found = {path.stem.removeprefix("main_"): path for path in sorted(here.glob("main_*.py"))}
    width = max(map(len, found)) + len("visual_search.main_")
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"to {title}:")
        for name in filter(found.__contains__, names):
            purpose = (
                ast.get_docstring(ast.parse(found[name].read_text("utf-8"))) or ""
            ).partition("\n")[0]
            command = f"visual_search.main_{name}"
            lines.append(f"  {command:{width}}  {purpose.partition(': `')[0].rstrip('.')}")
    lines += [
        "to make tables of images: dataset/*.py; to submit: my_submission/*.py",
        "",
        "run each by `python -m NAME`, a file by `python FILE`; --help explains the options",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
