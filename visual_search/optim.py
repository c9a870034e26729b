"""Parameter groups and optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from visual_search.errors import UserError
from visual_search.row_optim import RowAdamW, RowOptimizer, RowSGD, RowTable


def parameter_groups(
    backbone: nn.Module,
    others: Iterable[nn.Module],
    head_lr: float,
    backbone_lr_ratio: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    depths: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: the backbone at a fraction of the head's rate.

    Biases, the scales of normalisation layers and all other 1-D tensors have no weight decay.
    Frozen parameters (`requires_grad` false) are left out, so a backbone that is to be unfrozen
    later is frozen after this call.

    Args:
        backbone: its parameters are named after its own `named_parameters()`.
        others: neck, head and losses.
        head_lr: peak rate of `others`.
        backbone_lr_ratio: the backbone's peak rate as a share of `head_lr`.
        weight_decay: of matrices and kernels.
        layer_decay: factor of the rate from each layer of the backbone to the one before it, so
            that a layer has `layer_decay ** (deepest - depth)` of the backbone's rate (Clark et
            al., "ELECTRA", ICLR 2020, appendix B); 1 is the same rate for all.
        depths: depth of each of the backbone's parameters, 0 for the stem; needed where
            `layer_decay` is not 1.

    Returns:
        Groups with `name`, `params`, `lr`, `weight_decay`, and `peak_lr`, from which a schedule
        computes `lr`. Names are `backbone` (with layer decay: its deepest layer),
        `backbone_layer<depth>` and `head`, each with `_no_decay` behind it for the second kind.

    Raises:
        ValueError: for a parameter of the backbone that has no depth.
    """
    backbone_lr = head_lr * backbone_lr_ratio
    chosen: dict[tuple[str, bool], list[nn.Parameter]] = {}
    rates: dict[str, float] = {"backbone": backbone_lr, "head": head_lr}
    deepest = max(depths.values(), default=0) if depths and layer_decay != 1.0 else 0
    for name, parameter, decayed in _trainable([backbone]):
        group = "backbone"
        if layer_decay != 1.0:
            if depths is None or name not in depths:
                raise ValueError(f"layer_decay {layer_decay} needs the depth of {name!r}")
            above = deepest - depths[name]
            group = f"backbone_layer{depths[name]}" if above else "backbone"
            rates[group] = backbone_lr * layer_decay**above
        chosen.setdefault((group, decayed), []).append(parameter)
    seen = {parameter for parameters in chosen.values() for parameter in parameters}
    for _, parameter, decayed in _trainable(others):
        if parameter not in seen:
            chosen.setdefault(("head", decayed), []).append(parameter)
    return [
        {
            "name": group if decayed else f"{group}_no_decay",
            "params": parameters,
            "lr": rates[group],
            "peak_lr": rates[group],
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (group, decayed), parameters in chosen.items()
    ]


def _trainable(modules: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name, parameter, and whether weight decay applies; a shared parameter comes once."""
    seen = set()
    for root in modules:
        for prefix, module in root.named_modules():
            is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    decayed = parameter.ndim > 1 and name != "bias" and not is_norm
                    yield f"{prefix}.{name}" if prefix else name, parameter, decayed


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser of that name over the groups.

    Weight decay is decoupled from the gradient (Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019), except in adam and sgd, where it is part of the gradient.

    Args:
        name: a key of :data:`OPTIMIZERS`.
        groups: of :func:`parameter_groups`.
        momentum: of sgd, 0..1; above 0 it is Nesterov's.
        betas: of the Adam family and of lion; adan has three of its own and ignores them.

    Raises:
        UserError: for a name nobody knows, or when there is nothing to train.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optim.name {name!r} is unknown; write one of {', '.join(OPTIMIZERS)}")
    if not groups:
        raise UserError(
            "nothing is left to train: unfreeze some of the backbone "
            "(backbone.trainable_blocks, backbone.frozen_stages) or give the head a weight"
        )
    return OPTIMIZERS[name](groups, momentum, betas)


Groups = list[dict[str, Any]]
Betas = tuple[float, float]


def build_row_optimizer(
    name: str,
    table: RowTable,
    lr: float,
    *,
    momentum: float = 0.9,
    betas: Betas = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> RowOptimizer:
    """What moves the sampled rows of a class matrix: SGD for `sgd`, AdamW for every other name.

    Args:
        name: of the main optimiser, a key of :data:`OPTIMIZERS`.
        table: the class matrix.
        lr: learning rate.
        momentum: of SGD.
        betas: of AdamW.
        weight_decay: of the updated rows.
    """
    if name == "sgd":
        return RowSGD(table, lr, momentum=momentum, weight_decay=weight_decay)
    return RowAdamW(table, lr, betas=betas, weight_decay=weight_decay)


def _fused() -> bool | None:
    """One kernel over all parameters on a GPU: each is read once a step; torch's choice else."""
    return True if torch.cuda.is_available() else None


def _sgd(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=_fused())


def _adam(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=betas, fused=_fused())


def _adamw(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=betas, fused=_fused())


def _radam(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.RAdam(groups, betas=betas, decoupled_weight_decay=True)


def _nadam(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    return torch.optim.NAdam(groups, betas=betas, decoupled_weight_decay=True)


def _lion(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    from timm.optim import Lion

    return Lion(groups, betas=betas)


def _adan(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    from timm.optim import Adan

    return Adan(groups)


def _lamb(groups: Groups, momentum: float, betas: Betas) -> torch.optim.Optimizer:
    from timm.optim import Lamb

    # The training loop clips the gradient; Lamb's own clipping would do it a second time.
    return Lamb(groups, betas=betas, max_grad_norm=None, decoupled_decay=True)


OPTIMIZERS: dict[str, Callable[[Groups, float, Betas], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "radam": _radam,
    "nadam": _nadam,
    "lion": _lion,
    "adan": _adan,
    "lamb": _lamb,
}
