"""Several runs as one model, whose similarity is the weighted mean of theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.model_config import EmbedSettings
from visual_search.model.embedder import MOST_MEMBERS, Architecture, Embedder, build_ensemble

Trained = tuple[Embedder, Architecture, dict[str, Any]]
"""As of :func:`visual_search.ranking.export.trained_embedder`."""


def ensemble_of(
    found: Mapping[str, Trained], weights: Sequence[float], chosen: Collection[str] = ()
) -> Trained:
    """One embedder whose vectors are those of several, side by side.

    Args:
        found: two models or more by their names, none of them an ensemble.
        weights: of each, above 0: a member's share of the similarity is its weight divided by the
            sum. Their embeddings are scaled by the roots of the shares.
        chosen: `views` and `rerank`, where something else takes the place of the members' own.

    Raises:
        UserError: naming two members that have not in common what an ensemble has one of.
    """
    if len(weights) != len(found):
        raise UserError(
            f"--weights has {len(weights)} numbers: write one for each model, {len(found)} in all"
        )
    if len(found) > MOST_MEMBERS:
        raise UserError(f"an ensemble has {MOST_MEMBERS} models at the most: name fewer")
    for name, (_, architecture, _) in found.items():
        if architecture.members:
            raise UserError(f"{name} is an ensemble itself: name its models in its place")
    _refuse_differences(found, chosen)
    embedder, architecture = build_ensemble([(one[0], one[1]) for one in found.values()], weights)
    (_, _, first), *_ = found.values()
    facts: dict[str, Any] = {
        "run": " + ".join(found),
        "mAP": None,
        "ensemble": dict(zip(found, weights, strict=True)),
        "trained_on_test": any(facts.get("trained_on_test") for _, _, facts in found.values()),
        **{key: first[key] for key in ("embedding", "rerank") if key in first},
    }
    return embedder, architecture, facts


def _refuse_differences(found: Mapping[str, Trained], chosen: Collection[str]) -> None:
    (first, sample), *others = found.items()
    for name, trained in others:
        pairs = zip(
            _in_common(first, sample, chosen), _in_common(name, trained, chosen), strict=True
        )
        for (what, ours, way_out), (_, theirs, _) in pairs:
            if theirs != ours:
                raise UserError(
                    f"{name} has {what} {theirs!r}, {first} {ours!r}, and an ensemble has it once: "
                    f"{way_out}"
                )


def _in_common(
    name: str, trained: Trained, chosen: Collection[str]
) -> Iterator[tuple[str, object, str]]:
    """What all members must have alike, and what to write where they do not."""
    _, architecture, facts = trained
    size = architecture.input_size
    settings = EmbedSettings.parsed(facts.get("embedding") or {}, name)
    yield "input_size", size, "name one by --input_size"
    if "views" not in chosen:
        yield "embedding.views", settings.fits, "name them by --views"
        yield "embedding.view_sizes", settings.sides(size), "name the views by --views"
    for key in ("flip", "crops", "trim_borders"):
        way_out = f"write it alike into embedding.{key} of their model.json"
        yield f"embedding.{key}", getattr(settings, key), way_out
    if "rerank" not in chosen:
        yield "rerank", facts.get("rerank") or [], "name the steps by --rerank"
