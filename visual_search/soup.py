"""The average of several runs' weights: one model, no slower than any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from visual_search.averaging import WeightSoup
from visual_search.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from visual_search.errors import UserError
from visual_search.files import write_json
from visual_search.model import Embedder, rebuild_embedder

Score = Callable[[Embedder, str], float]
"""mAP of an embedder, 0..1; the text says what it is."""


@dataclass(frozen=True)
class Soup:
    """An average, and how it came about."""

    state: Mapping[str, Tensor]
    mAP: float
    ingredients: tuple[str, ...]
    """The runs that are in it."""
    scores: Mapping[str, float]
    """Of each run alone."""


def load_ingredients(runs: Sequence[Path]) -> dict[str, Checkpoint]:
    """The best models of runs that can be averaged, by the runs' paths.

    Raises:
        UserError: for fewer than two, one that is named twice, and one whose architecture
            differs from the first's.
    """
    found = {str(run): load_checkpoint(run) for run in runs}
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
        if sample.architecture.neck == "whitening":
            raise UserError(
                "a whitening is fitted to one model alone: train runs for a soup without "
                "train.whitening"
            )
    return found


def uniform_soup(ingredients: Mapping[str, Checkpoint], score: Score) -> Soup:
    """The average of all: Wortsman et al., "Model soups" (ICML 2022), section 2, uniform soup."""
    scores = _scores(ingredients, score)
    state = _average(list(ingredients.values()))
    mAP = score(_embedder(next(iter(ingredients.values())), state), "the average of all")
    return Soup(state, mAP, tuple(ingredients), scores)


def greedy_soup(ingredients: Mapping[str, Checkpoint], score: Score) -> Soup:
    """From the best run on, take in each that does not make the average worse: recipe 1 there."""
    scores = _scores(ingredients, score)
    order = sorted(ingredients, key=lambda name: -scores[name])
    kept, best = [order[0]], scores[order[0]]
    state: Mapping[str, Tensor] = ingredients[order[0]].state
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
        kind: a key of :data:`SOUPS`.
        sample: one of the ingredients.
        config: of that one, as YAML: what the soup's photos look like to the model.
        data: what it was scored on.
    """
    from visual_search.files import write_text

    facts: dict[str, Any] = {
        **{key: sample.facts.get(key) for key in ("losses", "trained_on_test", "embedding")},
        "run": folder.name,
        "mAP": soup.mAP,
        "soup": {"kind": kind, "runs": list(soup.ingredients), "scored_on": data},
    }
    write_text(folder / "config.yml", config)
    save_checkpoint(folder / "best", sample.architecture, soup.state, {}, facts)
    result = {"finished": True, "mAP": soup.mAP, "ingredients": list(soup.ingredients)}
    write_json(folder / "result.json", {**result, "scores": dict(soup.scores)})


def _scores(ingredients: Mapping[str, Checkpoint], score: Score) -> dict[str, float]:
    return {
        name: score(_embedder(checkpoint, checkpoint.state), name)
        for name, checkpoint in ingredients.items()
    }


def _average(parts: Sequence[Checkpoint]) -> dict[str, Tensor]:
    mixture = WeightSoup(len(parts))
    for part in parts:
        mixture.add(part.state)
    return mixture.average()


def _embedder(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> Embedder:
    embedder = rebuild_embedder(checkpoint.architecture)
    embedder.load_state_dict(dict(state))
    return embedder.eval()


SOUPS: dict[str, Callable[[Mapping[str, Checkpoint], Score], Soup]] = {
    "uniform": uniform_soup,
    "greedy": greedy_soup,
}
"""Soups by name."""
