"""Average runs: `python -m visual_search.main_soup --runs runs/a runs/b --name soup`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from visual_search.common.run_folder import RunFolder
    from visual_search.model.checkpoint import Checkpoint
    from visual_search.model.embedder import Embedder


def main() -> None:
    """Average runs, score the average on the first run's development set, and keep it."""
    options = build_parser().parse_args()

    from visual_search.common.run_folder import RunFolder

    run = RunFolder(options.folder, options.name)
    if run.path.exists():
        raise UserError(f"{run.path} exists already; choose another --name")
    with run.lock():
        average_runs(options, run)


def average_runs(options: argparse.Namespace, run: RunFolder) -> None:
    """Make the soup that the options ask for, and write it into the run's folder."""
    from visual_search.config_reader import read_config
    from visual_search.data.factory import dev_files, dev_set_of, training_images
    from visual_search.evaluation.dev_set import evaluate_on_dev_set
    from visual_search.model.checkpoint import load_checkpoint
    from visual_search.ranking.embed import default_device
    from visual_search.validation import fit_whitenings

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

    soup = make_soup(ingredients, score, options.kind)
    architecture, train = first.architecture, config.train
    if train.whitening or train.whitening_power:
        embedder = _embedder(first, soup.state).to(device)
        images, size = training_images(config.dataset), architecture.input_size
        fitted = fit_whitenings(embedder, images, size, train, settings=settings, device=device)
        for name, whitening in fitted.items():
            embedder.neck = whitening.to(device)
            mAP = score(embedder, f"the average, {name}")
            if mAP > soup.mAP:
                soup = dataclasses.replace(soup, state=embedder.state_dict(), mAP=mAP)
                architecture = first.architecture.whitened(whitening)
    data = ", ".join(map(str, dev_files(config.dataset.dev_set)))
    text = (options.runs[0] / "config.yml").read_text("utf-8")
    kept = dataclasses.replace(first, architecture=architecture)
    write_soup(run.path, soup, options.kind, kept, text, data)
    best = max(load_checkpoint(path).facts.get("mAP", 0.0) for path in options.runs)
    print(f"done: mAP {soup.mAP:.4f} of {len(soup.ingredients)} runs; the best alone {best:.4f}")
    print(f"next: python my_submission/to_torchscript.py {run.path}")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_soup",
        description="Average the weights of runs that began at the same weights (other seeds, "
        "rates, augmentations), and keep the average as a run of its own. A whitening "
        "(train.whitening) is fitted to the average anew, on the first run's training images.",
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


Score = Callable[["Embedder", str], float]
"""mAP of an embedder, 0..1; the text says what it is."""


@dataclass(frozen=True)
class Soup:
    """An average, and how it came about."""

    state: Mapping[str, Tensor]
    mAP: float
    ingredients: tuple[str, ...]
    """The runs that are in it."""
    scores: Mapping[str, float]
    """Of each run alone, before it is whitened, where it was asked for."""


def load_ingredients(runs: Sequence[Path]) -> dict[str, Checkpoint]:
    """The best models of runs that can be averaged, by the runs' paths, without their whitening.

    Raises:
        UserError: for fewer than two, one that is named twice, and one whose architecture
            differs from the first's.
    """
    from visual_search.model.checkpoint import load_checkpoint, without_whitening

    found = {str(run): without_whitening(load_checkpoint(run)) for run in runs}
    if len(found) < len(runs) or len(runs) < 2:
        raise UserError("--runs needs two runs or more, each named once")
    (first, sample), *others = found.items()
    for name, checkpoint in others:
        for part in dataclasses.fields(sample.architecture):
            ours = getattr(sample.architecture, part.name)
            theirs = getattr(checkpoint.architecture, part.name)
            if theirs != ours:
                raise UserError(
                    f"{name} has {part.name} {theirs!r}, {first} {ours!r}: only models of one "
                    "architecture can be averaged"
                )
    return found


def make_soup(ingredients: Mapping[str, Checkpoint], score: Score, kind: str) -> Soup:
    """The average of all (uniform), or of those that do not make it worse, best first (greedy).

    Wortsman et al., "Model soups" (ICML 2022), section 2: uniform soup, and recipe 1.
    """
    if kind == "uniform":
        state = _average(list(ingredients.values()))
        mAP = score(_embedder(next(iter(ingredients.values())), state), "the average of all")
        return Soup(state, mAP, tuple(ingredients), {})
    scores = {name: score(_embedder(one, one.state), name) for name, one in ingredients.items()}
    order = sorted(ingredients, key=lambda name: -scores[name])
    kept, best = [order[0]], scores[order[0]]
    state = dict(ingredients[order[0]].state)
    for name in order[1:]:
        tried = _average([ingredients[part] for part in [*kept, name]])
        mAP = score(_embedder(ingredients[name], tried), f"with {name}")
        if mAP >= best:
            kept, best, state = [*kept, name], mAP, tried
    return Soup(state, best, tuple(kept), scores)


def write_soup(
    folder: Path, soup: Soup, kind: str, sample: Checkpoint, config: str, data: str
) -> None:
    """Write a run folder that ranker, evaluation and further training take.

    Args:
        folder: `runs/<name>`.
        soup: what goes into it.
        kind: uniform or greedy.
        sample: the first ingredient, with the average's architecture.
        config: of that one, as YAML: what the soup's images look like to the model.
        data: what it was scored on.
    """
    from visual_search.common.files import write_json, write_text
    from visual_search.evaluation.identity import averaged
    from visual_search.model.checkpoint import save_checkpoint

    trained_on = averaged([Path(name) for name in soup.ingredients])
    facts: dict[str, Any] = {
        "data": trained_on and trained_on.of_a_model(),
        **{key: sample.facts.get(key) for key in ("losses", "trained_on_test", "embedding")},
        "run": folder.name,
        "mAP": soup.mAP,
        "soup": {"kind": kind, "runs": list(soup.ingredients), "scored_on": data},
    }
    write_text(folder / "config.yml", config)
    save_checkpoint(folder / "best", sample.architecture, soup.state, {}, facts)
    result = {"finished": True, "mAP": soup.mAP, "ingredients": list(soup.ingredients)}
    write_json(folder / "result.json", {**result, "scores": dict(soup.scores)})


def _average(parts: Sequence[Checkpoint]) -> dict[str, Tensor]:
    from visual_search.model.averaging import WeightSoup

    mixture = WeightSoup(len(parts))
    for part in parts:
        mixture.add(part.state)
    return mixture.average()


def _embedder(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> Embedder:
    from visual_search.model.embedder import rebuild_embedder

    embedder = rebuild_embedder(checkpoint.architecture)
    embedder.load_state_dict(dict(state))
    return embedder.eval()


if __name__ == "__main__":
    run_command(main)
