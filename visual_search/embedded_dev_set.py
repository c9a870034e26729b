"""A development set as a model sees it: embedded once, then read from the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visual_search.checkpoint import Checkpoint, fingerprint, load_checkpoint
from visual_search.embed import Embeddings, default_device, embed_images
from visual_search.embed_settings import EmbedSettings
from visual_search.embedding_cache import cached_embeddings, embeddings_fingerprint
from visual_search.evaluate import DevSet, nearest_rows, trimmed
from visual_search.export import load_model
from visual_search.images import ImageItem
from visual_search.metrics import average_precision
from visual_search.rerank import Search, Step


@dataclass(frozen=True)
class EmbeddedDevSet:
    """A development set as a model sees it."""

    dev_set: DevSet
    gallery: Tensor
    queries: Tensor
    description: Path
    """The `model.json` of the model."""

    def score(self, steps: Sequence[Step], search: Search | None = None) -> np.ndarray:
        """Average precision of each query with these re-ranking steps, 0..1."""

        dev_set = self.dev_set
        ranks = nearest_rows(self.queries, self.gallery, steps, dev_set.own, search)
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

    model = load_model(checkpoint, device)
    return embed_images(model, items, size, device=device, settings=settings, label=label)
