"""Average runs: `python -m visual_search.main_soup --runs runs/a runs/b --name soup`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.common.errors import UserError, print_next, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from visual_search.common.run_folder import RunFolder
    from visual_search.model.checkpoint import Checkpoint
    from visual_search.model.embedder import Embedder

State = dict[str, "Tensor"]


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
    """Make the soup that the options ask for: a run folder that everything takes."""
    from visual_search.common.files import write_json, write_text
    from visual_search.config_reader import read_config
    from visual_search.data.factory import dev_files, dev_set_of, training_images
    from visual_search.evaluation.dev_set import evaluate_on_dev_set
    from visual_search.evaluation.identity import averaged
    from visual_search.model.checkpoint import load_checkpoint, save_checkpoint
    from visual_search.model.embedder import rebuild_embedder
    from visual_search.ranking.embed import default_device
    from visual_search.validation import fit_whitenings, validation_steps

    ingredients = load_ingredients(options.runs)
    first = next(iter(ingredients.values()))
    architecture, config = first.architecture, read_config(options.runs[0])
    dev_set, device = dev_set_of(config.dataset.dev_set), default_device()
    embedder = rebuild_embedder(architecture).to(device).eval()
    given: dict[str, Any] = {
        "device": device,
        "settings": config.embedding.unmeasured(device.type == "cuda"),
    }

    def score(embedder: Embedder, what: str) -> float:
        size, steps = architecture.input_size, validation_steps(config)
        found = evaluate_on_dev_set(embedder, dev_set, size, **given, steps=steps)
        print(f"{what}: mAP {found.mean_average_precision:.4f}", flush=True)
        return found.mean_average_precision

    def score_state(state: Mapping[str, Tensor], what: str) -> float:
        embedder.load_state_dict(dict(state))
        return score(embedder, what)

    parts = {name: one.state for name, one in ingredients.items()}
    kept, state, mAP, scores = make_soup(parts, score_state, options.kind)
    if config.train.whitening or config.train.whitening_power:
        embedder.load_state_dict(state)
        images, size = training_images(config.dataset), architecture.input_size
        fitted = fit_whitenings(embedder, images, size, config.train, **given)
        for name, whitening in fitted.items():
            embedder.neck = whitening.to(device)
            if (whitened := score(embedder, f"the average, {name}")) > mAP:
                state, mAP = embedder.state_dict(), whitened
                architecture = first.architecture.whitened(whitening)
    trained_on = averaged([Path(name) for name in kept])
    data = ", ".join(map(str, dev_files(config.dataset.dev_set)))
    kept_facts = ("losses", "trained_on_test", "embedding", "rerank")
    facts: dict[str, Any] = {
        "data": trained_on and trained_on.of_a_model(),
        **{key: first.facts[key] for key in kept_facts if key in first.facts},
        "run": run.name,
        "mAP": mAP,
        "soup": {"kind": options.kind, "runs": kept, "scored_on": data},
    }
    write_text(run.path / "config.yml", (options.runs[0] / "config.yml").read_text("utf-8"))
    save_checkpoint(run.best, architecture, state, {}, facts)
    result = {"finished": True, "mAP": mAP, "ingredients": kept, "scores": scores}
    write_json(run.path / "result.json", result)
    best = max(load_checkpoint(path).facts.get("mAP") or 0.0 for path in options.runs)
    print(f"done: mAP {mAP:.4f} of {len(kept)} runs; the best alone {best:.4f}")
    print_next("my_submission/to_torchscript.py", run.path)


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
        for part, ours in vars(sample.architecture).items():
            theirs = getattr(checkpoint.architecture, part)
            if theirs != ours:
                raise UserError(
                    f"{name} has {part} {theirs!r}, {first} {ours!r}: only models of one "
                    "architecture can be averaged"
                )
        if checkpoint.facts.get("embedding") != sample.facts.get("embedding"):
            print(f"note: {name} sees images by other embedding settings; {first}'s are taken")
    return found


def make_soup(
    ingredients: Mapping[str, Mapping[str, Tensor]],
    score: Callable[[Mapping[str, Tensor], str], float],
    kind: str,
) -> tuple[list[str], State, float, dict[str, float]]:
    """The average of all (uniform), or of those that do not make it worse, best first (greedy).

    Wortsman et al., "Model soups" (ICML 2022), section 2: uniform soup, and recipe 1.

    Args:
        ingredients: the tensors of each run, by its name.
        score: mAP of such tensors, 0..1; the text says what they are.
        kind: uniform or greedy.

    Returns:
        Which are in it, its tensors, its mAP, and that of each run alone where it was asked for.
    """
    from visual_search.model.averaging import mean_state

    if kind == "uniform":
        state = mean_state(ingredients.values())
        return [*ingredients], state, score(state, "the average of all"), {}
    scores = {name: score(one, name) for name, one in ingredients.items()}
    first, *others = sorted(ingredients, key=lambda name: -scores[name])
    kept, best, state = [first], scores[first], dict(ingredients[first])
    for name in others:
        tried = mean_state(ingredients[part] for part in [*kept, name])
        mAP = score(tried, f"with {name}")
        if mAP >= best:
            kept, best, state = [*kept, name], mAP, tried
    return kept, state, best, scores


if __name__ == "__main__":
    run_command(main)
