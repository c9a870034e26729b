import pytest
import torch

from tests.commands import refused
from visual_search.model.embedder import NECKS, create_neck


@pytest.mark.parametrize("kind", list(NECKS))
@pytest.mark.parametrize("dimension", [0, 64])
def test_necks_give_the_dimension_that_is_asked_for(kind: str, dimension: int) -> None:
    if kind == "none" and dimension:
        refused("linear-bn for 64", create_neck, kind, 96, dimension)
        return
    neck = create_neck(kind, 96, dimension)
    assert neck(torch.randn(4, 96)).shape == (4, dimension or 96)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    neck = create_neck("dropout-linear-bn", 32, 8, dropout=0.5).eval()
    plain = create_neck("linear-bn", 32, 8).eval()
    renamed = {f"{int(k[0]) - 1}{k[1:]}": v for k, v in neck.state_dict().items()}
    plain.load_state_dict(renamed)
    x = torch.randn(4, 32)
    assert torch.equal(neck(x), plain(x))
    neck.train()
    assert not torch.equal(neck(x), neck(x))


def test_what_no_model_file_may_say_is_refused() -> None:
    refused("neck.kind is 'conv'", create_neck, "conv", 8)
    refused("neck.dimension is -1", create_neck, "linear", 8, -1)
