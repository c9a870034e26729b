from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import draw_product
from visual_search.embed import embed_images, replace_non_finite
from visual_search.images import ImageItem, load_pixels

CPU = torch.device("cpu")


def mean_colour(pixels: Tensor) -> Tensor:
    return pixels.float().mean(dim=(2, 3))


def test_rows_stand_in_the_order_of_the_photos(tmp_path: Path) -> None:
    items = []
    for number in range(23):
        draw_product(number, 0).save(tmp_path / f"{number}.png")
        items.append(ImageItem(tmp_path / f"{number}.png", (number, 0, 30, 30)))
    answer = embed_images(
        mean_colour, items, 16, device=CPU, batch_size=4, workers=3, progress=False
    )
    expected = np.stack([load_pixels(item, 16)[0].mean(axis=(1, 2)) for item in items])
    np.testing.assert_allclose(answer.matrix.numpy(), expected, rtol=1e-5)
    assert answer.problems == ()


def test_broken_photos_keep_their_rows_and_are_listed(tmp_path: Path) -> None:
    draw_product(1, 0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    items = [ImageItem(tmp_path / name) for name in ("bad.png", "good.png", "gone.png")]
    answer = embed_images(mean_colour, items, 16, device=CPU, progress=False)
    assert answer.matrix.shape == (3, 3)
    assert [Path(problem.path).name for problem in answer.problems] == ["bad.png", "gone.png"]
    assert answer.matrix[0].tolist() == [127.0] * 3


def test_non_finite_rows_become_zero_and_are_told(tmp_path: Path) -> None:
    draw_product(1, 0).save(tmp_path / "a.png")

    def model(pixels: Tensor) -> Tensor:
        return torch.tensor([[1.0, float("nan")], [0.6, 0.8]])

    items = [ImageItem(tmp_path / "a.png")] * 2
    answer = embed_images(model, items, 8, device=CPU, progress=False)
    assert answer.matrix.tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
    assert "no finite embedding" in answer.problems[0].reason
    assert replace_non_finite(torch.tensor([[float("inf")], [2.0]]))[1] == [0]


def test_no_photo_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one photo"):
        embed_images(mean_colour, [], 8, device=CPU, progress=False)
