"""Learning from another model's embeddings of the same pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.common.errors import UserError


def _relational(ours: Tensor, theirs: Tensor) -> Tensor:
    # Huber's loss, as in the paper: a few pairs that disagree wildly must not set the tone.
    apart = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    difference = F.smooth_l1_loss(ours @ ours.T, theirs @ theirs.T, reduction="none")
    return (difference * apart).sum() / apart.sum().clamp(min=1)


DISTILLATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda ours, theirs: (ours - theirs).square().sum(dim=1).mean(),
    "l1": lambda ours, theirs: (ours - theirs).abs().sum(dim=1).mean(),
    "cosine": lambda ours, theirs: (1.0 - F.cosine_similarity(ours, theirs, dim=1)).mean(),
    "relational": _relational,
}
"""Losses between a student's embeddings and a teacher's, by name."""


def distillation_loss(kind: str, embeddings: Tensor, teacher: Tensor) -> Tensor:
    """Pulls a student's embeddings to a teacher's: the loss, a scalar, float32 at least.

    `mse` is the mean over images of |student - teacher|^2, the square of their distance; `l1`
    that of the summed absolute differences; `cosine` that of 1 - cosine. `relational` matches the
    batch's matrices of cosines, off the diagonal, in Huber's loss, and so allows for any two
    widths: Park et al., "Relational Knowledge Distillation" (CVPR 2019), section 3.2, with the
    cosine as the relation, which for unit vectors is their distance (1 - d^2 / 2) without the
    root.

    Args:
        kind: a key of :data:`DISTILLATIONS`.
        embeddings: `(N, d)`, unit vectors.
        teacher: `(N, d_t)`, unit vectors of the same images; no gradient flows to them.
            `d_t` is `d`, except for relational.

    Raises:
        UserError: when the widths differ and the kind needs them equal.
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    if kind != "relational" and embeddings.shape[1] != teacher.shape[1]:
        raise UserError(
            f"distillation.kind {kind} compares embeddings of one width, but the teacher's have "
            f"{teacher.shape[1]} numbers and the student's {embeddings.shape[1]}; write "
            f"relational, or set neck.dimension to {teacher.shape[1]}"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        return DISTILLATIONS[kind](embeddings.to(dtype), teacher.detach().to(dtype))
