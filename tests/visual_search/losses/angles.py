"""The margins in terms of the angle; their derivatives are autograd's."""

import math

import torch
from torch import Tensor

COMBINED = {"m1": 1.1, "m3": 0.2}


def falling(phi: Tensor) -> Tensor:
    """cos(phi) on 0..pi, then from each pi to the next the same fall again; 1 below 0."""
    turns = (phi.detach().clamp(min=0.0) / math.pi).floor()
    return torch.cos(phi.clamp(min=0.0) - turns * math.pi) - 2 * turns


def margined(name: str, theta: Tensor, margin: Tensor | float, quality: Tensor | float) -> Tensor:
    """The target's cosine with its margin; quality is adaface's."""
    if name in ("cosface", "elasticface-cos", "elasticface-cos-plus"):
        return torch.cos(theta) - margin
    if name == "combined":
        return falling(COMBINED["m1"] * theta + margin) - COMBINED["m3"]
    if name == "sphereface":
        return falling((1 + margin) * theta)
    if name == "adaface":
        return falling(theta - quality * margin) - (margin + quality * margin)
    beyond = torch.cos(theta) - margin * torch.sin(torch.as_tensor(margin))
    return torch.where(theta < math.pi - margin, torch.cos(theta + margin), beyond)
