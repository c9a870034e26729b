"""UNICOM's vision transformer: patch tokens, flattened, then two linear layers with batch norms.

An et al., "Unicom: Universal and Compact Representation Learning for Image Retrieval" (ICLR
2023). timm's modules are named as the authors' are, so that their published state dicts load. Its
first linear layer has a weight for each patch: the input size is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.model_config import BackboneConfig
from visual_search.model.pooling import TokenPooling
from visual_search.model.weights import load_file_weights


@dataclass(frozen=True)
class UnicomSize:
    """Measures of a UNICOM model: sides in pixels, widths in channels."""

    input_size: int
    patch: int
    width: int
    depth: int
    heads: int
    embedding: int


class Unicom(VisionTransformer):
    """Images of one size to features."""

    def __init__(self, size: UnicomSize, drop_path: float = 0.0) -> None:
        """
        Args:
            size: of the model.
            drop_path: stochastic depth rate of the last block, 0..1; it rises to there linearly.
        """
        super().__init__(
            size.input_size,
            size.patch,
            num_classes=0,
            global_pool="",
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            qkv_bias=False,
            class_token=False,
            drop_path_rate=drop_path,
            norm_layer=nn.LayerNorm,
            act_layer=nn.ReLU6,
        )
        self.feature: nn.Sequential | None = nn.Sequential(
            nn.Linear(self.pos_embed.numel(), size.width, bias=False),
            nn.BatchNorm1d(size.width, eps=2e-5),
            nn.Linear(size.width, size.embedding, bias=False),
            nn.BatchNorm1d(size.embedding, eps=2e-5),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, side, side)` to `(N, embedding)`; without `feature`, to the patches' tokens."""
        tokens = self.forward_features(images)
        return tokens if self.feature is None else self.feature(tokens.flatten(1))


def create_unicom(model: str, config: BackboneConfig, input_size: int) -> tuple[nn.Module, int]:
    """A UNICOM network and its input size; :mod:`visual_search.model.backbones` says the rest."""
    if model not in SIZES:
        raise UserError(f"unicom has no model {model!r}; it has {', '.join(SIZES)}")
    size = SIZES[model]
    if input_size not in (0, size.input_size):
        raise UserError(
            f"unicom/{model} takes images of {size.input_size} pixels only: set "
            f"dataset.input_size to {size.input_size} and dataset.input_size_valid to 0"
        )
    if config.patch_overlap:
        raise UserError(f"the patches of unicom/{model} are fixed: set backbone.patch_overlap to 0")
    if config.weights.partition(":")[0] in ("hub", "package"):
        raise UserError(
            f"UNICOM's weights come as a file, FP16-{model}.pt or the like: set backbone.weights "
            "to where you saved it, or to none"
        )
    network = Unicom(size, config.drop_path)
    if config.weights != "none":
        load_file_weights(network, config.weights, f"unicom/{model}")
    if config.pooling == "default":
        return network, size.input_size
    network.feature = None
    return TokenPooling(network, config.pooling, 0, f"unicom/{model}"), size.input_size


SIZES: dict[str, UnicomSize] = {
    "ViT-B-32": UnicomSize(224, 32, 768, 12, 12, 512),
    "ViT-B-16": UnicomSize(224, 16, 768, 12, 12, 768),
    "ViT-L-14": UnicomSize(224, 14, 1024, 24, 16, 768),
    "ViT-L-14-336": UnicomSize(336, 14, 1024, 24, 16, 768),
}
"""The published models."""
