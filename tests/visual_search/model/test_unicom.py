import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.commands import refused
from visual_search.config import BackboneConfig
from visual_search.model import unicom
from visual_search.model.backbones import create_backbone
from visual_search.model.unicom import Unicom, UnicomSize

TINY = UnicomSize(input_size=32, patch=8, width=12, depth=2, heads=3, embedding=10)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unicom.SIZES, "tiny", TINY)


def fabricated() -> dict[str, Tensor]:
    """A file as the authors publish them; :func:`by_hand` has their names."""
    state, generator = Unicom(TINY).state_dict(), torch.Generator().manual_seed(0)
    for name, value in state.items():
        if not name.endswith("tracked"):
            numbers = torch.rand(value.shape, generator=generator) * 0.5
            state[name] = (numbers + (0.2 if "running" in name else -0.1)).half()
    return state


def by_hand(state: dict[str, Tensor], photo: Tensor) -> Tensor:
    """The network over one photo, patch by patch and head by head."""
    s = {key: value.float() for key, value in state.items()}
    tokens = []
    for y in range(0, 32, 8):
        for x in range(0, 32, 8):
            window = photo[:, y : y + 8, x : x + 8]
            projected = (s["patch_embed.proj.weight"] * window).sum(dim=(1, 2, 3))
            tokens.append(projected + s["patch_embed.proj.bias"])
    x_ = torch.stack(tokens) + s["pos_embed"][0]
    for i in range(TINY.depth):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in s.items() if k.startswith(f"blocks.{i}")}
        normed = F.layer_norm(x_, (12,), b["norm1.weight"], b["norm1.bias"])
        qkv = normed @ b["attn.qkv.weight"].T
        heads = []
        for h in range(3):
            q, k, v = (qkv[:, part * 12 + h * 4 : part * 12 + h * 4 + 4] for part in range(3))
            heads.append(torch.softmax(q @ k.T / math.sqrt(4), dim=1) @ v)
        x_ = x_ + torch.cat(heads, dim=1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        normed = F.layer_norm(x_, (12,), b["norm2.weight"], b["norm2.bias"])
        hidden = (normed @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]).clamp(0, 6)
        x_ = x_ + hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x_ = F.layer_norm(x_, (12,), s["norm.weight"], s["norm.bias"]).reshape(-1)
    for linear, norm in (("feature.0", "feature.1"), ("feature.2", "feature.3")):
        x_ = s[f"{linear}.weight"] @ x_
        x_ = (x_ - s[f"{norm}.running_mean"]) / (s[f"{norm}.running_var"] + 2e-5).sqrt()
        x_ = x_ * s[f"{norm}.weight"] + s[f"{norm}.bias"]
    return x_


def test_a_half_precision_file_loads_and_answers_as_by_hand(tmp_path: Path) -> None:
    state = fabricated()
    torch.save(state, tmp_path / "FP16-tiny.pt")
    backbone = create_backbone(BackboneConfig("unicom/tiny", str(tmp_path / "FP16-tiny.pt")))
    assert (backbone.dimension, backbone.input_size) == (10, 32)
    photos = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = backbone.module.eval()(photos)
    assert features.dtype == torch.float32
    for row, photo in zip(features, photos, strict=True):
        torch.testing.assert_close(row, by_hand(state, photo), atol=1e-3, rtol=1e-3)


def test_it_trains_with_checkpointing_and_drop_path() -> None:
    torch.manual_seed(0)
    network = Unicom(TINY, drop_path=0.2).train()
    network.set_grad_checkpointing(True)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_tokens_can_be_pooled_instead_of_flattened() -> None:
    backbone = create_backbone(BackboneConfig("unicom/tiny", "none", pooling="gem"))
    assert backbone.dimension == 12
    assert not any("feature" in name for name, _ in backbone.module.named_parameters())


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    state = fabricated()
    state.pop("norm.bias")
    torch.save(state, tmp_path / "short.pt")
    wrong: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("images of 32 pixels only", {}, 64),
        (r"backbone.patch_overlap to 0", {"patch_overlap": 2}, 0),
        ("come as a file", {"weights": "hub"}, 0),
        ("no class token", {"pooling": "cls"}, 0),
        (r"short.pt does not fit unicom/tiny.*norm.bias", {"weights": f"{tmp_path}/short.pt"}, 0),
    )
    for words, choices, size in wrong:
        config = BackboneConfig("unicom/tiny", **{"weights": "none", **choices})
        refused(words, create_backbone, config, size)
