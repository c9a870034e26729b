"""Where the projections of images and texts start: at a ridge regression, or at class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.data.values import in_small_letters
from visual_search.model.projections import pca
from visual_search.model.weights import PACKAGED_WEIGHTS, read_state_dict
from visual_search.text.encoder import DualEncoder
from visual_search.text.projections import IMAGENET_CLASSES

NAMES_SHARE = 0.6
"""Length of the class names' answer in the shared space, the texts' own being 1."""
SIZE = 3**-0.5
"""Of a direction in the start's weights: about what a fresh linear layer has."""


def start_from_ridge(
    encoder: DualEncoder, vectors: Tensor, texts: Sequence[Sequence[str]], alpha: float
) -> None:
    """Start images where a ridge regression predicts the features of their texts.

    Minimises `sum over images of |mean of its texts' features - W v|^2 + alpha |W|^2`, both sides
    centred. Text features that are nothing before training (the table of n-grams) are left out:
    their columns stay random.

    Args:
        encoder: with linear projections; changed in place.
        vectors: `(n, width)`, unit vectors of the visual tower.
        texts: of each of these images, one or more.
        alpha: above 0.

    Raises:
        UserError: when there is no text feature, or they are all alike.
    """
    from sklearn.linear_model import Ridge

    standardised = encoder.image_projection.standardised
    image = _linear(encoder.image_projection.projection)
    features, means = _text_features(encoder, texts)
    columns = torch.nonzero(features.std(dim=0, correction=0) > 1e-6).flatten()
    if not len(columns):
        raise UserError(
            "projection.initial ridge needs texts whose features differ before training: add "
            "`use` to text.towers, or set projection.initial to random"
        )
    basis = _basis(features[:, columns], image.out_features).double()
    known, targets = features[:, columns].double(), means[:, columns].double()
    inputs = vectors.cpu().double()
    mean, centre = targets.mean(dim=0), inputs.mean(dim=0)
    fitted = torch.from_numpy(Ridge(alpha).fit(inputs.numpy(), targets.numpy()).coef_.T)
    # As long as the texts, on average, so that class names weigh the same beside both.
    lengths = (known - mean).norm(dim=1).mean()
    fitted = fitted * (lengths / ((inputs - centre) @ fitted).norm(dim=1).mean().clamp(min=1e-12))
    weight = basis @ fitted.T
    with torch.no_grad():
        image.weight.copy_(weight * standardised.scale.cpu().double())
        image.bias.copy_(-(weight @ (centre - standardised.mean.cpu().double())))
        for projection in map(_linear, encoder.text_projections()):
            projection.weight[:, columns.to(projection.weight.device)] = basis.to(projection.weight)
            projection.bias.copy_(-(basis @ mean))


def add_class_names(encoder: DualEncoder, weights: str, vectors: Tensor) -> None:
    """Add what the visual tower's classifier names, where the text projection puts the names.

    Args:
        encoder: with the text tower `use` and linear projections; changed in place.
        weights: of the visual tower's checkpoint, with the classifier.
        vectors: `(n, width)`, unit vectors of images.
    """
    from open_clip import IMAGENET_CLASSNAMES

    projection = _linear(encoder.text_projections()[0])
    basis = projection.weight.detach()[:, encoder.text.columns("use")]
    image = encoder.image_projection
    assert image.names is not None
    use, names = encoder.text.part("use").encoder, in_small_letters(IMAGENET_CLASSNAMES)
    named = torch.from_numpy(use.encode(names))
    classifier = imagenet_classifier(weights).to(vectors.device)
    image.names.fit(classifier, named.to(vectors.device), vectors)
    with torch.no_grad():
        _linear(image.name_projection).weight.copy_(NAMES_SHARE * basis)


def imagenet_classifier(weights: str) -> Tensor:
    """The 1,000-class layer, `(1000, width)`, of `package:<name>` or a state-dict file.

    Raises:
        UserError: when the checkpoint has no such layer.
    """
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


def _basis(features: Tensor, dimension: int) -> Tensor:
    """Rows of the features' space that become dimensions of the shared one, `(dimension, c)`.

    Where they all fit, inner products are kept; else those of the principal components.
    """
    width = features.shape[1]
    if width <= dimension:
        return nn.init.orthogonal_(torch.empty(dimension, width), SIZE)
    weight, _ = pca(features, dimension)
    return SIZE * weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _text_features(encoder: DualEncoder, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Of the distinct texts, `(m, t)`, and the mean of each image's, `(n, t)`; on the CPU."""
    numbers: dict[str, int] = {}
    pairs = [
        (row, numbers.setdefault(t, len(numbers))) for row, own in enumerate(texts) for t in own
    ]
    features = encoder.text_features(list(numbers))
    image, text = torch.tensor(pairs).T
    sums = torch.zeros(len(texts), features.shape[1]).index_add_(0, image, features[text])
    return features, sums / torch.bincount(image, minlength=len(texts))[:, None]


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
