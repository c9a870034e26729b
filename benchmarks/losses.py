"""The losses against pytorch-metric-learning: margin softmax, sampled classes, XBM.

    python -m benchmarks.losses

Both sides get the same tensors in the same process; memory is measured in a process for each.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from visual_search.losses.partial_fc import RowOptimizer, SampledMarginHead
from visual_search.losses.xbm import XbmLoss

PEER = "pytorch-metric-learning"
SCALE, MARGIN = 30.0, 0.5
ARCFACE = MarginConfig(centers=1, scale=SCALE, margin=MARGIN, class_margins="none")
STEP_LIMIT, MEMORY_LIMIT = 1.5, 1000.0  # of a million classes: s, MB

Step = Callable[[], tuple[Tensor, Tensor]]
"""Forward and backward; the loss and the gradient of the embeddings."""


@dataclass(frozen=True)
class Sizes:
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


def _stepping(loss_of: Callable[[Tensor], Tensor], rows: Tensor, module: nn.Module) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        module.zero_grad()
        embeddings = rows.clone().requires_grad_()
        loss = loss_of(embeddings)
        loss.backward()
        assert embeddings.grad is not None
        return loss.detach(), embeddings.grad

    return step


def arcface(sizes: Sizes, threads: int) -> tuple[Tensor, Tensor, MarginHead]:
    """Embeddings, labels and our head."""
    torch.set_num_threads(threads)
    rows, labels = embeddings_and_labels(sizes.batch, sizes.dimension, sizes.classes)
    counts = torch.ones(sizes.classes, dtype=torch.int64)
    return rows, labels, MarginHead(sizes.dimension, counts, ARCFACE)


def margin_step(sizes: Sizes, threads: int) -> Step:
    """ArcFace in ours."""
    rows, labels, head = arcface(sizes, threads)
    return _stepping(lambda embeddings: head(embeddings, labels).mean(), rows, head)


def peer_margin_step(sizes: Sizes, threads: int) -> Step:
    """ArcFace in the peer's, at the same centres."""
    rows, labels, head = arcface(sizes, threads)
    peer = peer_module("pytorch_metric_learning.losses").ArcFaceLoss(
        sizes.classes, sizes.dimension, margin=float(torch.tensor(MARGIN).rad2deg()), scale=SCALE
    )
    peer.W.data = head.weight.data.T.contiguous()
    return _stepping(lambda embeddings: peer(embeddings, labels), rows, peer)


def sampled_step(sizes: Sizes, threads: int) -> Callable[[], Tensor]:
    """A whole step, optimiser included, over a tenth of the classes."""
    torch.set_num_threads(threads)
    rows, labels = embeddings_and_labels(sizes.batch, sizes.dimension, sizes.many_classes)
    counts = torch.ones(sizes.many_classes, dtype=torch.int64)
    head = SampledMarginHead(sizes.dimension, counts, replace(ARCFACE, sampled_share=0.1))
    optimizer = RowOptimizer(head.table, OptimConfig("sgd", 0.1, weight_decay=0.0))
    # The state belongs to the class matrix; it is touched so that memory counts it as held.
    for tensor in optimizer.state_dict().values():
        tensor.add_(0)

    def step() -> Tensor:
        embeddings = rows.clone().requires_grad_()
        loss = head(embeddings, labels).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

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

    def loss_of(rows: Tensor) -> Tensor:
        return memory(rows, batch.labels) / len(rows)

    return _stepping(loss_of, batch.embeddings, memory)


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


def _megabytes(make: Callable[..., Callable], sizes: Sizes, options: Namespace) -> float:
    warm_up, own_process = (QUICK, options.threads), not options.quick
    given = sizes, options.threads
    return extra_memory(make, *given, warm_up=warm_up, own_process=own_process) / MB


def margin_rows(sizes: Sizes, options: Namespace) -> tuple[list[Row], list[str]]:
    """Time and memory of a step of ArcFace."""
    ours, theirs = (make(sizes, options.threads) for make in (margin_step, peer_margin_step))
    difference = (ours()[1] - theirs()[1]).abs().max() / theirs()[1].abs().max()
    seconds = alternating_medians([ours, theirs], options.repeats)
    del ours, theirs
    bytes_ours, bytes_theirs = (
        _megabytes(make, sizes, options) for make in (margin_step, peer_margin_step)
    )
    peer = f"{PEER} {version(PEER)} ArcFaceLoss"
    case = f"margin softmax, {sizes.classes:,} x {sizes.dimension}, batch {sizes.batch}"
    rows = [
        lower_is_better(f"{case}: step", seconds[0], peer, seconds[1], "s"),
        lower_is_better(f"{case}: extra memory", bytes_ours, peer, bytes_theirs, "MB"),
    ]
    notes = [
        f"margin softmax: gradients of the two differ by {float(difference):.1e} of the largest",
        roofline(sizes, seconds[0], options.repeats),
    ]
    return rows, notes


def sampled_rows(sizes: Sizes, options: Namespace) -> list[Row]:
    """Time and memory of a step over a tenth of the classes, against what it may take."""
    step = sampled_step(sizes, options.threads)
    (seconds,) = alternating_medians([step], options.repeats)
    del step
    added = _megabytes(sampled_step, sizes, options)
    case = f"sampled classes, {sizes.many_classes:,} x {sizes.dimension}, a tenth"
    return [
        lower_is_better(f"{case}: step with optimiser", seconds, "limit", STEP_LIMIT, "s"),
        lower_is_better(f"{case}: extra memory", added, "limit", MEMORY_LIMIT, "MB"),
    ]


def xbm_rows(sizes: Sizes, options: Namespace) -> tuple[list[Row], list[str]]:
    """Time and memory of a step of contrastive loss with a memory."""
    threads = options.threads
    ours, theirs = xbm_step(sizes, threads), peer_xbm_step(sizes, threads)
    lean = peer_xbm_step(sizes, threads, normalize=False)
    # Of the first step: from the second on, the batch itself has joined the memories.
    (loss, _), (peer_loss, _) = ours(), theirs()
    seconds = alternating_medians([ours, theirs, lean], options.repeats)
    added = [_megabytes(make, sizes, options) for make in (xbm_step, peer_xbm_step)]
    peer = f"{PEER} {version(PEER)} CrossBatchMemory"
    case = f"XBM, memory {sizes.memory:,} x {sizes.dimension}, batch {sizes.batch}"
    rows = [
        lower_is_better(f"{case}: step", seconds[0], peer, seconds[1], "s"),
        lower_is_better(
            f"{case}: step", seconds[0], f"{peer}, told not to normalise", seconds[2], "s"
        ),
        lower_is_better(f"{case}: extra memory", added[0], peer, added[1], "MB"),
    ]
    return rows, [f"XBM: losses of the first step {float(loss):.6f} and {float(peer_loss):.6f}"]


def main() -> None:
    """Measure, print, record."""
    options = arguments(
        "Time and memory of the losses against pytorch-metric-learning."
    ).parse_args()
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    rows, notes = margin_rows(sizes, options)
    rows += sampled_rows(sizes, options)
    of_xbm, notes_of_xbm = xbm_rows(sizes, options)
    machine = f"{processor()}; {options.threads} threads, torch {torch.__version__}"
    notes = [f"{machine}; medians of {options.repeats}", *notes, *notes_of_xbm]
    report("losses", rows + of_xbm, notes, options)


if __name__ == "__main__":
    run_command(main)
