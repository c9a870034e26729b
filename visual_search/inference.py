"""A trained model made ready to embed: precision, memory format, batch norms folded away.

The copies share their weights with the model they are made of wherever these stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visual_search.model import Embedder

Answer = Callable[[Tensor], Tensor]
"""uint8 pixels `(N, 3, H, W)` to unit vectors `(N, dimension)`."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# A copy must answer as the model does: the smallest cosine between the two.
MIN_COSINE = 0.9999


def converted(
    model: Answer, precision: str, memory_format: str, example: Tensor | None = None
) -> Answer:
    """The model in another precision and memory format; it is left as it is itself.

    Pixels are normalised and embeddings brought to unit length in fp32 either way. What is no
    :class:`Embedder`, such as TorchScript, runs under autocast.

    Args:
        model: in evaluation mode.
        precision: a key of :data:`PRECISIONS`.
        memory_format: a key of :data:`MEMORY_FORMATS`.
        example: a photo or two `(N, 3, H, W)`, uint8, on the model's device; with it batch norms
            are folded into the convolutions in front of them, where the answer stays the same.
    """
    dtype, layout = PRECISIONS[precision], MEMORY_FORMATS[memory_format]
    if not isinstance(model, Embedder):
        return _under_autocast(model, dtype, layout)
    sharing = _sharing_copy(model)
    if example is not None:
        _fold_batch_norms(sharing, example)
    sharing.backbone.to(dtype)
    sharing.to(memory_format=layout)
    if dtype is not torch.float32:
        sharing.backbone.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))
        sharing.neck.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    return lambda pixels: sharing(pixels.contiguous(memory_format=layout))


def _under_autocast(model: Answer, dtype: torch.dtype, layout: torch.memory_format) -> Answer:
    if dtype is torch.float32:
        return lambda pixels: model(pixels.contiguous(memory_format=layout))

    def answer(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype):
            return model(pixels.contiguous(memory_format=layout))

    return answer


def _sharing_copy(model: Embedder) -> Embedder:
    """A copy whose parameters are new objects over the same storage."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def _fold_batch_norms(model: nn.Module, example: Tensor) -> None:
    """Fold each batch norm that follows a convolution into it, in place, if the answer stays.

    Which follow is seen by running the example: a batch norm's input *is* the output of one
    convolution. timm's norms carry the activation, which stays in their place.
    """
    pairs = _convolutions_before_norms(model, example)
    if not pairs:
        return
    with torch.inference_mode():
        before = model(example)
    kept = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    places = {id(norm): (parent, name) for parent, name, norm in _children(model)}
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        parent, name = places[id(norm)]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))
    with torch.inference_mode():
        same = torch.nn.functional.cosine_similarity(before, model(example)).min()
    if not same >= MIN_COSINE:
        for (conv, weight, bias), (_, norm) in zip(kept, pairs, strict=True):
            conv.weight, conv.bias = weight, bias
            parent, name = places[id(norm)]
            setattr(parent, name, norm)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
    ]


def _convolutions_before_norms(
    model: nn.Module, example: Tensor
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = (module, output)  # held, so that no other tensor gets its id

    def before_norm(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(given[0]) in made:
            pairs.append((made[id(given[0])][0], module))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with torch.inference_mode():
            model(example)
    for hook in hooks:
        hook.remove()
    once = [conv for conv, _ in pairs]
    # A convolution or norm that is used twice, or has a list of its own, stays.
    return [pair for pair in pairs if sum(conv is pair[0] for conv in once) == 1]
