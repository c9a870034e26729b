"""The losses against pytorch-metric-learning: margin softmax, sampled classes, XBM.

    python -m benchmarks.losses

Both sides get the same tensors in the same process; memory is measured in a process for each.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import (
    MB,
    Row,
    alternating_medians,
    arguments,
    extra_memory,
    lower_is_better,
    peer_module,
    processor,
    report,
)
from visual_search.common.errors import run_command
from visual_search.config import MarginConfig, OptimConfig, PairLossConfig
from visual_search.losses.margin_head import MarginHead
from visual_search.losses.pairs import Samples
from visual_search.losses.partial_fc import SampledMarginHead
from visual_search.losses.xbm import XbmLoss

SCALE, MARGIN = 30.0, 0.5
ARCFACE = MarginConfig(centers=1, scale=SCALE, margin=MARGIN, class_margins="none")
LIMITS = 1.5, 1000.0  # of a million classes: s, MB

Step = Callable[[], tuple[Tensor, Tensor]]
"""Forward and backward; the loss and the gradient of the embeddings."""


class Sizes(NamedTuple):
    """What is measured."""

    batch: int
    dimension: int
    classes: int
    many_classes: int
    memory: int


FULL = Sizes(64, 512, 100_000, 1_000_000, 55_000)
QUICK = Sizes(8, 32, 500, 2_000, 300)


def embeddings_and_labels(batch: int, dimension: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rows of any length, and a class for each."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(batch, dimension, generator=generator)
    return rows, torch.randint(0, classes, (batch,), generator=generator)


def _stepping(loss_of: Callable[[Tensor], Tensor], rows: Tensor, module: Any) -> Step:
    """A step; `module` is what drops the gradients of the one before."""

    def step() -> tuple[Tensor, Tensor]:
        module.zero_grad()
        embeddings = rows.clone().requires_grad_()
        loss = loss_of(embeddings)
        loss.backward()
        assert embeddings.grad is not None
        return loss.detach(), embeddings.grad

    return step


def margin_step(sizes: Sizes, threads: int, peer: bool = False) -> Step:
    """ArcFace in ours, or in the peer's at the same centres."""
    torch.set_num_threads(threads)
    rows, labels = embeddings_and_labels(sizes.batch, sizes.dimension, sizes.classes)
    head = MarginHead(sizes.dimension, torch.ones(sizes.classes, dtype=torch.int64), ARCFACE)
    if not peer:
        return _stepping(lambda embeddings: head(embeddings, labels).mean(), rows, head)
    theirs = peer_module("pytorch_metric_learning.losses").ArcFaceLoss(
        sizes.classes, sizes.dimension, margin=float(torch.tensor(MARGIN).rad2deg()), scale=SCALE
    )
    theirs.W.data = head.weight.data.T.contiguous()
    return _stepping(lambda embeddings: theirs(embeddings, labels), rows, theirs)


def sampled_step(sizes: Sizes, threads: int) -> Step:
    """A whole step, optimiser included, over a tenth of the classes."""
    torch.set_num_threads(threads)
    rows, labels = embeddings_and_labels(sizes.batch, sizes.dimension, sizes.many_classes)
    counts = torch.ones(sizes.many_classes, dtype=torch.int64)
    head = SampledMarginHead(sizes.dimension, counts, replace(ARCFACE, sampled_share=0.1))
    optimizer = head.row_optimizer(OptimConfig("sgd", 0.1, weight_decay=0.0))
    # The state belongs to the class matrix; it is touched so that memory counts it as held.
    for tensor in optimizer.state_dict().values():
        tensor.add_(0)
    backward = _stepping(lambda embeddings: head(embeddings, labels).mean(), rows, optimizer)

    def step() -> tuple[Tensor, Tensor]:
        found = backward()
        optimizer.step()
        optimizer.zero_grad()
        return found

    return step


def remembered(sizes: Sizes) -> tuple[Samples, Samples]:
    """A batch of pairs and a memory of five photos a class, in families of similar classes.

    The cosines are those of an embedder in training: about one negative in ten thousand lies
    above the threshold.
    """
    generator = torch.Generator().manual_seed(2)

    def directions(count: int) -> Tensor:
        return F.normalize(torch.randn(count, sizes.dimension, generator=generator), dim=1)

    classes = max(sizes.memory // 5, sizes.batch // 2)
    family = torch.arange(classes) % max(classes // 55, 1)
    centers = F.normalize(directions(int(family.max()) + 1)[family] + 0.9 * directions(classes))

    def photos(labels: Tensor, first: int) -> Samples:
        rows = F.normalize(centers[labels] + 0.6 * directions(len(labels)), dim=1)
        return Samples(rows, labels, torch.arange(first, first + len(labels)))

    chosen = torch.randperm(classes, generator=generator)[: sizes.batch // 2]
    held = photos(torch.arange(sizes.memory) % classes, 0)
    return photos(chosen.repeat_interleave(2), sizes.memory), held


def xbm_step(sizes: Sizes, threads: int) -> Step:
    """Contrastive loss against a full memory in ours; batch pairs included, as in the peer's."""
    torch.set_num_threads(threads)
    batch, held = remembered(sizes)
    loss = XbmLoss(PairLossConfig("contrastive", memory=sizes.memory), sizes.dimension)
    loss.memory.enqueue(held)
    return _stepping(lambda rows: loss(rows, batch.labels, batch.ids), batch.embeddings, loss)


def peer_xbm_step(sizes: Sizes, threads: int, normalize: bool = True) -> Step:
    """The same formula in the peer's: its negatives cost s - threshold unless told otherwise.

    Its memory holds the batch itself on top. `normalize`: as its cosine distance does in every
    step, the whole memory included.
    """
    torch.set_num_threads(threads)
    losses = peer_module("pytorch_metric_learning.losses")
    distances = peer_module("pytorch_metric_learning.distances")
    reducers = peer_module("pytorch_metric_learning.reducers")

    class ContrastiveLoss(losses.ContrastiveLoss):  # type: ignore[name-defined]
        def neg_calc(self, cosines: Tensor, margin: float) -> Tensor:
            return torch.where(cosines > margin, cosines, 0.0)

    inner = ContrastiveLoss(
        pos_margin=1,
        neg_margin=0.5,
        distance=distances.DotProductSimilarity(normalize_embeddings=normalize),
        reducer=reducers.SumReducer(),
    )
    batch, held = remembered(sizes)
    size = sizes.memory + sizes.batch
    memory = losses.CrossBatchMemory(inner, sizes.dimension, memory_size=size)
    memory.embedding_memory[: sizes.memory] = held.embeddings
    memory.label_memory[: sizes.memory] = held.labels
    memory.queue_idx = sizes.memory
    return _stepping(lambda rows: memory(rows, batch.labels) / len(rows), batch.embeddings, memory)


def roofline(sizes: Sizes, seconds: float, repeats: int) -> str:
    """What the margin softmax could reach: its products at the speed of products alone."""
    rows, _ = embeddings_and_labels(sizes.batch, sizes.dimension, sizes.classes)
    weight = torch.randn(sizes.classes, sizes.dimension)
    gradient, cosines = torch.empty_like(weight), torch.empty(sizes.batch, sizes.classes)

    def products() -> None:
        torch.mm(rows, weight.T, out=cosines)
        torch.mm(cosines, weight)
        torch.mm(cosines.T, rows, out=gradient)

    (alone,) = alternating_medians([products], repeats)
    work = 6 * sizes.batch * sizes.classes * sizes.dimension
    return (
        f"roofline of the margin softmax: its three products alone take {alone:.3f} s "
        f"({work / alone / 1e9:.0f} GFLOP/s); the step reaches {alone / seconds:.0%} of that"
    )


def compared(
    case: str, makers: Mapping[str, Callable[..., Step]], sizes: Sizes, options: Namespace
) -> tuple[list[Row], list[tuple[Tensor, Tensor]]]:
    """Time and memory of our step, the first, beside the others' or the limits.

    And what each step gives at first: later the batch itself has joined the memories.
    """
    given = sizes, options.threads
    steps = [make(*given) for make in makers.values()]
    first = [step() for step in steps]
    seconds = alternating_medians(steps, options.repeats)
    del steps
    warm_up, own_process = (QUICK, options.threads), not options.quick
    megabytes = [
        extra_memory(make, *given, warm_up=warm_up, own_process=own_process) / MB
        for make in makers.values()
    ]
    peers = zip([*makers][1:], seconds[1:], megabytes[1:], strict=True)
    rows = []
    for name, their_seconds, their_megabytes in [*peers] or [("limit", *LIMITS)]:
        rows += [
            lower_is_better(f"{case}: step", seconds[0], name, their_seconds, "s"),
            lower_is_better(f"{case}: extra memory", megabytes[0], name, their_megabytes, "MB"),
        ]
    return rows, first


def main() -> None:
    """Measure, print, record."""
    words = "Time and memory of the losses against pytorch-metric-learning."
    options = arguments(words).parse_args()
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    peer = f"pytorch-metric-learning {version('pytorch-metric-learning')}"
    rows, ((_, ours), (_, theirs)) = compared(
        f"margin softmax, {sizes.classes:,} x {sizes.dimension}, batch {sizes.batch}",
        {"ours": margin_step, f"{peer} ArcFaceLoss": partial(margin_step, peer=True)},
        sizes,
        options,
    )
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    of_sampled, _ = compared(
        f"sampled classes, {sizes.many_classes:,} x {sizes.dimension}, a tenth, with optimiser",
        {"ours": sampled_step},
        sizes,
        options,
    )
    memory = f"{peer} CrossBatchMemory"
    of_xbm, losses = compared(
        f"XBM, memory {sizes.memory:,} x {sizes.dimension}, batch {sizes.batch}",
        {
            "ours": xbm_step,
            memory: peer_xbm_step,
            f"{memory}, told not to normalise": partial(peer_xbm_step, normalize=False),
        },
        sizes,
        options,
    )
    notes = [
        f"{processor()}; {options.threads} threads, torch {torch.__version__}; medians of "
        f"{options.repeats}",
        f"margin softmax: gradients of the two differ by {difference:.1e} of the largest",
        roofline(sizes, rows[0].ours, options.repeats),
        f"XBM: losses of the first step {losses[0][0]:.6f} and {losses[1][0]:.6f}",
    ]
    report("losses", rows + of_sampled + of_xbm, notes, options)


if __name__ == "__main__":
    run_command(main)
