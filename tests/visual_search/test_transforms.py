from __future__ import annotations

import pickle

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


def test_random_erasing_greys_one_rectangle_of_its_share_of_photos() -> None:
    image = Image.fromarray(np.full((60, 90, 3), 200, dtype=np.uint8))
    augment = build_augmentation("none", 40, random_erasing=0.3)
    torch.manual_seed(0)
    erased = 0
    for _ in range(300):
        pixels = augment(image)
        assert pixels.dtype == torch.uint8
        grey = (pixels != 200).all(dim=0).numpy()
        assert (pixels.numpy()[:, grey] == 127).all()
        assert (pixels.numpy()[:, ~grey] == 200).all()
        if grey.any():
            erased += 1
            assert grey.sum() == grey.any(0).sum() * grey.any(1).sum()
            assert 0.015 < grey.mean() < 0.36
    assert 65 < erased < 115


def test_plain_crops_without_changing_the_aspect_of_the_square() -> None:
    # Columns of a ramp stay a ramp: a crop of 40 of 46 columns, mirrored half of the time.
    ramp = np.tile(np.linspace(0, 255, 92).astype(np.uint8)[None, :, None], (92, 1, 3))
    augment = build_augmentation("plain", 40)
    directions = set()
    for seed in range(30):
        torch.manual_seed(seed)
        row = augment(Image.fromarray(ramp)).float().mean(dim=(0, 1))
        slope = float(row[30] - row[10])
        assert 60 < abs(slope) < 170
        directions.add(slope > 0)
    assert directions == {True, False}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_reaches_a_spawned_worker(name: str) -> None:
    augment = build_augmentation(name, 32, random_erasing=1.0)
    image = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3))
    torch.manual_seed(0)
    expected = augment(image)
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(augment))(image), expected)
