"""Train images and queries into one space: `python -m visual_search.main_clip --config FILE …`."""

from __future__ import annotations

from pathlib import Path

from visual_search.common.errors import print_next, run_command


def main() -> None:
    """Parse the arguments, train, and say where the result is."""
    import jsonargparse

    from visual_search.config_reader import parse_config, tell_unused
    from visual_search.text.config import ClipConfig

    parser = jsonargparse.ArgumentParser(
        prog="python -m visual_search.main_clip",
        description="Train one phase on images and the queries they were chosen for, or continue "
        "it where it was killed.",
    )
    parser.add_argument("--name", type=str, required=True, help="the run is kept in runs/<name>")
    parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a run of that name")
    arguments, config, resolved = parse_config(parser, ClipConfig)
    tell_unused(config)

    from visual_search.common.run_folder import RunFolder
    from visual_search.text.phase import ClipPhase
    from visual_search.train import train_phase

    run = RunFolder(Path(arguments.runs), arguments.name)
    score = train_phase(config, ClipPhase, run, resolved, arguments.overwrite)
    print(f"done: mAP {score:.4f}; checkpoint {run.best}, report {run.path / 'report.html'}")
    ask = ("-m", "visual_search.main_query", "--run", run.path, "--gallery", "FOLDER", "a query")
    print_next(*ask)


if __name__ == "__main__":
    run_command(main)
