"""The classification head: it trains an embedder with a margin softmax, and is then dropped."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.config import MarginConfig, OptimConfig
from visual_search.losses.gathering import (
    gather_constant,
    processes,
    shard_range,
    sum_over_processes,
)
from visual_search.losses.margin_softmax import (
    MarginLogits,
    Shard,
    Similarities,
    margin_softmax,
    similarities,
)
from visual_search.losses.margins import MarginSchedule

if TYPE_CHECKING:
    from visual_search.losses.partial_fc import RowOptimizer

# Classes whose first centres come from one generator, so that any run of classes can be made
# without those before it.
_SEEDED_CLASSES = 4096
# Imprinted sub-centres of a class start this far apart, as a share of a centre's length.
_SPREAD = 0.1


def generator_of(*numbers: int) -> torch.Generator:
    """A generator in main memory, seeded by all of the numbers, in their order.

    They are hashed, since the generator reads the lower 32 bits of a seed only: neighbouring
    steps of neighbouring seeds would otherwise share their draws.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def initial_centers(
    classes: int, centers: int, dimension: int, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Random centres of the classes `start..stop`, the same whatever the run they are made in.

    Uniform, with the standard deviation of Xavier's for the whole matrix but at least 0.01: the
    update of a direction is inverse to its length, and Xavier's shrinks with the classes.

    Returns:
        `((stop - start) * centers, dimension)`, float32.
    """
    stop = classes if stop is None else stop
    bound = math.sqrt(3.0) * max(math.sqrt(2.0 / (classes * centers + dimension)), 0.01)
    answer = torch.empty(stop - start, centers, dimension)
    first = start // _SEEDED_CLASSES * _SEEDED_CLASSES
    for block in range(first, stop, _SEEDED_CLASSES):
        generator = generator_of(seed, block)
        made = torch.empty(min(_SEEDED_CLASSES, classes - block), centers, dimension)
        made.uniform_(-bound, bound, generator=generator)
        low, high = max(block, start), min(block + len(made), stop)
        answer[low - start : high - start] = made[low - block : high - block]
    return answer.view(-1, dimension)


def focal(losses: Tensor, gamma: float) -> Tensor:
    """(1 - p) ** gamma * losses, p = exp(-losses): rows that are right already weigh less.

    Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), equation 4. The weight is
    part of what is differentiated.

    Args:
        losses: any shape, cross-entropies, 0 or more.
        gamma: 0 leaves them as they are.
    """
    # 1 - exp(-x) loses all digits near 0, where the weight's slope would then be off.
    return losses if gamma == 0 else (-torch.expm1(-losses)).clamp(min=1e-12) ** gamma * losses


class MarginHead(nn.Module):
    """Sub-centre softmax with any margin of :data:`visual_search.losses.margins.MARGINS`.

    The similarity to a class is that to the nearest of its centres: Deng et al., "Sub-center
    ArcFace" (ECCV 2020), equation 3.
    """

    weight: Tensor
    """`(own classes * centers, dimension)`."""
    joint = False
    """Whether a process compares the rows of all processes, with its own run of the classes."""

    def __init__(self, dimension: int, counts: Tensor, config: MarginConfig, seed: int = 0) -> None:
        """
        Args:
            dimension: width of the embeddings.
            counts: `(classes,)`, training images of each class.
            config: margin, sub-centres, label smoothing and focal loss.
            seed: of the first centres.

        Raises:
            UserError: for values that do not go together, naming their keys, `margin.…`.
        """
        super().__init__()
        self.centers, self.classes = config.centers, len(counts)
        self.label_smoothing, self.focal_gamma = config.label_smoothing, config.focal_gamma
        self.rule = MarginSchedule(counts, config)
        self.start, self.stop = shard_range(self.classes) if self.joint else (0, self.classes)
        self._hold(
            initial_centers(self.classes, self.centers, dimension, seed, self.start, self.stop)
        )

    def _hold(self, centers: Tensor) -> None:
        self.weight = nn.Parameter(centers)

    def row_optimizer(self, optim: OptimConfig) -> RowOptimizer | None:
        """What moves the centres, where they are not among the module's parameters."""
        return None

    def own_state_names(self) -> list[str]:
        """Of the tensors of its state, those that differ between the processes."""
        return []

    def full_state(self) -> dict[str, Tensor]:
        """The state for any number of processes, on process 0. All of them have to call it."""
        return self.state_dict()

    def set_progress(self, share: float) -> None:
        """Tell how much of the training is done, 0..1: a growing margin follows it."""
        self.rule.set_progress(share)

    def set_centers(self, embeddings: Tensor, labels: Tensor) -> None:
        """Set each own class's centres to the mean of its embeddings, plus a little noise.

        Weight imprinting: Qi et al., "Low-Shot Learning with Imprinted Weights" (CVPR 2018),
        section 3.1. Classes without embeddings keep their random centres, and every centre keeps
        the length it had.

        Args:
            embeddings: `(n, dimension)`, unit vectors, on the CPU.
            labels: `(n,)`, int64.
        """
        own = (labels >= self.start) & (labels < self.stop)
        count, width = self.stop - self.start, self.weight.shape[1]
        sums = torch.zeros(count, width).index_add_(0, labels[own] - self.start, embeddings[own])
        directions = F.normalize(sums, dim=1)[:, None, :].expand(-1, self.centers, -1)
        noise = F.normalize(torch.randn(count, self.centers, width), dim=2) * _SPREAD
        weight = self.weight.data.view(count, self.centers, width)
        lengths = weight.norm(dim=2, keepdim=True)
        centers = F.normalize(directions + noise, dim=2) * lengths.cpu()
        seen = sums.norm(dim=1) > 0
        weight[seen] = centers[seen].to(weight)

    def take_centers(self, centers: Tensor) -> bool:
        """Copy another head's centres of all classes, `(classes * centers, dimension)`.

        False, and nothing done, where the shapes differ.
        """
        if centers.shape != (self.classes * self.centers, self.weight.shape[1]):
            return False
        own = slice(self.start * self.centers, self.stop * self.centers)
        self.weight.data.copy_(centers[own])
        return True

    def forward(self, embeddings: Tensor, labels: Tensor, observes: bool = True) -> Tensor:
        """The loss of each row, `(N,)`, float32.

        Args:
            embeddings: `(N, dimension)`, not normalised, of any floating type.
            labels: `(N,)`, int64, 0..classes-1.
            observes: whether what a margin learns of the data moves; once a batch.
        """
        return self._losses(embeddings, self.weight, labels, labels, observes=observes)

    def prefix_losses(self, embeddings: Tensor, labels: Tensor, width: int) -> Tensor:
        """The loss of each row, `(N,)`, by the first `width` dimensions of both sides alone.

        Kusupati et al., "Matryoshka Representation Learning" (NeurIPS 2022), equation 1, with one
        class matrix for all widths (its section 3, MRL-E). What the margin has learnt of the
        data is that of whole embeddings.

        Args:
            embeddings: `(N, dimension)`, as :meth:`forward`.
            labels: `(N,)`, int64.
            width: 1..dimension.
        """
        centers = self.weight[:, :width].contiguous()
        return self._losses(embeddings[:, :width], centers, labels, labels, observes=False)

    def _losses(
        self,
        embeddings: Tensor,
        weight: Tensor,
        labels: Tensor,
        columns: Tensor,
        *,
        observes: bool = True,
        picked: Tensor | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """The loss of each row; labels are those of all processes where the head is joint.

        `columns`, `(N,)`, says where the right classes stand among the similarities, -1 where
        another process has them; `picked` and `shard` are as :func:`similarities` and
        :func:`margin_softmax` take them.
        """
        rows = gather_constant(embeddings) if self.joint else embeddings
        similar = similarities(
            rows,
            weight,
            self.centers,
            normalize=self.rule.normalize,
            picked=picked,
            reserve=torch.is_grad_enabled() and (shard is not None or weight.requires_grad),
        )
        logits = self._logits(rows, labels, similar, columns, observes)
        losses = margin_softmax(embeddings, weight, logits, self.label_smoothing, shard)
        return focal(losses, self.focal_gamma)

    @torch.no_grad()
    def _logits(
        self,
        embeddings: Tensor,
        labels: Tensor,
        similar: Similarities,
        columns: Tensor,
        observes: bool,
    ) -> MarginLogits:
        """Similarities with the margin on the right classes."""
        values, rule = similar.values, self.rule
        to_target = values.new_zeros(len(columns))
        place = columns.clamp(min=0)[:, None]
        if values.shape[1]:
            to_target = torch.where(columns >= 0, values.gather(1, place).squeeze(1), to_target)
        if self.joint:
            to_target = sum_over_processes(to_target)
        lengths = embeddings.detach().to(values.dtype).norm(dim=1)
        if observes and self.training and rule.observes:
            self._observe(to_target, lengths, values, columns)
        draws = rule.draw(to_target)
        if self.joint and processes() > 1:
            dist.broadcast(draws, 0)
        value, slope, threshold = rule.grade(to_target, labels, lengths, draws)
        scale, pace = rule.scale.clone(), rule.pace.clone()
        return MarginLogits(similar, columns, scale, value, slope, threshold, pace)

    def _observe(self, to_target: Tensor, lengths: Tensor, values: Tensor, columns: Tensor) -> None:
        """Show the rule the batch of all processes."""
        log_rivals = None
        if self.rule.name == "adacos":
            of_rows = gather_constant(_log_rivals(values, columns, self.rule.scale))
            rows = len(columns) if self.joint else len(of_rows)
            log_rivals = torch.logsumexp(of_rows, dim=0) - math.log(rows)
        if not self.joint:
            to_target, lengths = gather_constant(to_target), gather_constant(lengths)
        self.rule.observe(to_target, lengths, log_rivals)


def _log_rivals(values: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Of each row, the logarithm of the summed exponentials of its wrong classes here, `(N,)`."""
    if not values.shape[1]:
        return torch.full((len(columns),), -math.inf, dtype=values.dtype, device=values.device)
    logits, place = values * scale, columns.clamp(min=0)[:, None]
    right = torch.where(columns[:, None] >= 0, -math.inf, logits.gather(1, place))
    return torch.logsumexp(logits.scatter(1, place, right), dim=1)
