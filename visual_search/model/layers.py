"""Features of several layers side by side: what a network saw before its last features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_search.common.errors import UserError, first_line


class LayerFeatures(nn.Module):
    """A network's own features and the mean of the positions of some of its layers.

    Each is brought to length 1, then to its weight, and they are concatenated: a cosine between
    two images is the mean of the layers' cosines, weighted by the squares.
    """

    def __init__(
        self,
        trunk: nn.Module,
        layers: Sequence[int],
        weights: Sequence[float],
        input_size: int,
        name: str,
    ) -> None:
        """
        Args:
            trunk: images to features; of timm or open_clip.
            layers: stages of a convolutional network or blocks of a transformer, counted from
                the end, 1 being the last.
            weights: of each layer beside 1 of the network's own features; none: all 1.
            input_size: side in pixels of the images.
            name: of the network, for messages.

        Raises:
            UserError: for weights of another number than layers, a layer that there is not, and a
                network whose layers cannot be had.
        """
        super().__init__()
        if len(weights) not in (0, len(layers)):
            raise UserError(
                f"backbone.layer_weights has {len(weights)} numbers of {len(layers)} layers: write "
                "one for each of backbone.layers, or none"
            )
        if len(set(layers)) < len(layers):
            raise UserError(f"backbone.layers is {list(layers)}; name each layer once")
        self.trunk: Any = trunk
        weight_of = dict(zip(layers, weights or [1.0] * len(layers), strict=True))
        # Networks give their layers in the order in which they run.
        self.layers = sorted(-layer for layer in layers)
        self.weights = [1.0, *(weight_of[-layer] for layer in self.layers)]
        example = next(trunk.parameters()).new_zeros(1, 3, input_size, input_size)
        try:
            with torch.no_grad():
                found = self.eval()._seen(example)[1]
        except (AttributeError, AssertionError, TypeError, ValueError, LookupError) as error:
            raise UserError(
                f"{name} does not give its layers {list(layers)} ({first_line(error)}): leave "
                "backbone.layers out, or name others"
            ) from error
        if any(layer.ndim != 4 for layer in found) or len(found) != len(layers):
            raise UserError(f"{name} does not give its layers as maps: leave backbone.layers out")

    def forward(self, images: Tensor) -> Tensor:
        """Images `(N, 3, H, W)` to `(N, sum of the widths)`, float32."""
        own, maps = self._seen(images)
        parts = [own, *(layer.mean(dim=(2, 3)) for layer in maps)]
        units = [F.normalize(part.float(), dim=1) for part in parts]
        return torch.cat([w * unit for w, unit in zip(self.weights, units, strict=True)], dim=1)

    def _seen(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The network's own features, and maps `(N, C, H, W)`, the last layer last."""
        if hasattr(self.trunk, "forward_head"):  # timm's own
            final, maps = self.trunk.forward_intermediates(images, indices=self.layers, norm=True)
            return self.trunk.forward_head(final), maps
        found = self.trunk.forward_intermediates(
            images, indices=self.layers, normalize_intermediates=True
        )
        return found["image_features"], found["image_intermediates"]
