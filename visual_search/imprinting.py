"""Start the class centres where the classes already are, instead of anywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visual_search.datasets import LabelledImages
from visual_search.embed import embed_images
from visual_search.images import ImageItem
from visual_search.margins import SubCenterArcFace
from visual_search.model import Embedder

# Sub-centres of a class start this far apart, as a share of a centre's length.
SPREAD = 0.1


def imprint_centers(
    head: SubCenterArcFace,
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
        head: changed in place; every centre keeps the length it had.
        embedder: on `device`; its mode is restored.
        images: the training photos; each is embedded once, unaugmented.
        input_size: side of the square in pixels.
        device: where the embedder is.
        progress: whether there is a progress bar.
    """
    was_training = embedder.training
    items = [ImageItem(path) for path in images.paths]
    embedded = embed_images(
        embedder.eval(),
        items,
        input_size,
        device=device,
        label="class centres",
        progress=progress,
    )
    embedder.train(was_training)
    labels = torch.from_numpy(images.labels)
    weight = head.weight.data
    classes, dimension = len(weight) // head.centers, weight.shape[1]
    sums = torch.zeros(classes, dimension).index_add_(0, labels, embedded.matrix)
    directions = F.normalize(sums, dim=1)[:, None, :].expand(-1, head.centers, -1)
    noise = F.normalize(torch.randn(classes, head.centers, dimension), dim=2) * SPREAD
    lengths = weight.view(classes, head.centers, dimension).norm(dim=2, keepdim=True)
    centers = F.normalize(directions + noise, dim=2) * lengths.cpu()
    seen = sums.norm(dim=1) > 0
    weight.view(classes, head.centers, dimension)[seen] = centers[seen].to(weight)
