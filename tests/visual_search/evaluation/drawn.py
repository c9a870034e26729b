"""Development sets of drawn vectors: sixty products with three photos on each side."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from visual_search.data.dev_sets import DevSet
from visual_search.data.images import ImageItem
from visual_search.evaluation.dev_set import EmbeddedDevSet


def drawn(
    noise: float, seed: int, own: bool = False, distractors: bool = False, shift: float = 0.0
) -> EmbeddedDevSet:
    """Products apart from each other, and all queries moved the same way by `shift`."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(60, 16))
    products = np.repeat(np.arange(60), 3)
    sides = [centers[products] + noise * rng.normal(size=(180, 16)) for _ in range(2)]
    gallery, queries = (
        F.normalize(torch.from_numpy(side + move).float())
        for side, move in zip(sides, (0, shift), strict=True)
    )
    items = [ImageItem(Path(f"{number}.jpg")) for number in range(180)]
    labels = products.astype(str)
    asked = np.where(products < 10, "unknown", labels) if distractors else labels
    dev_set = DevSet(items, items, labels, asked, np.arange(180) if own else None)
    return EmbeddedDevSet(dev_set, gallery, gallery if own else queries, Path("model.json"))
