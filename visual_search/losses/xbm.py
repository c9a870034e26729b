"""Cross-batch memory: embeddings of earlier batches as further references of the present one.

Wang et al., "Cross-Batch Memory for Embedding Learning" (CVPR 2020): embeddings drift slowly, so
those of the last thousands of images are nearly as good as fresh ones, and cost no forward pass.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from visual_search.config import PairLossConfig
from visual_search.losses.gathering import gather_constant, gather_rows
from visual_search.losses.pairs import PAIR_LOSSES, PairLoss, Samples, pair_loss


class CrossBatchMemory(nn.Module):
    """A ring of the newest embeddings with their labels and sample ids, in the state dict.

    It holds float32, `size * dimension * 4` bytes (113 MB for 55,000 of 512), plus 16 bytes a
    row; half of that in bfloat16 would blur cosines by 0.4 %. All processes hold the same
    rows, those of all of them.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    pointer: Tensor
    count: Tensor

    def __init__(self, size: int, dimension: int) -> None:
        """
        Args:
            size: rows held; 0 remembers nothing. The paper's best is the whole training set.
            dimension: width of the embeddings.
        """
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dimension))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        # Where the next row goes, and how many there are: whether a row is in use cannot be told
        # from its contents, since 0 is a label too.
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """Rows it can hold."""
        return len(self.labels)

    def held(self) -> Samples:
        """What it holds, in no particular order, up to `(size, dimension)`: views, to be read."""
        count = int(self.count)
        return Samples(self.embeddings[:count], self.labels[:count], self.ids[:count])

    @torch.no_grad()
    def enqueue(self, batch: Samples) -> None:
        """Add the batches of all processes, in the order of ranks; the oldest rows make room."""
        if self.size == 0:
            return
        # Of a batch larger than the memory, the last rows count as the newest.
        embeddings, labels, ids = (
            gather_constant(part)[-self.size :]
            for part in (batch.embeddings.to(self.embeddings.dtype), batch.labels, batch.ids)
        )
        places = (self.pointer + torch.arange(len(labels), device=labels.device)) % self.size
        self.embeddings[places] = embeddings
        self.labels[places] = labels
        self.ids[places] = ids
        self.pointer.copy_((self.pointer + len(labels)) % self.size)
        self.count.copy_((self.count + len(labels)).clamp(max=self.size))


class XbmLoss(nn.Module):
    """L(batch, batch) + weight * L(batch, memory), then the batch joins the memory.

    Wang et al. (2020), algorithm 1, with the batch among the references once instead of twice.
    An older embedding of the very image is no positive: ids tell, never similarity, so equal
    images under different ids are. Each process returns the mean over its own anchors, with the
    batches of all processes as references; averaged over processes, loss and gradient are those
    of one process with the joint batch.
    """

    step: Tensor

    def __init__(self, config: PairLossConfig, dimension: int) -> None:
        """
        Args:
            config: loss, and size, weight and start of the memory; a size of 0 leaves
                L(batch, batch). Batches count in training mode, and the memory is filled from
                the first: the paper starts it after 1,000, when drift is slow.
            dimension: width of the embeddings.
        """
        super().__init__()
        self.config = config
        self.loss: PairLoss = partial(PAIR_LOSSES[config.name], threshold=config.threshold)
        self.memory = CrossBatchMemory(config.memory, dimension)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The loss, a scalar. In training mode the memory takes the batch up afterwards.

        Args:
            embeddings: `(n, dimension)`, unit vectors, as many in each process.
            labels: `(n,)`, int64.
            ids: `(n,)`, int64, one for each image of the training set.
        """
        batch = Samples(embeddings, labels, ids)
        joint = Samples(gather_rows(embeddings), gather_constant(labels), gather_constant(ids))
        total = pair_loss(self.loss, batch, joint)
        if int(self.step) >= self.config.memory_start and int(self.memory.count):
            total = total + self.config.memory_weight * pair_loss(
                self.loss, batch, self.memory.held()
            )
        if self.training:
            self.memory.enqueue(batch)
            self.step += 1
        return total
