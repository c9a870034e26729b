"""Train one phase: `python -m visual_search.main_arcface --config FILE --name NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

from visual_search.common.errors import print_next, run_command


def main() -> None:
    """Parse the arguments, train, and say where the result is."""
    import jsonargparse

    from visual_search.common.words import default_name
    from visual_search.config_reader import parse_phase, tell_unused

    parser = jsonargparse.ArgumentParser(
        prog="python -m visual_search.main_arcface",
        description="Train one phase, or continue it where it was killed. Settings may be words, "
        "too, added to config/metric_learning.yml: backbone=openclip_vit_b32 dataset=inshop "
        "evaluation/data=products10k batch_size=32 epochs=10",
    )
    parser.add_argument(
        "--name", type=str, default="", help="the run is kept in runs/<name>; default: the config's"
    )
    parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a run of that name")
    arguments, config, resolved = parse_phase(parser)
    tell_unused(config)

    from visual_search.common.run_folder import RunFolder
    from visual_search.phase import ImagePhase
    from visual_search.train import train_phase

    run = RunFolder(Path(arguments.runs), arguments.name or default_name(sys.argv[1:]))
    score = train_phase(config, ImagePhase, run, resolved, arguments.overwrite)
    print(f"done: mAP {score:.4f}; checkpoint {run.best}, report {run.path / 'report.html'}")
    print_next("my_submission/to_torchscript.py", run.path)


if __name__ == "__main__":
    run_command(main)
