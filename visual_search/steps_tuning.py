"""Choosing re-ranking steps for a model, and writing what beats plain cosine into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visual_search.checkpoint import describe_model, read_description
from visual_search.embedded_dev_set import EmbeddedDevSet
from visual_search.files import write_json
from visual_search.progress import progress_bar
from visual_search.rerank import describe_steps, words
from visual_search.rerank_tuning import RECIPES, Steps, choose, halves, steps_of, trials


def tune(model: EmbeddedDevSet, splits: int, seed: int, data: Path) -> None:
    """Choose steps on several splits, print what each gives, and write the first split's choice.

    They are written only when they beat plain cosine on the half they were not chosen on, on
    average over the splits and on the first.
    """

    rows: dict[str, list[float]] = {name: [] for name in (*RECIPES, "chosen")}
    chosen = []
    for number in range(splits):
        one, other = halves(
            model.queries,
            model.gallery,
            model.dev_set.query_products,
            model.dev_set.gallery_products,
            seed + number,
        )
        label = f"split {number + 1} of {splits}"
        with progress_bar(label, "ranking", total=trials()) as bar:
            steps = choose(one, on_score=lambda bar=bar: bar.update(1))  # type: ignore[misc]
        chosen.append(steps)
        for name, recipe in RECIPES.items():
            rows[name].append(other.score(steps_of(recipe)))
        rows["chosen"].append(other.score(steps))
        print(f"{label}: {words(steps)}")
        print(
            f"  mAP {one.score(()):.4f} -> {one.score(steps):.4f} on the half it was chosen on, "
            f"{other.score(()):.4f} -> {other.score(steps):.4f} on the other",
            flush=True,
        )
    print(f"\n| on the half not chosen on ({splits} splits) | mAP | spread | against plain |")
    print("|---|---:|---:|---:|")
    plain = np.array(rows["plain cosine"])
    for name, values in rows.items():
        gains = np.array(values) / plain - 1
        print(
            f"| {name} | {np.mean(values):.4f} | {np.std(values):.4f} "
            f"| {100 * gains.mean():+.1f} % ± {100 * gains.std():.1f} |"
        )
    gains = np.array(rows["chosen"]) / plain - 1
    if gains[0] > 0 and gains.mean() > 0:
        write_steps(model.description, chosen[0], data, float(plain[0]), rows["chosen"][0])
        print(f"\nwrote split 1's choice into {model.description}")
        print("next: export the run, or python local_evaluation.py --weights <export>")
    else:
        print(
            f"\nnothing beats plain cosine on the other half: {model.description} stays as it was"
        )


def write_steps(description: Path, steps: Steps, data: Path, plain: float, reranked: float) -> None:
    """Write re-ranking steps, and what they were chosen by, into a `model.json`."""

    architecture, facts = read_description(description)
    facts["rerank"] = describe_steps(steps)
    facts["rerank_tuning"] = {
        "data": data.name,
        "plain_mAP": round(plain, 6),
        "reranked_mAP": round(reranked, 6),
        "measured_on": "the half of the queries that the steps were not chosen on",
    }
    write_json(description, describe_model(architecture, facts))
