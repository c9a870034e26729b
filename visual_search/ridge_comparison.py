"""Runs of image–text training beside the plain ridge between the same frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visual_search.bootstrap import mean_interval
from visual_search.cached_views import kept_features
from visual_search.embed import default_device
from visual_search.errors import UserError
from visual_search.hashed_ngrams import HashedNgrams
from visual_search.pair_table import TEST, TRAIN, PairTable, in_language, read_pairs
from visual_search.ridge_baseline import (
    HELD_OUT_SHARE,
    Ridge,
    RidgeData,
    RidgeParts,
    ridge_baselines,
)
from visual_search.text_retrieval import (
    RECALLS,
    BothWays,
    Relevance,
    RetrievalScores,
    evaluate_retrieval,
    relevance_of,
)
from visual_search.text_towers import FrozenText, TextTowers
from visual_search.typed_model import TypedModel, load_typed_model, photo_items

Directions = Mapping[str, RetrievalScores]
"""Scores of `text_to_photo` and `photo_to_text`."""


@dataclass(frozen=True)
class Judged:
    """Ridges and runs on the test photos of one table of pairs."""

    relevance: Relevance
    groups: np.ndarray
    """`(photos,)`, int64: their products."""
    ridges: Mapping[str, Ridge]
    runs: Mapping[str, BothWays]
    """By the run's name, or what it is called in a comparison."""


def judge(
    runs: Mapping[str, Path],
    pairs: Path,
    root: Path | None = None,
    *,
    column: str = "queries",
    language: str = "",
    cache: Path = Path("runs/features"),
    seed: int = 42,
) -> Judged:
    """Fit the ridge to a table's training photos; score it and the runs on its test photos.

    Args:
        runs: of :mod:`visual_search.main_clip`, by name; the first one's frozen towers give the
            features that the ridge maps.
        pairs: table of pairs: the ridge learns from its rows of train, all are judged on test.
        root: folder of its photos; None is the table's own.
        column: queries or texts.
        language: of the queries that are judged; empty is all. All of train are learnt from.
        cache: folder of kept features.
        seed: of the choice of held-out products.
    """
    train = read_pairs(pairs, TRAIN, root)
    _, test = in_language(read_pairs(pairs, TEST, root), language)
    relevance = relevance_of(test, column)
    models = {name: load_typed_model(run) for name, run in runs.items()}
    first = next(iter(models.values()))
    ridges = _ridges(first, train, test, column, language, cache, seed)
    scores = {name: _scored(model, test, relevance, cache) for name, model in models.items()}
    return Judged(relevance, test.groups, ridges, scores)


def comparison(parts: Sequence[Judged], seed: int = 42) -> dict[str, Any]:
    """Say by how much runs differ from the ridge, query by query, over one table or several.

    Args:
        parts: with ridges and runs of the same names; the queries of all count alike. No product
            is in two of them.
        seed: of the bootstrap.

    Returns:
        `ridge`, the stronger ones where the first run has what they need (`ridge_with_ngrams`,
        `ridge_with_class_names`), `runs` and `chance`; JSON values.
    """
    clusters = _clusters(parts)
    ridges = {
        name: pooled([part.ridges[name].scores.directions() for part in parts])
        for name in parts[0].ridges
    }
    found: dict[str, Any] = {
        name: {
            "choices": [_choice(part.ridges[name]) for part in parts],
            "scores": {direction: s.as_dict() for direction, s in scores.items()},
        }
        for name, scores in ridges.items()
    }
    found["queries"] = {name: len(s.first_right) for name, s in ridges["ridge"].items()}
    found["chance"] = chance_of([part.relevance for part in parts])
    found["runs"] = {}
    before = None
    for name in parts[0].runs:
        scores = pooled([part.runs[name].directions() for part in parts])
        found["runs"][name] = values = {
            "scores": {direction: s.as_dict() for direction, s in scores.items()},
            "gain": gains(scores, ridges["ridge"], clusters, seed),
        }
        for other, fitted in ridges.items():
            if other != "ridge":
                values[f"gain_over_{other}"] = gains(scores, fitted, clusters, seed)
        if before is not None:
            values["gain_over_run_before"] = gains(scores, before, clusters, seed)
        before = scores
    return found


def pooled(parts: Sequence[Directions]) -> Directions:
    """The queries of several tables as of one."""
    return {
        name: RetrievalScores(
            np.concatenate([part[name].first_right for part in parts]),
            np.concatenate([part[name].average_precisions for part in parts]),
        )
        for name in parts[0]
    }


def _clusters(parts: Sequence[Judged]) -> dict[str, np.ndarray]:
    """Queries that are not independent: photos of one product; one text, asked in several parts."""
    numbers: dict[str, int] = {}
    texts = [numbers.setdefault(t, len(numbers)) for part in parts for t in part.relevance.texts]
    groups, first = [], 0
    for part in parts:
        groups.append(part.groups + first)
        first = int(groups[-1].max()) + 1
    return {"text_to_photo": np.array(texts), "photo_to_text": np.concatenate(groups)}


def gains(
    ours: Directions, theirs: Directions, clusters: Mapping[str, np.ndarray], seed: int = 42
) -> dict[str, Any]:
    """Paired 95 % intervals of each recall and of mAP, in both directions.

    Args:
        ours: scores of one system.
        theirs: of another, on the same photos and texts.
        clusters: of each direction's queries: those of one cluster are drawn together.
        seed: of the bootstrap.
    """
    made: dict[str, Any] = {}
    for name, mine in ours.items():
        other, units = theirs[name], clusters[name]
        made[name] = {
            f"R@{k}": mean_interval(mine.hits(k) - other.hits(k), units, seed=seed).as_json()
            for k in RECALLS
        }
        difference = mine.average_precisions - other.average_precisions
        made[name]["mAP"] = mean_interval(difference, units, seed=seed).as_json()
    return made


def chance_of(parts: Sequence[Relevance]) -> dict[str, dict[str, float]]:
    """R@k of answers drawn at random without repeats, over the queries of all parts."""

    def mean(recalls: list[dict[str, np.ndarray]]) -> dict[str, float]:
        return {key: float(np.concatenate([r[key] for r in recalls]).mean()) for key in recalls[0]}

    return {
        "text_to_photo": mean([_random_recall(p.photos_of, len(p.texts_of)) for p in parts]),
        "photo_to_text": mean([_random_recall(p.texts_of, len(p.texts)) for p in parts]),
    }


def _random_recall(right: Sequence[np.ndarray], answers: int) -> dict[str, np.ndarray]:
    counts = np.array([len(rows) for rows in right], dtype=np.float64)
    recalls = {}
    for k in RECALLS:
        missed = np.ones(len(counts))
        for drawn in range(min(k, answers)):
            missed *= np.maximum(answers - counts - drawn, 0) / (answers - drawn)
        recalls[f"R@{k}"] = 1 - missed
    return recalls


@torch.no_grad()
def _scored(model: TypedModel, table: PairTable, relevance: Relevance, cache: Path) -> BothWays:
    device = default_device()
    encoder = model.encoder.to(device)
    items, size = photo_items(table), model.input_size
    vectors = kept_features(encoder.visual, items, size, cache, device).matrix
    photos = encoder(vectors.to(device)).cpu()
    return evaluate_retrieval(photos, encoder.embed_texts(relevance.texts), relevance)


def _choice(ridge: Ridge) -> dict[str, Any]:
    return {
        "text_features": ridge.features,
        "direction": ridge.direction,
        "alpha": ridge.alpha,
        "validation": ridge.validation,
    }


def _ridges(
    model: TypedModel,
    train: PairTable,
    test: PairTable,
    column: str,
    language: str,
    cache: Path,
    seed: int,
) -> dict[str, Ridge]:
    """The plain ridge between the frozen towers' features, and stronger ones.

    `ridge_with_ngrams` may choose the n-grams of the hashed tower too, `ridge_with_class_names`
    gets the answers of the visual tower's own classifier besides.
    """
    device = default_device()
    visual = model.encoder.to(device).visual
    photos = [
        kept_features(visual, photo_items(part), model.input_size, cache, device).matrix
        for part in (train, test)
    ]
    held = held_out(train, test, column, seed)
    everything, judged = np.arange(len(train)), np.arange(len(test))
    parts = [
        (train, np.flatnonzero(~held), ""),
        (train, np.flatnonzero(held), language),
        (train, everything, ""),
        (test, judged, ""),
    ]

    def data(features: list[np.ndarray]) -> RidgeParts:
        made = []
        for table, chosen, spoken in parts:
            kept, asked = in_language(table.take(chosen), spoken)
            rows, relevance = chosen[kept], relevance_of(asked, column)
            own = features[0] if table is train else features[1]
            texts = _text_features(model.encoder.text, relevance.texts)
            made.append(RidgeData(own[rows], texts, relevance))
        return RidgeParts(*made)

    plain = data([rows.numpy() for rows in photos])
    features = list(plain.train.texts)
    towers = zip(model.encoder.text.names, model.encoder.text.parts, strict=True)
    frozen = [name for name, part in towers if isinstance(part, FrozenText)]
    choices = {"ridge": [name for name in features if name in frozen] or features}
    if len(features) > len(choices["ridge"]):
        choices["ridge_with_ngrams"] = features
    found = ridge_baselines(plain, choices)
    names = model.encoder.photo_projection.names
    if names is not None:
        with torch.no_grad():
            named = [names.eval()(rows.to(device)).cpu() for rows in photos]
        # Of the same length as the tower's own vectors, on average.
        scale = float(named[0].norm(dim=1).mean())
        both = [
            torch.cat([a, b / scale], dim=1).numpy() for a, b in zip(photos, named, strict=True)
        ]
        found |= ridge_baselines(data(both), {"ridge_with_class_names": features})
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
