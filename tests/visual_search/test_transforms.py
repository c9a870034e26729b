from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_product
from visual_search.transforms import AUGMENTATIONS, build_augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_set_gives_a_square_and_repeats_with_its_seed(name: str) -> None:
    augment = build_augmentation(name, 48)
    image = draw_product(3, 1, 90)
    squares = []
    for seed in (1, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        squares.append(augment(image))
    assert all(square.shape == (3, 48, 48) for square in squares)
    assert all(square.dtype == torch.uint8 for square in squares)
    assert torch.equal(squares[0], squares[1])
    differ = any(not torch.equal(squares[0], square) for square in squares[2:])
    assert differ is (name != "none")


def test_none_is_what_validation_does() -> None:
    image = draw_product(3, 1, 90)
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(build_augmentation("none", 48)(image).numpy(), expected)
