import torch
from torch import nn

from visual_search.model.embedder import SkipInit


def test_nothing_is_drawn_and_constants_are_set() -> None:
    before = torch.get_rng_state()
    with SkipInit():
        norm = nn.BatchNorm2d(5)
        nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.Embedding(9, 2), nn.MultiheadAttention(8, 2)
        nn.init.trunc_normal_(torch.empty(3, 3))
        nn.init.orthogonal_(tensor=torch.empty(3, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert norm.weight.tolist() == norm.running_var.tolist() == [1.0] * 5  # type: ignore[union-attr]
    assert norm.bias.tolist() == [0.0] * 5
    drawn = nn.Linear(4, 4)
    assert not torch.equal(torch.get_rng_state(), before)
    assert drawn.weight.std() > 0
