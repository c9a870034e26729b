"""What the visual tower's own classifier says of an image, in words.

A network that was trained to name 1,000 classes knows more than its features tell a small table of
pairs. The names of the classes it sees are embedded by a text encoder, and their mean, weighted by
its certainty, is where the image starts in the space of texts (Norouzi et al., "Zero-Shot Learning
by Convex Combination of Semantic Embeddings", ICLR 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.model.weights import PACKAGED_WEIGHTS, read_state_dict

IMAGENET_CLASSES = 1000
ENCODER_WIDTH = 512
"""Of the sentence encoder `use`."""


class ClassNames(nn.Module):
    """Unit vectors of the visual tower to the mean of the names of the classes they show."""

    classes: Tensor
    names: Tensor
    sharpness: Tensor

    def __init__(self, width: int, sharpness: float = 10.0, dropout: float = 0.0) -> None:
        """
        Args:
            width: of the visual tower's vectors.
            sharpness: factor of the products with the classifier's rows before the softmax.
            dropout: share of the answer's numbers dropped in training, 0..1.
        """
        super().__init__()
        self.dimension = ENCODER_WIDTH
        self.register_buffer("classes", torch.zeros(IMAGENET_CLASSES, width))
        self.register_buffer("names", torch.zeros(IMAGENET_CLASSES, ENCODER_WIDTH))
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.dropout = nn.Dropout(dropout)

    def fit(self, classes: Tensor, names: Tensor, images: Tensor) -> None:
        """Take over a classifier and the names' vectors, and scale the answers to a size of 1.

        Args:
            classes: `(1000, width)`, the classifier's rows.
            names: `(1000, 512)`, the names' vectors.
            images: `(n, width)`, unit vectors of images to measure the answers' size on.
        """
        self.classes.copy_(classes)
        self.names.copy_(names - names.mean(dim=0))
        size = self._mean_name(images.to(self.names)).square().mean().sqrt()
        self.names.div_(size.clamp(min=1e-6))

    def _mean_name(self, vectors: Tensor) -> Tensor:
        certainty = (self.sharpness * vectors @ self.classes.T).softmax(dim=1)
        return certainty @ self.names

    def forward(self, vectors: Tensor) -> Tensor:
        """`(n, width)`, unit vectors, to `(n, 512)`, less the mean of all names."""
        return self.dropout(self._mean_name(vectors.to(self.names.dtype)))


def imagenet_classifier(weights: str) -> Tensor:
    """The rows of the 1,000-class layer in a checkpoint, `(1000, width)`.

    Args:
        weights: `package:<name>`, or a state-dict file.

    Raises:
        UserError: when the checkpoint has no such layer.
    """
    from pathlib import Path

    source, _, package = weights.partition(":")
    if source in ("hub", "none") or (source == "package" and package not in PACKAGED_WEIGHTS):
        raise UserError(
            f"projection.class_names needs backbone.weights with a classifier: a file or package, "
            f"not {weights!r}"
        )
    path = PACKAGED_WEIGHTS[package]() if source == "package" else Path(weights)
    found = [
        tensor
        for tensor in read_state_dict(path).values()
        if tensor.ndim == 2 and len(tensor) == IMAGENET_CLASSES
    ]
    if len(found) != 1:
        raise UserError(
            f"{path} has no layer of {IMAGENET_CLASSES} classes: set projection.class_names to none"
        )
    return found[0].float()


def imagenet_names() -> list[str]:
    """The names of the 1,000 classes, in English, in the order of the classifier's rows."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)
