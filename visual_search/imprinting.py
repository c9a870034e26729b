"""Start the class centres where the classes already are, instead of anywhere."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.datasets import LabelledImages
from visual_search.embed import embed_images
from visual_search.embed_settings import EmbedSettings
from visual_search.heads import MarginHead
from visual_search.model import Embedder
from visual_search.sampled_classes import SampledMarginHead

Head = MarginHead | SampledMarginHead

# Sub-centres of a class start this far apart, as a share of a centre's length.
SPREAD = 0.1


def imprint_centers(
    head: Head,
    embedder: Embedder,
    images: LabelledImages,
    input_size: int,
    *,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Set each class's centres to the mean embedding of its photos, plus a little noise.

    With random centres the first steps drag good pretrained features towards nowhere in
    particular. Weight imprinting: Qi et al., "Low-Shot Learning with Imprinted Weights"
    (CVPR 2018), section 3.1. Classes without photos keep their random centres.

    Args:
        head: changed in place, a sharded one in its own classes; every centre keeps the length
            it had.
        embedder: on `device`; its mode is restored.
        images: the training photos; each is embedded once, unaugmented.
        input_size: side of the square in pixels.
        device: where the embedder is.
        progress: whether there is a progress bar.
    """
    was_training = embedder.training
    embedded = embed_images(
        embedder.eval(),
        [images.item(i) for i in range(len(images))],
        input_size,
        device=device,
        settings=EmbedSettings().unmeasured(device.type == "cuda"),
        label="class centres",
        progress=progress,
    )
    embedder.train(was_training)
    set_centers(head, embedded.matrix, images.labels)


def set_centers(head: Head, embeddings: Tensor, labels: np.ndarray) -> None:
    """Set each class's centres to the mean of its embeddings, plus a little noise.

    Args:
        head: as :func:`imprint_centers`.
        embeddings: `(n, dimension)`, unit vectors, on the CPU.
        labels: `(n,)`, int64.
    """
    start, stop = own_classes(head)
    own = torch.from_numpy((labels >= start) & (labels < stop))
    own_labels = torch.from_numpy(labels)[own] - start
    dimension = head.weight.shape[1]
    sums = torch.zeros(stop - start, dimension).index_add_(0, own_labels, embeddings[own])
    directions = F.normalize(sums, dim=1)[:, None, :].expand(-1, head.centers, -1)
    noise = F.normalize(torch.randn(stop - start, head.centers, dimension), dim=2) * SPREAD
    weight = head.weight.data.view(stop - start, head.centers, dimension)
    lengths = weight.norm(dim=2, keepdim=True)
    centers = F.normalize(directions + noise, dim=2) * lengths.cpu()
    seen = sums.norm(dim=1) > 0
    weight[seen] = centers[seen].to(weight)


def take_centers(head: Head, centers: Tensor) -> bool:
    """Copy the centres of another head; false, and nothing done, where the shapes differ.

    Args:
        head: a sharded one takes the rows of its own classes.
        centers: `(classes * centers, dimension)`, of all classes.
    """
    start, stop = own_classes(head)
    classes = head.classes if isinstance(head, SampledMarginHead) else stop
    if centers.shape != (classes * head.centers, head.weight.shape[1]):
        return False
    head.weight.data.copy_(centers[start * head.centers : stop * head.centers])
    return True


def own_classes(head: Head) -> tuple[int, int]:
    """The run `start, stop` of classes whose centres this process has."""
    if isinstance(head, SampledMarginHead):
        return head.start, head.stop
    return 0, len(head.weight) // head.centers
