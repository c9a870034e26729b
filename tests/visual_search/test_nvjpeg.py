from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import draw_product
from visual_search import nvjpeg
from visual_search.images import ImageItem, load_pixels
from visual_search.nvjpeg import load_batch_on_gpu, nvjpeg_decode, nvjpeg_pays

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageItem]:
    """Plain ones, one with a box, and what nvJPEG is not given."""
    for number in range(4):
        draw_product(number, 0, 320).save(tmp_path / f"{number}.jpg", quality=92)
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    draw_product(5, 0).save(tmp_path / "drawn.png")
    names = ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "cut.jpg", "drawn.png", "gone.jpg", "2.jpg")
    boxes = {2: (30, 40, 200, 100), 3: (250, 250, 200, 200)}
    return [ImageItem(tmp_path / name, boxes.get(n)) for n, name in enumerate(names)]


def same_as_on_the_cpu(photos: list[ImageItem], device: torch.device) -> None:
    squares, problems = load_batch_on_gpu(photos, 64, device)
    assert squares.shape == (len(photos), 3, 64, 64)
    assert squares.dtype == torch.uint8
    for item, square, problem in zip(photos, squares.cpu().numpy(), problems, strict=True):
        expected, told = load_pixels(item, 64)
        assert np.abs(square.astype(int) - expected).mean() < 1.5
        assert problem == told


def test_without_a_gpu_the_cpu_reads_all(photos: list[ImageItem]) -> None:
    assert nvjpeg_decode(CPU) is None
    assert not nvjpeg_pays(photos, 64, CPU, 2)
    same_as_on_the_cpu(photos, CPU)


def decoded_here(files: list[Tensor]) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]


def test_what_the_decoder_gives_is_cut_and_resized_alike(
    photos: list[ImageItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        given.append(len(files))
        return decoded_here(files)

    monkeypatch.setattr(nvjpeg, "nvjpeg_decode", lambda _: decode)
    same_as_on_the_cpu(photos, CPU)
    assert given == [5]


def test_a_batch_that_the_decoder_refuses_goes_the_other_way(
    photos: list[ImageItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("nvjpegDecodeBatched failed: 5")

    monkeypatch.setattr(nvjpeg, "nvjpeg_decode", lambda _: decode)
    same_as_on_the_cpu(photos, CPU)


def test_what_is_too_large_for_the_device_goes_the_other_way(
    photos: list[ImageItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[tuple[int, int]]] = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        images = decoded_here(files)
        given.append([(image.shape[2], image.shape[1]) for image in images])
        return images

    folder = photos[0].path.parent
    draw_product(7, 0, 400).save(folder / "large.jpg")
    items = [ImageItem(folder / "large.jpg"), *photos[:3], ImageItem(folder / "1.jpg")]
    monkeypatch.setattr(nvjpeg, "nvjpeg_decode", lambda _: decode)
    monkeypatch.setattr(nvjpeg, "MAX_PHOTO_PIXELS", 400 * 400 - 1)
    same_as_on_the_cpu(items, CPU)
    assert given == [[(320, 320)] * 4]
    given.clear()
    monkeypatch.setattr(nvjpeg, "MAX_BATCH_PIXELS", 2 * 320 * 320)
    same_as_on_the_cpu(items, CPU)
    assert given == [[(320, 320)] * 2]


def test_a_header_that_claims_too_much_is_never_decoded_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_product(1, 0).save(tmp_path / "claims.jpg")
    data = bytearray((tmp_path / "claims.jpg").read_bytes())
    frame = data.index(b"\xff\xc0")  # the frame header; height and width stand 5 bytes in
    data[frame + 5 : frame + 9] = b"\xff\xf0\xff\xf0"
    (tmp_path / "claims.jpg").write_bytes(data)

    def decode(files: list[Tensor]) -> list[Tensor]:
        raise AssertionError("it was given to the device")

    monkeypatch.setattr(nvjpeg, "nvjpeg_decode", lambda _: decode)
    same_as_on_the_cpu([ImageItem(tmp_path / "claims.jpg")], CPU)


@pytest.mark.parametrize("fails_at", ["decode", "resize"])
def test_a_device_without_memory_leaves_it_to_the_cpu(
    photos: list[ImageItem], monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decode = full if fails_at == "decode" else decoded_here
    monkeypatch.setattr(nvjpeg, "nvjpeg_decode", lambda _: decode)
    if fails_at == "resize":
        monkeypatch.setattr(nvjpeg, "_square", full)
    same_as_on_the_cpu(photos, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(photos: list[ImageItem]) -> None:
    same_as_on_the_cpu(photos, torch.device("cuda"))
