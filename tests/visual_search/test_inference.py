from __future__ import annotations

import pytest
import torch
from torch import nn

from visual_search.checkpoint import load_torchscript
from visual_search.export import export_torchscript
from visual_search.inference import converted
from visual_search.model import Embedder, build_embedder

BACKBONES = [
    "timm/test_efficientnet",
    "timm/test_convnext",
    "timm/test_resnet",
    "timm/test_vit",
]


def embedder(backbone: str) -> Embedder:
    torch.manual_seed(0)
    model, _ = build_embedder(backbone, "none", 64, (0.5,) * 3, (0.25,) * 3)
    for module in model.modules():  # statistics that are not 0 and 1, so that folding matters
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model.eval()


def photos(n: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_copy_answers_as_the_model_and_leaves_it_alone(backbone: str, layout: str) -> None:
    model, pixels = embedder(backbone), photos()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(pixels)
        exact = converted(model, "fp32", layout, pixels[:2])(pixels)
        torch.testing.assert_close(exact, expected, atol=1e-5, rtol=1e-4)
        half = converted(model, "bf16", layout, pixels[:2])(pixels)
        assert half.dtype == torch.float32
        assert float((half * expected).sum(dim=1).min()) > 0.999
        torch.testing.assert_close(model(pixels), expected, atol=0, rtol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype


def norms(model: object) -> int:
    assert callable(model)
    cells = [cell.cell_contents for cell in model.__closure__ or ()]
    copy = next(cell for cell in cells if isinstance(cell, nn.Module))
    return sum(isinstance(module, nn.BatchNorm2d) for module in copy.modules())


def test_batch_norms_behind_convolutions_are_gone() -> None:
    model = embedder("timm/test_efficientnet")
    assert norms(converted(model, "fp32", "contiguous")) > 5
    assert norms(converted(model, "fp32", "contiguous", photos(2))) == 0


class Shared(nn.Module):
    """One convolution in front of a norm and of a second way round it: it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.norm.running_mean.fill_(0.7)  # type: ignore[union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return (self.norm(maps) * 0.1 + maps.flip(2)).mean(dim=(2, 3)) ** 3


def test_a_norm_that_cannot_be_folded_stays() -> None:
    torch.manual_seed(1)
    model = Embedder(Shared(), nn.Identity(), (0.5,) * 3, (0.25,) * 3).eval()
    pixels = photos()
    with torch.inference_mode():
        torch.testing.assert_close(
            converted(model, "fp32", "contiguous", pixels[:2])(pixels), model(pixels)
        )


def test_torchscript_runs_under_autocast(tmp_path: object) -> None:
    from pathlib import Path

    model, architecture = build_embedder(
        "timm/test_efficientnet", "none", 64, (0.5,) * 3, (0.25,) * 3
    )
    path = export_torchscript(model, architecture, {}, Path(str(tmp_path)))
    scripted, pixels = load_torchscript(path).eval(), photos()
    with torch.inference_mode():
        expected = model.eval()(pixels)
        exact = converted(scripted, "fp32", "channels_last")(pixels)
        half = converted(scripted, "bf16", "contiguous")(pixels)
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=1e-4)
    assert 0.99 < float((half * expected).sum(dim=1).min()) < 1 - 1e-7
