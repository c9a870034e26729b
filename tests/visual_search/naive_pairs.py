"""The losses over pairs as the papers write them, one pair at a time."""

import torch
from torch import Tensor

from visual_search.losses.pairs import Samples


def contrastive(positives: list[Tensor], negatives: list[Tensor]) -> Tensor:
    near = [cosine for cosine in negatives if cosine > 0.5]
    return torch.zeros(()) + sum(1 - cosine for cosine in positives) + sum(near)


def multi_similarity(positives: list[Tensor], negatives: list[Tensor]) -> Tensor:
    if not positives or not negatives:
        return torch.zeros(())
    far = [torch.exp(-2 * (p - 0.5)) for p in positives if p < max(negatives) + 0.1]
    near = [torch.exp(50 * (n - 0.5)) for n in negatives if n > min(positives) - 0.1]
    both = (torch.ones(()) + sum(far)).log() / 2, (torch.ones(()) + sum(near)).log() / 50
    return both[0] + both[1]


def naive_pair_loss(name: str, anchors: Samples, references: Samples) -> Tensor:
    """Mean over the anchors."""
    losses = {"contrastive": contrastive, "multi-similarity": multi_similarity}
    total = torch.zeros(())
    for a, anchor in enumerate(anchors.embeddings):
        sides: dict[bool, list[Tensor]] = {True: [], False: []}
        for r, reference in enumerate(references.embeddings):
            if anchors.ids[a] != references.ids[r]:
                same = bool(anchors.labels[a] == references.labels[r])
                sides[same].append((anchor * reference).sum())
        total = total + losses[name](sides[True], sides[False])
    return total / len(anchors.labels)
