"""Image–text runs beside the plain ridge between the same frozen features: what training is worth.

    python -m benchmarks.text_ridge --config config/demo_text/phases.yml \
        --pairs dataset/demo_text/pairs.parquet --folds 5
    python -m benchmarks.text_ridge --runs runs/demo_text_frozen runs/demo_text_embeddings

The first trains a chain on all folds of the products but one, in turns, so that each product is
asked for once (Stone 1974); the second takes trained runs and the test rows of their table. The
ridge (Hoerl and Kennard 1970, scikit-learn's) is made as strong as it can be: direction, text
features and alpha are those of the best mean recall on a held-out fifth of the training data.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
import yaml
from scipy.sparse import csr_array
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupShuffleSplit

from benchmarks.harness import Row, arguments, higher_is_better, report
from visual_search.common.errors import UserError, run_command
from visual_search.common.model_config import EmbedSettings
from visual_search.evaluation.compare import mean_interval
from visual_search.main_phases import resolved
from visual_search.model.checkpoint import load_checkpoint
from visual_search.phase_chain import Chain, read_chain, run_chain
from visual_search.ranking.embed import default_device
from visual_search.ranking.store import FeatureSource
from visual_search.text.pairs import (
    TEST,
    TRAIN,
    PairTable,
    in_language,
    open_pairs,
    read_pairs,
    write_pairs,
)
from visual_search.text.retrieval import (
    BothWays,
    Relevance,
    Scores,
    evaluate_retrieval,
    relevance_of,
)
from visual_search.text.search import TextSearch, load_text_model
from visual_search.text.towers import FrozenText, HashedNgrams, TextTowers

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 2, 9))
HELD_OUT_SHARE = 0.2  # of the training products
DIRECTIONS = TO_TEXTS, _ = "image to text", "text to image"
ALL_FEATURES = "all of them"
CACHE = Path("runs/features")
RECALLS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Data:
    """Images with their texts' features, to fit or to judge."""

    images: np.ndarray
    """`(n, p)`, float: of the frozen visual tower."""
    texts: Mapping[str, np.ndarray]
    """By the features' name, `(m, t)`, float: of the distinct texts."""
    relevance: Relevance


@dataclass(frozen=True)
class Judged:
    """Systems by name, the ridges first, on the test images of one table of pairs."""

    relevance: Relevance
    groups: np.ndarray
    """`(n,)`, int64: the images' products."""
    systems: Mapping[str, BothWays]
    choices: Mapping[str, str]
    """What each ridge chose."""


def ridge(train: Data, judged: Data, features: str, direction: str, alpha: float) -> BothWays:
    """Fit a ridge, and score the judged images and texts by cosine in the space of its targets.

    An image's texts weigh 1 in all. Towards texts a row is an image, its target the mean of its
    texts; towards images a row is a text, its target the weighted mean of its images. Both sides
    are taken less the mean of the training targets.
    """
    owned = train.relevance.texts_of
    counts = np.array([len(own) for own in owned])
    places = np.repeat(np.arange(len(owned)), counts), np.concatenate(owned)
    shares = csr_array(
        (np.repeat(1 / counts, counts), places), (len(owned), len(train.relevance.texts))
    )
    if direction == TO_TEXTS:
        inputs, targets, weights = train.images, shares @ train.texts[features], None
        asked, answers = judged.images, judged.texts[features]
    else:
        inputs, weights = train.texts[features], shares.sum(axis=0)
        targets = shares.T @ train.images / weights[:, None]
        asked, answers = judged.texts[features], judged.images
    fitted = Ridge(alpha=alpha).fit(inputs, targets, weights)
    centre = np.average(targets, 0, weights)
    sides = [fitted.predict(asked) - centre, answers - centre]
    sides = sides if direction == TO_TEXTS else sides[::-1]
    images, texts = (F.normalize(torch.from_numpy(side), dim=1).float() for side in sides)
    return evaluate_retrieval(images, texts, judged.relevance)


def best_ridge(
    parts: Mapping[str, Data], features: Sequence[str], alphas: Sequence[float] = ALPHAS
) -> tuple[str, BothWays]:
    """Choose a ridge on the held-out part, fit it to all, and judge it on the test.

    `parts` are `train`, `held out`, `everything` (both) and `test`; `features` and `alphas` are
    what may be chosen. Returns the choice in words, and the scores on the test.
    """
    tried = [
        (mean_recall(ridge(parts["train"], parts["held out"], *choice)), choice)
        for choice in ((f, d, a) for f in features for d in DIRECTIONS for a in alphas)
    ]
    name, direction, alpha = max(tried)[1]
    scores = ridge(parts["everything"], parts["test"], name, direction, alpha)
    return f"{direction}, texts by {name}, alpha {alpha:g}", scores


def mean_recall(scores: BothWays) -> float:
    """The mean of R@1, R@5 and R@10 of both directions, 0..1."""
    return float(np.mean([one[k] for one in scores.as_dict().values() for k in RECALLS]))


def judge(runs: Mapping[str, Path], pairs: Path, root: Path | None = None) -> Judged:
    """Fit ridges to a table's training rows; score them and the runs on its test rows.

    The first run's frozen towers give the features, and its settings say which texts are asked, in
    which language; all of train are learnt from. `ridge` has the frozen encoders' features,
    `ridge with n-grams` may take tf-idf.
    """
    first = next(iter(runs.values()))
    model, architecture = load_text_model(first).encoder, load_checkpoint(first).architecture
    source = FeatureSource(model.visual, architecture, EmbedSettings(), CACHE, default_device())
    settings = settings_of(first)

    def data(table: PairTable, language: str = "") -> Data:
        _, asked = in_language(table, language)
        relevance = relevance_of(asked, settings["text_column"])
        images = source.features(asked.items(), "images").matrix
        return Data(images.double().numpy(), text_features(model.text, relevance.texts), relevance)

    language = settings["test_language"]
    train = read_pairs(pairs, TRAIN, root)
    _, test = in_language(read_pairs(pairs, TEST, root), language)
    split = GroupShuffleSplit(1, test_size=HELD_OUT_SHARE, random_state=42)
    kept, held = next(split.split(train.groups, groups=train.groups))
    parts = {
        "train": data(train.take(kept)),
        "held out": data(train.take(held), language),
        "everything": data(train),
        "test": data(test),
    }
    features, relevance = list(parts["test"].texts), parts["test"].relevance
    frozen = [name for name in features if name not in ("hashed", ALL_FEATURES)] or features
    allowed = {"ridge": frozen} | ({"ridge with n-grams": features} if features != frozen else {})
    ridges = {name: best_ridge(parts, may) for name, may in allowed.items()}
    systems = {name: scores for name, (_, scores) in ridges.items()}
    for name, run in runs.items():
        search = TextSearch(load_text_model(run), test.items(), CACHE)
        texts = search.model.encoder.embed_texts(relevance.texts)
        systems[name] = evaluate_retrieval(search.vectors, texts, relevance)
    choices = {name: choice for name, (choice, _) in ridges.items()}
    return Judged(relevance, test.groups, systems, choices)


def settings_of(run: Path) -> Mapping[str, Any]:
    """What a run was trained on."""
    values: Mapping[str, Any] = yaml.safe_load((run / "config.yml").read_text("utf-8"))["dataset"]
    return values


def text_features(towers: TextTowers, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the frozen text towers give, each alone and all together, `(m, t)`."""
    made: dict[str, np.ndarray] = {}
    for name, part in zip(towers.names, towers.parts, strict=True):
        if isinstance(part, FrozenText):
            made[name] = part.tokenize(texts).double().numpy()
        elif isinstance(part, HashedNgrams):
            tokens, idf = part.tokenize(texts), part.idf.cpu()
            bags = torch.zeros(len(texts), len(idf)).scatter_add_(1, tokens, idf[tokens])
            made[name] = F.normalize(bags, dim=1)[:, idf > 0].double().numpy()
    if not made:
        raise UserError("the first run has no frozen text features (use, hashed) for the ridge")
    return made | ({ALL_FEATURES: np.hstack(list(made.values()))} if len(made) > 1 else {})


def pooled(parts: Sequence[Judged], system: str) -> dict[str, Scores]:
    """A system's scores on the queries of all parts, by direction."""
    found = [part.systems[system].scores for part in parts]
    return {
        way: {name: np.concatenate([f[way][name] for f in found]) for name in found[0][way]}
        for way in found[0]
    }


def rows_of(parts: Sequence[Judged]) -> tuple[list[Row], list[str]]:
    """Every run beside every ridge, and notes with the intervals of the gains.

    Queries that are not independent are drawn together: images of one product, and one text that
    several parts ask. No product is in two parts.
    """
    texts = np.concatenate([part.relevance.texts for part in parts])
    groups = np.concatenate([[f"{i}/{g}" for g in part.groups] for i, part in enumerate(parts)])
    clusters = {"text_to_photo": texts, "photo_to_text": groups}
    ridges = list(parts[0].choices)
    rows, notes = [], []
    runs = [name for name in parts[0].systems if name not in ridges]
    for run, peer, k in itertools.product(runs, ridges, RECALLS):
        theirs = pooled(parts, peer)
        for direction, scores in pooled(parts, run).items():
            words, other = f"{run}, {direction.replace('_', ' ')}", theirs[direction]
            values = float(scores[k].mean()), peer, float(other[k].mean())
            rows.append(higher_is_better(words, *values, k))
            gain = mean_interval(scores[k] - other[k], clusters[direction], seed=42)
            notes.append(f"{words} {k} over {peer}: {gain.low:+.3f} … {gain.high:+.3f} (95 %)")
    for number, part in enumerate(parts, 1):
        notes += [f"part {number}, {name}: {choice}" for name, choice in part.choices.items()]
    return rows, notes


def fold_tables(pairs: Path, folder: Path, folds: int, seed: int = 42) -> list[Path]:
    """Deal the products of a table into folds; in table k those of fold k test, the others train.

    Raises:
        UserError: when the table is none, or has fewer products than folds.
    """
    table = open_pairs(pairs).read()
    groups = table["group"].to_numpy()
    products, numbers = np.unique(groups, return_inverse=True)
    if not 2 <= folds <= len(products):
        raise UserError(f"{pairs} has {len(products)} products: --folds can be 2 to as many")
    fold_of = (np.random.default_rng(seed).permutation(len(products)) % folds)[numbers]
    absolute = [str(pairs.parent.resolve() / name) for name in table["image_path"].to_pylist()]
    written = []
    for fold in range(folds):
        columns = {name: table[name] for name in table.column_names}
        splits = np.where(fold_of == fold, TEST, TRAIN)
        columns |= {"image_path": pa.array(absolute), "split": pa.array(splits.tolist())}
        written.append(folder / f"fold_{fold + 1}.parquet")
        write_pairs(written[-1], pa.table(columns))
    return written


def train_on_fold(chain: Chain, table: Path) -> dict[str, Path]:
    """Train a chain's phases on another table; their run folders, beside it, by their names."""
    data = {"dataset.pairs": str(table), "dataset.root": ""}
    steps = [replace(s, overrides={**(s.overrides or {}), **data}) for s in chain.phases]
    runs = table.with_suffix("")
    run_chain(replace(chain, phases=tuple(steps)), runs, partial(resolved, command="main_clip"))
    return {step.name: runs / step.name for step in steps}


def judged_parts(options: argparse.Namespace) -> list[Judged]:
    """Train on folds, or take the runs that are named."""
    if options.runs:
        data = settings_of(options.runs[0])
        root = Path(data["root"]) if data["root"] and not options.pairs else None
        runs = {run.name: run for run in options.runs}
        return [judge(runs, options.pairs or Path(data["pairs"]), root)]
    if not (options.config and options.pairs):
        raise UserError("name --runs, or --config (a chain of main_clip) and --pairs")
    parts = []
    for table in fold_tables(options.pairs, options.folder, options.folds):
        print(f"\n== {table.stem.replace('_', ' ')} of {options.folds}", flush=True)
        parts.append(judge(train_on_fold(read_chain(options.config), table), table))
    return parts


def main() -> None:
    """Train or load, fit, judge, and print the table."""
    parser = arguments("Image-text runs beside a ridge between the same frozen features.")
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", help="trained runs of main_clip")
    add("--config", type=Path, help="or a chain, to be trained on each fold")
    add("--pairs", type=Path, help="table of pairs; of --runs, their own")
    add("--folds", type=int, default=5, help="of the products")
    add("--folder", type=Path, default=Path("runs/text_ridge"), help="of the folds")
    options = parser.parse_args()
    report("text_ridge", *rows_of(judged_parts(options)), options)


if __name__ == "__main__":
    run_command(main)
