from __future__ import annotations

import pytest
import torch
from torch import nn

from visual_search.backbones import create_backbone
from visual_search.errors import UserError
from visual_search.freezing import freeze_stages, hold_frozen


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "timm/test_vit", "timm/test_convnext"])
def test_a_step_moves_the_later_stages_only(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, "none").module
    freeze_stages(backbone, 2)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    backbone.train()
    hold_frozen(backbone, batchnorms=False)
    backbone(torch.randn(4, 3, 160, 160)).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(value, before[key]) for key, value in backbone.state_dict().items()]
    first = moved.index(True)
    assert first > 0
    # Parameters and running statistics of the first stages stand still.
    assert sum(moved[first:]) > 0.5 * len(moved[first:])


def test_batch_norms_can_be_held_while_their_scales_train() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    mean = model[1].running_mean
    assert isinstance(mean, torch.Tensor)
    hold_frozen(model, batchnorms=True)
    model(torch.randn(2, 3, 8, 8) + 5)
    assert mean.tolist() == [0.0] * 4
    assert model[1].weight.requires_grad


def test_faults_are_refused() -> None:
    backbone = create_backbone("timm/test_efficientnet", "none").module
    with pytest.raises(UserError, match="this backbone has"):
        freeze_stages(backbone, 99)
    with pytest.raises(UserError, match="timm backbones"):
        freeze_stages(nn.Linear(2, 2), 1)
