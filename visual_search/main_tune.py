"""Search for settings: `python -m visual_search.main_tune --config FILE --name NAME --trials N`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, print_next, run_command

if TYPE_CHECKING:
    import jsonargparse

    from visual_search.common.run_folder import RunFolder
    from visual_search.tuning import OnValidation


def main() -> None:
    """Parse the arguments, train the trials that are missing, write the best config and a plot."""
    from visual_search.config_reader import parse_phase, tell_unused

    arguments, phase, _ = parse_phase(build_parser())
    if arguments.grid and arguments.trials is not None:
        raise UserError("--trials has no use beside --grid true, which trains all combinations")
    if not arguments.grid and (arguments.trials or 0) < 1:
        raise UserError("--trials must be 1 or more; or give --grid true for all combinations")

    from visual_search import tuning
    from visual_search.common.run_folder import RunFolder

    run = RunFolder(Path(arguments.runs), arguments.name)
    folder = run.path
    search = Path(arguments.search)
    space = tuning.read_search_space(search)
    grid = tuning.combinations(space, search) if arguments.grid else []
    drawn = settings_arguments(tuning.example(space))
    _, phase, example = parse_phase(build_parser(), drawn)
    tell_unused(phase, drawn)
    tuning.check_settings(folder, example, space)
    with run.lock():
        study = tuning.tune(
            folder,
            space,
            train_trial,
            trials=arguments.trials or 0,
            timeout=arguments.timeout,
            seed=phase.dataset.seed,
            grid=grid,
        )
    ended = len(tuning.ended(study))
    if not tuning.finished(study):
        raise UserError(
            f"no trial came to its end ({ended} stopped); lower the rates in {arguments.search}, "
            "or raise --trials"
        )
    tuning.plot(study, folder / "tuning.png")
    if grid:
        print(f"\n{tuning.write_grid(study, space, folder)}\nplot {folder / 'grid.png'}")
    config, best = tuning.write_best(study, folder), study.best_trial
    print(f"best of {ended}: trial {best.number}, mAP {best.value:.4f}")
    print(f"config {config}, plot {folder / 'tuning.png'}")
    print_next("-m", "visual_search.main_arcface", "--config", config, "--name", "NAME")


def build_parser() -> jsonargparse.ArgumentParser:
    """The options beside the phase's own."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="python -m visual_search.main_tune",
        description="Search for the settings with the best mAP; the same command continues.",
    )
    parser.add_argument("--name", type=str, required=True, help="the search is kept in runs/<name>")
    parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--trials", type=int | None, help="in all, with earlier ones")
    parser.add_argument(
        "--grid",
        type=bool,
        default=False,
        help="train every combination of the choices in --search, and draw mAP over the first",
    )
    parser.add_argument("--timeout", type=float | None, default=None, help="seconds")
    parser.add_argument(
        "--search", type=str, default="config/tune/lr_wd.yml", help="YAML: what to draw from"
    )
    return parser


def settings_arguments(settings: Mapping[str, Any]) -> list[str]:
    """This command's arguments with a trial's settings behind them.

    Of margin.nested, widths that the trial's embedding does not have are left out.
    """
    from visual_search.config_reader import parse_phase
    from visual_search.phase_chain import as_options

    arguments = [*sys.argv[1:], *as_options(settings)]
    if "neck.dimension" in settings:
        nested = parse_phase(build_parser(), arguments)[1].margin.nested
        fitting = [width for width in nested if width < settings["neck.dimension"]]
        arguments += as_options({"margin.nested": fitting})
    return arguments


def train_trial(settings: Mapping[str, Any], run: RunFolder, on_validation: OnValidation) -> float:
    """Train one trial, or continue it; returns its best mAP."""
    from visual_search.config_reader import parse_phase
    from visual_search.phase import ImagePhase
    from visual_search.train import train_phase

    _, config, text = parse_phase(build_parser(), settings_arguments(settings))
    return train_phase(config, ImagePhase, run, text, on_validation=on_validation)


if __name__ == "__main__":
    run_command(main)
