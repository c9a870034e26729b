"""Score a model on a development set: `python -m visual_search.main_evaluate --run runs/X`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from torch import Tensor

    from visual_search.checkpoint import Checkpoint
    from visual_search.embed import Embeddings
    from visual_search.embed_settings import EmbedSettings
    from visual_search.evaluate import DevSet
    from visual_search.images import ImageItem
    from visual_search.rerank_tuning import Steps


def main() -> None:
    """Embed, or read the embeddings kept from last time; score, or search for re-ranking steps."""
    options = build_parser().parse_args()
    if options.splits < 1:
        raise UserError("--splits must be 1 or more")
    dev_set = _dev_set(options)
    if options.tune_rerank and dev_set.own is not None:
        raise UserError(
            "--tune-rerank needs queries apart from the gallery, but each photo of "
            f"{options.table} is ranked against all others; give --data-folder, or a table whose "
            "evaluation_status names queries"
        )
    model = embed_dev_set(options.run, dev_set, options.input_size, options.cache)
    if options.tune_rerank:
        tune(model, options.splits, options.seed, options.table or options.data_folder)
    else:
        score(model)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_evaluate",
        description="Score a model on a development set; embeddings are kept for the next time.",
    )
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        help="a run folder, or an export's folder (my_submission/weights)",
    )
    parser.add_argument(
        "--data-folder",
        type=Path,
        default=Path("dataset/development_test_data"),
        help="holds gallery.csv, queries.csv and their photos (%(default)s)",
    )
    parser.add_argument(
        "--table",
        type=Path,
        help="instead, a dataset_info.csv or folds.csv, of which the held-out rows are ranked: "
        "queries against gallery where evaluation_status says so, else each photo against all "
        "others",
    )
    parser.add_argument(
        "--root", type=Path, help="folder that the table's paths are relative to; default: its own"
    )
    parser.add_argument(
        "--fold", type=int, default=-1, help="of a folds.csv, the fold that was held out"
    )
    parser.add_argument(
        "--input_size", type=int, default=0, help="pixels; default: what the model was trained with"
    )
    parser.add_argument(
        "--tune-rerank",
        action="store_true",
        help="choose re-ranking steps on half of the queries, report on the other half, and write "
        "them into the model's model.json if they beat plain cosine there",
    )
    parser.add_argument(
        "--splits", type=int, default=3, help="of the queries, to see the spread (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first split (%(default)s)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/embeddings"),
        help="folder in which embeddings are kept (%(default)s)",
    )
    return parser


def _dev_set(options: argparse.Namespace) -> DevSet:
    from visual_search.dev_tables import read_dev_table
    from visual_search.evaluate import read_dev_set

    if options.table:
        return read_dev_table(options.table, options.root, fold=options.fold)
    return read_dev_set(options.data_folder)


@dataclass(frozen=True)
class EmbeddedDevSet:
    """A development set as a model sees it."""

    dev_set: DevSet
    gallery: Tensor
    queries: Tensor
    description: Path
    """The `model.json` of the model."""

    def score(self, steps: Steps) -> np.ndarray:
        """Average precision of each query with these re-ranking steps, 0..1."""
        from visual_search.evaluate import nearest_rows
        from visual_search.metrics import average_precision

        dev_set = self.dev_set
        ranks = nearest_rows(self.queries, self.gallery, steps, dev_set.own)
        return average_precision(
            ranks, dev_set.gallery_products, dev_set.query_products, dev_set.own
        )


def embed_dev_set(source: Path, dev_set: DevSet, input_size: int, cache: Path) -> EmbeddedDevSet:
    """Embed a development set with a run's or an export's model, or read what was kept.

    Args:
        source: a run folder, a checkpoint, or an export's folder.
        dev_set: the photos.
        input_size: pixels; 0 takes the model's own.
        cache: where embeddings are kept.

    Raises:
        UserError: when the model is missing or damaged.
    """
    from visual_search.checkpoint import fingerprint, load_checkpoint
    from visual_search.embed import default_device
    from visual_search.embed_settings import EmbedSettings
    from visual_search.embedding_cache import cached_embeddings, embeddings_fingerprint
    from visual_search.evaluate import trimmed

    device = default_device()
    checkpoint, weights = load_checkpoint(source), fingerprint(source)
    architecture = checkpoint.architecture
    size = input_size or architecture.input_size
    where = str(checkpoint.path.with_name("model.json"))
    embedding = EmbedSettings.parsed(checkpoint.facts.get("embedding") or {}, where)
    settings = {
        "architecture": asdict(architecture),
        "input_size": size,
        "device": device.type,
        "embedding": asdict(embedding),
    }
    started, matrices = time.perf_counter(), []
    sides = {"gallery photos": trimmed(dev_set.gallery, embedding)}
    if dev_set.own is None:
        sides["query photos"] = dev_set.queries
    for label, items in sides.items():
        embeddings, kept = cached_embeddings(
            cache,
            embeddings_fingerprint(weights, items, settings),
            partial(_embed, checkpoint, items, size, device, embedding, label),
        )
        matrices.append(embeddings.matrix)
        source_of = "read from the cache" if kept else "embedded"
        print(f"{len(items)} {label} {source_of}", flush=True)
        for problem in embeddings.problems[:3]:
            print(f"  {problem.path}: {problem.reason}")
        if len(embeddings.problems) > 3:
            print(f"  and {len(embeddings.problems) - 3} more damaged photos")
    print(f"{architecture.backbone}, {size} px, {time.perf_counter() - started:.1f} s", flush=True)
    gallery, queries = matrices[0], matrices[-1]
    if dev_set.own is not None:
        print(f"{len(dev_set.queries)} of them are queries, each against all others", flush=True)
        queries = gallery[dev_set.own]
    return EmbeddedDevSet(dev_set, gallery, queries, checkpoint.path.with_name("model.json"))


def _embed(
    checkpoint: Checkpoint,
    items: Sequence[ImageItem],
    size: int,
    device: torch.device,
    settings: EmbedSettings,
    label: str,
) -> Embeddings:
    from visual_search.embed import embed_images
    from visual_search.export import load_model

    model = load_model(checkpoint, device)
    return embed_images(model, items, size, device=device, settings=settings, label=label)


def score(model: EmbeddedDevSet) -> None:
    """Print the mAP with the model's own re-ranking steps and without."""
    from visual_search.export import exported_steps
    from visual_search.rerank import words

    steps = exported_steps(model.description.parent)
    print(f"mAP {model.score(()).mean():.4f}  {words(())}")
    if steps:
        print(f"mAP {model.score(steps).mean():.4f}  {words(steps)}")
        print("next: python local_evaluation.py --weights <export> runs the submission itself")
    elif model.dev_set.own is None:
        print("next: the same command with --tune-rerank looks for re-ranking steps")
    else:
        print("next: python my_submission/to_torchscript.py <run> exports it for the ranker")


def tune(model: EmbeddedDevSet, splits: int, seed: int, data: Path) -> None:
    """Choose steps on several splits, print what each gives, and write the first split's choice.

    They are written only when they beat plain cosine on the half they were not chosen on, on
    average over the splits and on the first.
    """
    import numpy as np

    from visual_search.progress import progress_bar
    from visual_search.rerank import words
    from visual_search.rerank_tuning import RECIPES, choose, halves, trials

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
        for name, recipe in {**RECIPES, "chosen": steps}.items():
            rows[name].append(other.score(recipe))
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
    from visual_search.checkpoint import describe_model, read_description
    from visual_search.files import write_json
    from visual_search.rerank import describe_steps

    architecture, facts = read_description(description)
    facts["rerank"] = describe_steps(steps)
    facts["rerank_tuning"] = {
        "data": data.name,
        "plain_mAP": round(plain, 6),
        "reranked_mAP": round(reranked, 6),
        "measured_on": "the half of the queries that the steps were not chosen on",
    }
    write_json(description, describe_model(architecture, facts))


if __name__ == "__main__":
    exit_with_sentence(main)
