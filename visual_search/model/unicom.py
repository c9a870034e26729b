"""UNICOM's vision transformer: patch tokens, flattened, then two linear layers with batch norms.

An et al., "Unicom: Universal and Compact Representation Learning for Image Retrieval" (ICLR
2023). Modules are named as in the authors' code, so that their published state dicts load. Its
first linear layer has a weight for each patch: the input size is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from visual_search.common.errors import UserError
from visual_search.common.model_config import BackboneConfig
from visual_search.model.pooling import pooled_tokens
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


class Attention(nn.Module):
    """Multi-head self-attention without biases on queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, width * 3, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` to the same."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two layers with ReLU6, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` to the same."""
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        from timm.layers import DropPath

        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` to the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """A linear map of each patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` to `(N, patches, width)`."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Unicom(nn.Module):
    """Images of one size to features."""

    def __init__(self, size: UnicomSize, drop_path: float = 0.0) -> None:
        """
        Args:
            size: of the model.
            drop_path: stochastic depth rate of the last block, 0..1; it rises to there linearly.
        """
        super().__init__()
        patches = (size.input_size // size.patch) ** 2
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbedding(size.patch, size.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, size.width))
        rates = [drop_path * i / max(size.depth - 1, 1) for i in range(size.depth)]
        self.blocks = nn.ModuleList(Block(size.width, size.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(size.width)
        self.feature: nn.Sequential | None = nn.Sequential(
            nn.Linear(size.width * patches, size.width, bias=False),
            nn.BatchNorm1d(size.width, eps=2e-5),
            nn.Linear(size.width, size.embedding, bias=False),
            nn.BatchNorm1d(size.embedding, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, side, side)` to `(N, embedding)`; without `feature`, to the patches' tokens."""
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm(x)
        return x if self.feature is None else self.feature(x.flatten(1))


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
    return pooled_tokens(network, config.pooling, 0, f"unicom/{model}"), size.input_size


SIZES: dict[str, UnicomSize] = {
    "ViT-B-32": UnicomSize(224, 32, 768, 12, 12, 512),
    "ViT-B-16": UnicomSize(224, 16, 768, 12, 12, 768),
    "ViT-L-14": UnicomSize(224, 14, 1024, 24, 16, 768),
    "ViT-L-14-336": UnicomSize(336, 14, 1024, 24, 16, 768),
}
"""The published models."""
