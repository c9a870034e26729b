from __future__ import annotations

import io

import pytest
from PIL import Image

from dataset.dataset_creation_steps.photos import photo_problem
from tests.conftest import draw_product
from tests.dataset.dataset_creation_steps.photo_server import PIXEL


def encoded(kind: str, side: int = 64) -> bytes:
    data = io.BytesIO()
    draw_product(1, 1, side).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("whole", [False, True])
def test_photos_pass(kind: str, whole: bool) -> None:
    assert photo_problem(encoded(kind), whole=whole) is None


def test_a_cut_photo_is_found_where_all_of_it_is_read() -> None:
    data = encoded("JPEG", 256)[:-200]
    assert photo_problem(data) is None
    assert "truncated" in (photo_problem(data, whole=True) or "")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (PIXEL, "1 x 1 pixels are too few"),
        (b"<html>sorry</html>", "web page"),
        (b"\xff\xd8\xff\xe0nothing", ""),
        (b"GIF89a", ""),
    ],
)
def test_what_is_no_photo_is_said(data: bytes, expected: str) -> None:
    for whole in (False, True):
        assert expected in (photo_problem(data, whole=whole) or "passed")
        assert photo_problem(data, whole=whole)


def test_a_photo_of_too_many_pixels_is_refused_from_its_beginning() -> None:
    data = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(data, "PNG")
    assert "too many" in (photo_problem(data.getvalue()) or "")
