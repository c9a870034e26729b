import threading
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tests.conftest import draw_product
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data import image_files
from visual_search.data.images import ImageItem, load_pixels
from visual_search.model.embedder import build_embedder
from visual_search.ranking import embed, inference_plan
from visual_search.ranking.embed import embed_images
from visual_search.ranking.inference_plan import EmbedFn, InferencePlan

CPU = torch.device("cpu")


def mean_colour(pixels: Tensor) -> Tensor:
    return pixels.float().mean(dim=(2, 3))


def drawn(folder: Path, count: int) -> list[ImageItem]:
    items = [ImageItem(folder / f"{number}.png") for number in range(count)]
    for number, item in enumerate(items):
        draw_product(number, 0).save(item.path)
    return items


def test_rows_stand_in_the_order_of_the_photos(tmp_path: Path) -> None:
    items = [replace(item, box=(n, 0, 30, 30)) for n, item in enumerate(drawn(tmp_path, 23))]
    settings = EmbedSettings(batch_size=4, workers=3)
    answer = embed_images(mean_colour, items, 16, device=CPU, settings=settings, progress=False)
    expected = np.stack([load_pixels(item, 16)[0].mean(axis=(1, 2)) for item in items])
    np.testing.assert_allclose(answer.matrix.numpy(), expected, rtol=1e-5)
    assert answer.problems == ()


@pytest.mark.parametrize("hanging", [{0}, {5}, {3, 4, 19}])
def test_a_file_that_hangs_costs_its_own_row(
    hanging: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = drawn(tmp_path, 20)
    expected = embed_images(mean_colour, items, 16, device=CPU, progress=False).matrix
    stalled = {items[number].path for number in hanging}
    forever, opened = threading.Event(), image_files.open_file

    def open_file(path: Path) -> BinaryIO:
        if path in stalled:
            forever.wait()
        return opened(path)

    monkeypatch.setattr(image_files, "open_file", open_file)
    monkeypatch.setattr(image_files, "_given_up", set())
    for module, name in (
        (image_files, "HANGING_SECONDS"),
        (image_files, "LEAST_SECONDS"),
        (inference_plan, "HANGING_SECONDS"),
        (embed, "LOOK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.1)
    settings = EmbedSettings(batch_size=4, workers=3)
    answer = embed_images(mean_colour, items, 16, device=CPU, settings=settings, progress=False)
    forever.set()
    good = [number for number in range(20) if number not in hanging]
    torch.testing.assert_close(answer.matrix[good], expected[good])
    assert {Path(problem.path) for problem in answer.problems} == stalled
    assert all("did not end" in problem.reason for problem in answer.problems)
    assert (answer.matrix[sorted(hanging)] == 127).all()


class Overflowing(torch.nn.Module):
    """Unit vectors of the mean colour; NaN for dark photos, for red ones in half precision only."""

    def forward(self, pixels: Tensor) -> Tensor:
        colour = pixels.float().mean(dim=(2, 3))
        vectors = torch.nn.functional.normalize(colour, dim=1)
        vectors[colour.sum(dim=1) < 30] = float("nan")
        if torch.is_autocast_enabled("cpu"):
            vectors[colour[:, 0] > 200] = float("inf")
        return vectors


def test_rows_that_are_not_finite_are_computed_again_then_zeroed(tmp_path: Path) -> None:
    items = painted(tmp_path, [(250, 20, 20), (20, 20, 250), (0, 0, 0)])
    settings = EmbedSettings(precision="bf16", memory_format="contiguous", workers=1)
    answer = embed_images(Overflowing(), items, 8, device=CPU, settings=settings, progress=False)
    expected = torch.tensor([[250.0, 20, 20], [20, 20, 250]])
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(answer.matrix[:2], expected)
    assert answer.matrix[2].tolist() == [0.0] * 3
    assert [problem.path for problem in answer.problems] == [str(items[2].path)]
    assert "no finite embedding" in answer.problems[0].reason


def test_views_are_averaged_at_length_one(tmp_path: Path) -> None:
    (item,) = drawn(tmp_path, 1)

    def model(pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(pixels.flatten(1).float(), dim=1)

    def embedded(settings: EmbedSettings) -> np.ndarray:
        answer = embed_images(model, [item], 14, device=CPU, settings=settings, progress=False)
        return answer.matrix[0].numpy()

    whole = load_pixels(item, 14)[0].astype(np.float64)
    views = [whole, whole[:, :, ::-1]]
    np.testing.assert_allclose(embedded(EmbedSettings(flip=True)), mean_of(views), atol=1e-6)
    larger = load_pixels(item, 16)[0].astype(np.float64)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    views = [larger[:, y : y + 14, x : x + 14] for y, x in corners]
    np.testing.assert_allclose(embedded(EmbedSettings(crops=True)), mean_of(views), atol=1e-6)
    views += [view[:, :, ::-1] for view in views]
    both = EmbedSettings(crops=True, flip=True)
    assert both.copies == 10
    np.testing.assert_allclose(embedded(both), mean_of(views), atol=1e-6)


@pytest.mark.parametrize("sides", [(12, 12), (12, 6)])
def test_a_letterboxed_view_is_the_whole_image_on_white(
    tmp_path: Path, sides: tuple[int, int]
) -> None:
    draw_product(3, 0).crop((0, 0, 60, 40)).save(tmp_path / "a.png")
    item = ImageItem(tmp_path / "a.png")

    def model(pixels: Tensor) -> Tensor:
        """Of one width whatever the side."""
        return torch.nn.functional.normalize(pixels[..., :6, :6].flatten(1).float(), dim=1)

    settings = EmbedSettings(views=("squash", "letterbox"), view_sizes=sides)
    answer = embed_images(model, [item], 12, device=CPU, settings=settings, progress=False)
    padded = ImageOps.pad(Image.open(item.path), (sides[1],) * 2, Image.Resampling.BICUBIC, "white")
    views = [load_pixels(item, 12)[0].astype(float), np.asarray(padded, float).transpose(2, 0, 1)]
    expected = mean_of([view[:, :6, :6] for view in views])
    np.testing.assert_allclose(answer.matrix[0], expected, atol=2e-3)


def mean_of(views: list[np.ndarray]) -> np.ndarray:
    units = [view.ravel() / np.linalg.norm(view) for view in views]
    mean = np.mean(units, axis=0)
    return mean / np.linalg.norm(mean)


def test_a_batch_too_large_for_the_memory_is_halved(tmp_path: Path) -> None:
    items = drawn(tmp_path, 7)
    seen = []

    def model(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_colour(pixels)

    settings = EmbedSettings(batch_size=7, workers=1)
    answer = embed_images(model, items, 16, device=CPU, settings=settings, progress=False)
    np.testing.assert_allclose(
        answer.matrix, [load_pixels(item, 16)[0].mean(axis=(1, 2)) for item in items], rtol=1e-5
    )
    assert max(seen) == 7


def painted(folder: Path, colours: list[tuple[int, int, int]]) -> list[ImageItem]:
    items = []
    for number, colour in enumerate(colours):
        Image.new("RGB", (9, 9), colour).save(folder / f"{number}.png")
        items.append(ImageItem(folder / f"{number}.png"))
    return items


def in_twos(embed: EmbedFn, exact: EmbedFn, streams: int = 1) -> InferencePlan:
    return InferencePlan(embed, exact, CPU, "bf16", "contiguous", 2, streams, 1)


RED, BLUE = (250, 0, 0), (0, 0, 250)


def no_red(pixels: Tensor) -> Tensor:
    if (pixels[:, 0] > 200).any():
        raise RuntimeError("cuDNN error: no red\nat line 3")
    return mean_colour(pixels)


@pytest.mark.parametrize("place", [0, 3])
def test_a_batch_that_fails_is_tried_in_fp32_then_left_and_listed(
    tmp_path: Path, place: int
) -> None:
    items = painted(tmp_path, [RED if number == place else BLUE for number in range(8)])
    expected = np.stack([load_pixels(item, 8)[0].mean(axis=(1, 2)) for item in items])
    answer = embed_images(in_twos(no_red, mean_colour), items, 8, device=CPU, progress=False)
    np.testing.assert_allclose(answer.matrix, expected)
    assert answer.problems == ()

    answer = embed_images(in_twos(no_red, no_red), items, 8, device=CPU, progress=False)
    lost = [place - place % 2, place - place % 2 + 1]
    expected[lost] = 0
    np.testing.assert_allclose(answer.matrix, expected)
    assert [problem.path for problem in answer.problems] == [str(items[n].path) for n in lost]
    told = "the model failed on its batch (cuDNN error: no red); 0 is used"
    assert {problem.reason for problem in answer.problems} == {told}


@pytest.mark.parametrize("streams", [1, 3])
def test_a_model_that_fails_on_every_batch_is_broken(tmp_path: Path, streams: int) -> None:
    calls: list[int] = []

    def broken(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        raise RuntimeError("weights of another model")

    items = painted(tmp_path, [BLUE]) * 1000
    with pytest.raises(RuntimeError, match="another model"):
        embed_images(in_twos(broken, broken, streams), items, 8, device=CPU, progress=False)
    assert 2 * (streams + 1) <= len(calls) < 500
    # So is one whose only batches, fewer than it takes to tell, all fail.
    with pytest.raises(RuntimeError, match="another model"):
        embed_images(in_twos(broken, broken, 8), items[:4], 8, device=CPU, progress=False)


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen = []

    def model(pixels: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return mean_colour(pixels)

    items = drawn(tmp_path, 1) * 8
    settings = EmbedSettings(workers=64)
    embed_images(model, items, 8, device=CPU, settings=settings, progress=False)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_no_photo_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        embed_images(mean_colour, [], 8, device=CPU, progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_embeds_as_the_cpu_does(tmp_path: Path) -> None:
    items = drawn(tmp_path, 150)
    torch.manual_seed(0)
    model, _ = build_embedder(BackboneConfig("timm/test_convnext", "none"), 64)
    model.eval()
    settings = EmbedSettings(precision="fp32")
    expected = embed_images(model, items, 64, device=CPU, settings=settings, progress=False)
    cuda = torch.device("cuda")
    for chosen in (EmbedSettings(), EmbedSettings(precision="fp32")):
        answer = embed_images(
            model.to(cuda), items, 64, device=cuda, settings=chosen, progress=False
        )
        cosines = (answer.matrix * expected.matrix).sum(dim=1)
        assert cosines.min() > 0.9999
