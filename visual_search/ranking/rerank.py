"""Better ranks from the same embeddings: steps before the search, each with its parameters.

A ranking is a sequence of steps, then the exact search. `model.json` lists the steps of a model
under `rerank`, in order of application, so that validation, evaluation and submission do the same:
`[{"name": "center", "scope": "sides"}, {"name": "k_reciprocal", "k1": 12}]`.

Some steps look at all queries at once, and an answer then depends on what else is asked. The
challenge hands over all queries together and the winners made use of it; a shop that answers one
query at a time can use only those that do not:

| step | looks at other queries |
|---|---|
| power, dba and query_expansion (source gallery), two_pass_expansion, center (scope gallery) | no |
| center (scopes joint, sides), zscore, pca, swapped_dba, k_reciprocal, dba and query_expansion (source queries) | yes |

Rows of zeros, which stand for images without an embedding, stay zeros.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.ranges import from_values
from visual_search.ranking.k_reciprocal import KReciprocal
from visual_search.ranking.rerank_steps import (
    PCA,
    Center,
    DatabaseAugmentation,
    Power,
    QueryExpansion,
    SwappedDatabaseAugmentation,
    TwoPassExpansion,
    ZScore,
)
from visual_search.ranking.search import top_k


class VectorStep(Protocol):
    """A step that changes embeddings."""

    def __call__(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """New unit vectors of both sides."""


Step = VectorStep | KReciprocal

STEPS: dict[str, type] = {
    "power": Power,
    "center": Center,
    "zscore": ZScore,
    "pca": PCA,
    "dba": DatabaseAugmentation,
    "query_expansion": QueryExpansion,
    "swapped_dba": SwappedDatabaseAugmentation,
    "two_pass_expansion": TwoPassExpansion,
    "k_reciprocal": KReciprocal,
}


def rank(queries: Tensor, gallery: Tensor, steps: Sequence[Step], k: int) -> Tensor:
    """The `k` best gallery rows of each query after re-ranking.

    Args:
        queries: `(n_queries, dimension)`, float32, unit vectors or zeros.
        gallery: `(n_gallery, dimension)`, the same.
        steps: in order of application; none is plain cosine ranking.
        k: gallery rows per query.

    Returns:
        `(n_queries, min(k, n_gallery))`, int64, best first; ties by gallery index.
    """
    queries, gallery, last = apply_steps(queries, gallery, steps)
    with torch.inference_mode():
        for step in last:
            return step.rank(queries, gallery, k)
        return top_k(queries, gallery, k)[1]


def apply_steps(
    queries: Tensor, gallery: Tensor, steps: Sequence[Step]
) -> tuple[Tensor, Tensor, tuple[KReciprocal, ...]]:
    """Embeddings after the steps that change them, and the step that ranks them, if there is one.

    Args:
        queries: as :func:`rank`, as are gallery and steps.
        gallery: see there.
        steps: see there.
    """
    with torch.inference_mode():
        for step in steps:
            if isinstance(step, KReciprocal):
                return queries, gallery, (step,)
            queries, gallery = step(queries, gallery)
    return queries, gallery, ()


def parse_steps(values: Any, where: str) -> tuple[Step, ...]:
    """The steps that a list of `{"name": …, parameter: …}` describes.

    Args:
        values: as read from JSON or YAML.
        where: file and key, for the message.

    Raises:
        UserError: for an unknown step or parameter, a value of the wrong type or range, or
            `k_reciprocal` in front of another step: it ranks, so it comes last.
    """
    if not isinstance(values, list):
        raise UserError(f"{where} must be a list of steps, not {type(values).__name__}")
    steps = tuple(_parse_step(value, f"{where}[{i}]") for i, value in enumerate(values))
    for i, step in enumerate(steps[:-1]):
        if isinstance(step, KReciprocal):
            raise UserError(f"{where}[{i}]: k_reciprocal must be the last step")
    return steps


def _parse_step(value: Any, where: str) -> Step:
    if not isinstance(value, Mapping) or "name" not in value:
        raise UserError(f'{where} must look like {{"name": "center"}}, not {value!r}')
    name = value["name"]
    if not isinstance(name, str) or name not in STEPS:
        raise UserError(f"{where}.name is {name!r}; it can be {', '.join(STEPS)}")
    given = {key: parameter for key, parameter in value.items() if key != "name"}
    return from_values(STEPS[name], given, f"{where}.")


def named_steps(words: Sequence[str], tuned: Any, where: str) -> tuple[Step, ...]:
    """The steps that a user names: `none`, `tuned`, names in their order, or a list as JSON.

    Args:
        words: of a command line or a configuration.
        tuned: what `tuned` stands for: the list that a model's description has.
        where: option or key, for the message.

    Raises:
        UserError: see :func:`parse_steps`.
    """
    if list(words) == ["none"]:
        return ()
    if list(words) == ["tuned"]:
        return parse_steps(tuned, where)
    if words and words[0].lstrip().startswith("["):
        try:
            return parse_steps(json.loads(" ".join(words)), where)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON: {error}") from error
    return parse_steps([{"name": word} for word in words], where)


def describe_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """What :func:`parse_steps` reads, with every parameter spelt out."""
    name_of = {kind: name for name, kind in STEPS.items()}
    return [{"name": name_of[type(step)], **dataclasses.asdict(step)} for step in steps]  # type: ignore[arg-type]


def format_steps(steps: Sequence[Step]) -> str:
    """The steps on one line, for tables and messages."""
    parts = []
    for described in describe_steps(steps):
        name = described.pop("name")
        parts.append(name + f"({', '.join(f'{k}={v}' for k, v in described.items())})")
    return " + ".join(parts) or "plain cosine"
