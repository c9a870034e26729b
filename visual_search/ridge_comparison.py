"""Runs of image–text training beside the plain ridge between the same frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visual_search.cached_views import kept_features
from visual_search.embed import default_device
from visual_search.errors import UserError
from visual_search.hashed_ngrams import HashedNgrams
from visual_search.pair_table import TEST, TRAIN, PairTable, read_pairs
from visual_search.ridge_baseline import HELD_OUT_SHARE, Ridge, RidgeData, ridge_baseline
from visual_search.text_retrieval import (
    RECALLS,
    BothWays,
    Relevance,
    evaluate_retrieval,
    paired_gain,
    relevance_of,
)
from visual_search.text_towers import FrozenText, TextTowers
from visual_search.typed_model import TypedModel, load_typed_model, photo_items
from visual_search.typed_queries import embedded_photos


def compare_runs(
    runs: Sequence[Path],
    pairs: Path,
    root: Path | None = None,
    *,
    column: str = "queries",
    cache: Path = Path("runs/features"),
    seed: int = 42,
) -> dict[str, Any]:
    """Fit the ridge, score the runs, and say by how much they differ, query by query.

    Args:
        runs: of :mod:`visual_search.main_clip`; the first one's frozen towers give the features
            that the ridge maps.
        pairs: table of pairs: the ridge learns from its rows of train, all are judged on test.
        root: folder of its photos; None is the table's own.
        column: queries or texts.
        cache: folder of kept features.
        seed: of the choice of held-out products and of the bootstrap.

    Returns:
        `ridge`, `ridge_with_class_names` where the first run has such, `runs` and `chance`; JSON
        values.
    """
    train, test = read_pairs(pairs, TRAIN, root), read_pairs(pairs, TEST, root)
    relevance = relevance_of(test, column)
    models = {run.name: load_typed_model(run) for run in runs}
    ridges = _ridges(next(iter(models.values())), train, test, column, cache, seed)
    ridge = ridges["ridge"]
    found: dict[str, Any] = {name: _described(fitted) for name, fitted in ridges.items()}
    found["chance"] = chance_of(relevance)
    found["runs"] = {}
    scores = {name: _scored(model, test, relevance) for name, model in models.items()}
    before = None
    for name, both in scores.items():
        found["runs"][name] = {
            "scores": both.as_dict(),
            "gain": gains(both, ridge.scores, test.groups, seed),
        }
        for other, fitted in ridges.items():
            if other != "ridge":
                gain = gains(both, fitted.scores, test.groups, seed)
                found["runs"][name][f"gain_over_{other}"] = gain
        if before is not None:
            found["runs"][name]["gain_over_run_before"] = gains(both, before, test.groups, seed)
        before = both
    return found


def gains(ours: BothWays, theirs: BothWays, groups: np.ndarray, seed: int = 42) -> dict[str, Any]:
    """Paired 95 % intervals of each recall and of mAP, in both directions.

    Args:
        ours: scores of one system.
        theirs: of another, on the same photos and texts.
        groups: of the photos, their products: photos of one are drawn together.
        seed: of the bootstrap.
    """
    made: dict[str, Any] = {}
    for name, mine in ours.directions().items():
        other = theirs.directions()[name]
        clusters = groups if name == "photo_to_text" else None
        made[name] = {
            f"R@{k}": asdict(paired_gain(mine.hits(k), other.hits(k), clusters, seed))
            for k in RECALLS
        }
        made[name]["mAP"] = asdict(
            paired_gain(mine.average_precisions, other.average_precisions, clusters, seed)
        )
    return made


def chance_of(relevance: Relevance) -> dict[str, dict[str, float]]:
    """R@k of answers drawn at random without repeats."""
    photos, texts = len(relevance.texts_of), len(relevance.texts)
    return {
        "text_to_photo": _random_recall([len(rows) for rows in relevance.photos_of], photos),
        "photo_to_text": _random_recall([len(rows) for rows in relevance.texts_of], texts),
    }


def _random_recall(right: Sequence[int], answers: int) -> dict[str, float]:
    counts = np.array(right, dtype=np.float64)
    recalls = {}
    for k in RECALLS:
        missed = np.ones(len(counts))
        for drawn in range(min(k, answers)):
            missed *= np.maximum(answers - counts - drawn, 0) / (answers - drawn)
        recalls[f"R@{k}"] = float(1 - missed.mean())
    return recalls


def _scored(model: TypedModel, table: PairTable, relevance: Relevance) -> BothWays:
    photos = embedded_photos(model, photo_items(table), model.name).matrix
    return evaluate_retrieval(photos, model.encoder.embed_texts(relevance.texts), relevance)


def _described(ridge: Ridge) -> dict[str, Any]:
    return {
        "text_features": ridge.features,
        "direction": ridge.direction,
        "alpha": ridge.alpha,
        "validation": ridge.validation,
        "scores": ridge.scores.as_dict(),
    }


def _ridges(
    model: TypedModel, train: PairTable, test: PairTable, column: str, cache: Path, seed: int
) -> dict[str, Ridge]:
    """The plain ridge, and one that is given the answers of the visual tower's classifier too."""
    device = default_device()
    visual = model.encoder.to(device).visual
    photos = [
        kept_features(visual, photo_items(part), model.input_size, cache, device).matrix
        for part in (train, test)
    ]
    held = held_out(train, test, column, seed)
    parts = [(train, ~held), (train, held), (train, held | ~held), (test, np.ones(len(test), bool))]

    def data(features: list[np.ndarray]) -> list[RidgeData]:
        made = []
        for table, chosen in parts:
            rows = np.flatnonzero(chosen)
            relevance = relevance_of(table.take(rows), column)
            own = features[0] if table is train else features[1]
            texts = _text_features(model.encoder.text, relevance.texts)
            made.append(RidgeData(own[rows], texts, relevance))
        return made

    found = {"ridge": ridge_baseline(*data([rows.numpy() for rows in photos]))}
    names = model.encoder.photo_projection.names
    if names is not None:
        with torch.no_grad():
            named = [names.eval()(rows.to(device)).cpu() for rows in photos]
        # Of the same length as the tower's own vectors, on average.
        scale = float(named[0].norm(dim=1).mean())
        both = [
            torch.cat([a, b / scale], dim=1).numpy() for a, b in zip(photos, named, strict=True)
        ]
        found["ridge_with_class_names"] = ridge_baseline(*data(both))
    return found


def held_out(train: PairTable, test: PairTable, column: str, seed: int) -> np.ndarray:
    """A fifth of the training rows that stand to the others as the test's do to all of them.

    Where most texts of the test are new, these are whole products; where the test shows other
    photos of the same products, single photos.

    Returns:
        `(n,)`, bool.
    """
    known = set(relevance_of(train, column).texts)
    asked = relevance_of(test, column).texts
    new = sum(text not in known for text in asked) * 2 > len(asked)
    _, unit = np.unique(train.groups, return_inverse=True)
    if not new:
        unit = np.arange(len(train))
    count = int(unit.max()) + 1
    drawn = np.random.default_rng(seed).permutation(count)
    return np.isin(unit, drawn[: max(round(HELD_OUT_SHARE * count), 1)])


def _text_features(towers: TextTowers, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the frozen text towers give, each alone and all together, `(n, t)`."""
    made: dict[str, np.ndarray] = {}
    for name, part in zip(towers.names, towers.parts, strict=True):
        if isinstance(part, FrozenText):
            made[name] = part.tokenize(texts).numpy()
        elif isinstance(part, HashedNgrams):
            bags = part.bags(texts)
            made[name] = bags[:, part.idf.cpu().numpy() > 0]
    if not made:
        raise UserError(
            "the first of --runs has no frozen text features (use, sentence-transformers, hashed) "
            "for the ridge to map"
        )
    if len(made) > 1:
        made[" + ".join(made)] = np.hstack(list(made.values()))
    return made
