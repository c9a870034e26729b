"""The losses over pairs as the papers write them, one pair at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from visual_search.losses.pairs import Samples


def contrastive(positives: list[Tensor], negatives: list[Tensor], threshold: float = 0.5) -> Tensor:
    total = torch.zeros(())
    for cosine in positives:
        total = total + 1 - cosine
    for cosine in negatives:
        if cosine > threshold:
            total = total + cosine
    return total


def multi_similarity(
    positives: list[Tensor], negatives: list[Tensor], base: float = 0.5, slack: float = 0.1
) -> Tensor:
    if not positives or not negatives:
        return torch.zeros(())
    near = [n for n in negatives if n > min(positives) - slack]
    far = [p for p in positives if p < max(negatives) + slack]
    total = torch.zeros(())
    for chosen, slope in ((far, -2.0), (near, 50.0)):
        summed = torch.ones(())
        for cosine in chosen:
            summed = summed + torch.exp(slope * (cosine - base))
        total = total + torch.log(summed) / math.fabs(slope)
    return total


NAIVE: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
}


def naive_pair_loss(name: str, anchors: Samples, references: Samples) -> Tensor:
    """Mean over the anchors."""
    total = torch.zeros(())
    for a in range(len(anchors.labels)):
        positives: list[Tensor] = []
        negatives: list[Tensor] = []
        for r in range(len(references.labels)):
            if anchors.ids[a] == references.ids[r]:
                continue
            cosine = (anchors.embeddings[a] * references.embeddings[r]).sum()
            same = anchors.labels[a] == references.labels[r]
            (positives if same else negatives).append(cosine)
        total = total + NAIVE[name](positives, negatives)
    return total / len(anchors.labels)
