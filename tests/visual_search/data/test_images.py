from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from visual_search.data import images
from visual_search.data.image_files import UnreadableImage, stored_size
from visual_search.data.images import (
    Box,
    ImageItem,
    clip_box,
    decoded_size,
    load_pixels,
    load_views,
    read_region,
    to_rgb,
)

BICUBIC = Image.Resampling.BICUBIC


def photo(width: int = 400, height: int = 300) -> Image.Image:
    """Smooth colours with a few edges, as photos have them."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 5, height))
    waves = [np.sin(x), np.cos(y), np.sin(x + y)]
    image = Image.fromarray((np.stack(waves, axis=2) * 100 + 128).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((50, 40, 220, 200), fill=(200, 30, 40))
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_box_is_cut_and_resized_as_pil_does_it(tmp_path: Path) -> None:
    path = saved(photo(), tmp_path / "a.png")
    pixels, problem = load_pixels(ImageItem(path, (50, 40, 170, 160)), 96)
    expected = photo().crop((50, 40, 220, 200)).resize((96, 96), Image.Resampling.BICUBIC)
    assert problem is None
    assert pixels.shape == (3, 96, 96)
    assert pixels.dtype == np.uint8
    # The same filter, weights rounded otherwise.
    difference = np.abs(pixels.transpose(1, 2, 0) - np.asarray(expected, dtype=float))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@pytest.mark.parametrize("shape", [(400, 300), (90, 301), (30, 900)])
def test_a_letterbox_is_what_pil_pads(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = saved(photo(*shape), tmp_path / "a.png")
    (squashed, boxed), problem = load_views(ImageItem(path), [("squash", 96), ("letterbox", 64)])
    assert problem is None
    assert np.array_equal(squashed, load_pixels(ImageItem(path), 96)[0])
    expected = np.asarray(ImageOps.pad(photo(*shape), (64, 64), BICUBIC, "white"), dtype=float)
    difference = np.abs(boxed.transpose(1, 2, 0) - expected)
    assert difference.mean() < 0.5


def test_a_letterbox_of_a_line_is_a_line(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (1, 4000)), tmp_path / "a.png")
    (boxed,), problem = load_views(ImageItem(path), [("letterbox", 8)])
    assert problem is None
    assert (boxed != 255).any(axis=(0, 1)).tolist() == [place == 3 for place in range(8)]


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    turned = saved(photo(), tmp_path / "turned.jpg", quality=95, exif=exif)
    plain = saved(photo(), tmp_path / "plain.jpg", quality=95)
    assert read_region(ImageItem(turned), 200).size == (400, 300)
    assert stored_size(turned) == decoded_size(turned) == (400, 300)
    box = (10, 20, 300, 200)
    np.testing.assert_array_equal(
        load_pixels(ImageItem(turned, box), 64)[0], load_pixels(ImageItem(plain, box), 64)[0]
    )


def test_odd_colour_modes_look_as_a_person_sees_them(tmp_path: Path) -> None:
    red = (200, 30, 40)
    cmyk = saved(Image.new("RGB", (80, 80), red).convert("CMYK"), tmp_path / "cmyk.jpg")
    palette = saved(
        Image.new("RGB", (80, 80), red).convert("P", palette=Image.Palette.ADAPTIVE),
        tmp_path / "palette.png",
    )
    animated = tmp_path / "animated.gif"
    frames = [Image.new("RGB", (80, 80), colour) for colour in (red, (0, 255, 0))]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    for path in (cmyk, palette, animated):
        pixels, problem = load_pixels(ImageItem(path), 32)
        assert problem is None, path
        assert np.abs(pixels.mean(axis=(1, 2)) - red).max() < 12, path


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert to_rgb(layer).getpixel((5, 5)) == (255, 255, 255)
    path = saved(Image.new("LA", (20, 20), (0, 255)), tmp_path / "grey.png")
    assert load_pixels(ImageItem(path), 8)[0].max() == 0
    # A colour that counts as transparent, of PNGs without a layer of transparency.
    for mode, colour in (("RGB", (1, 2, 3)), ("L", 7), ("P", 0), ("1", 0)):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (20, 20), colour).save(path, transparency=colour)
        assert load_pixels(ImageItem(path), 8)[0].min() == 255, mode


def test_readable_part_of_a_cut_jpeg_is_used_and_told(tmp_path: Path) -> None:
    whole = saved(photo(), tmp_path / "whole.jpg", quality=90)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    pixels, problem = load_pixels(ImageItem(path), 96)
    expected, _ = load_pixels(ImageItem(whole), 96)
    assert problem is not None
    assert "damaged" in problem.reason
    assert np.abs(pixels[:, :30].astype(int) - expected[:, :30]).max() <= 2
    assert np.abs(pixels[:, 80:].astype(int) - expected[:, 80:]).max() > 20
    assert stored_size(path) == (400, 300)
    with pytest.raises(UnreadableImage, match="truncated"):
        decoded_size(path)


@pytest.mark.parametrize(
    ("box", "used", "told"),
    [
        ((900, 10, 20, 20), None, "outside"),
        ((10, 10, 0, 5), None, "outside"),
        ((10, 10, -5, 5), None, "outside"),
        ((-20, 250, 120, 200), (0, 250, 100, 50), "clipped"),
    ],
)
def test_a_box_that_is_not_within_its_image_is_told(
    tmp_path: Path, box: Box, used: Box | None, told: str
) -> None:
    path = saved(photo(), tmp_path / "a.png")
    pixels, problem = load_pixels(ImageItem(path, box), 32)
    np.testing.assert_array_equal(pixels, load_pixels(ImageItem(path, used), 32)[0])
    assert problem is not None
    assert told in problem.reason


@given(st.tuples(*[st.integers(-50, 150)] * 4), st.integers(1, 100), st.integers(1, 100))
def test_clipped_box_holds_the_pixels_that_box_and_image_share(
    box: tuple[int, int, int, int], width: int, height: int
) -> None:
    x, y, w, h = box
    columns = set(range(x, x + w)) & set(range(width))
    rows = set(range(y, y + h)) & set(range(height))
    inside = clip_box(box, width, height)
    if not columns or not rows:
        assert inside is None
    else:
        assert inside == (min(columns), min(rows), len(columns), len(rows))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_short_and_long_way_decode_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, options: dict[str, object]
) -> None:
    path = saved(photo(900, 700).convert(mode), tmp_path / "a.jpg", quality=88, **options)
    for item, size in (
        (ImageItem(path), 96),
        (ImageItem(path), 400),
        (ImageItem(path, (33, 41, 501, 388)), 64),
    ):
        short, _ = load_pixels(item, size)
        with monkeypatch.context() as patched:
            patched.setattr(images, "simplejpeg", None)
            long, _ = load_pixels(item, size)
        if not item.box and size < 400:
            assert read_region(item, size).width < 900
        # The short way also knows 3/8 of the size.
        assert np.abs(short.astype(int) - long).mean() < 1
        whole = np.array(Image.open(path).convert("RGB"))
        x, y, w, h = item.box or (0, 0, 900, 700)
        full = Image.fromarray(whole[y : y + h, x : x + w]).resize((size, size), BICUBIC)
        assert np.abs(short.transpose(1, 2, 0) - np.asarray(full, dtype=float)).mean() < 1


def test_a_white_border_is_cut_away_where_asked(tmp_path: Path) -> None:
    page = Image.new("RGB", (500, 400), (255, 255, 255))
    page.paste(photo(200, 150), (180, 90))
    path = saved(page, tmp_path / "page.png")
    trimmed, problem = load_pixels(ImageItem(path, trim=True), 64)
    expected = page.crop((176, 86, 384, 244)).resize((64, 64), BICUBIC)
    assert problem is None
    assert np.abs(trimmed.transpose(1, 2, 0) - np.asarray(expected, dtype=float)).max() <= 2
    untouched, _ = load_pixels(ImageItem(path), 64)
    assert np.abs(untouched.astype(int) - trimmed).mean() > 10
    # Somebody drew the box: nothing is cut from it.
    boxed, _ = load_pixels(ImageItem(path, (0, 0, 500, 400), trim=True), 64)
    np.testing.assert_array_equal(boxed, untouched)


def test_trimming_meets_photos_without_content(tmp_path: Path) -> None:
    for name, image in {
        "white.png": Image.new("RGB", (90, 60), (255, 255, 255)),
        "white.jpg": Image.new("RGB", (90, 60), (255, 255, 255)),
        "dot.png": Image.new("RGB", (1, 1), (255, 255, 255)),
        "black.png": Image.new("RGB", (90, 60)),
    }.items():
        pixels, problem = load_pixels(ImageItem(saved(image, tmp_path / name), trim=True), 16)
        assert problem is None
        assert (pixels == pixels[0, 0, 0]).all()


@pytest.mark.parametrize(
    ("top", "dtype", "name"),
    [
        (1.0, np.float32, "unit.tiff"),
        (255.0, np.float32, "bytes.tiff"),
        (65535.0, np.float32, "deep.tiff"),
        (3.0e6, np.float32, "counts.tiff"),
        (200_000, np.int32, "counts32.tiff"),
        (65535, np.int32, "deep32.tiff"),
        (65535, np.uint16, "deep16.tiff"),
        (65535, np.uint16, "deep16.png"),
    ],
)
def test_deep_greys_are_scaled_by_the_range_they_use(
    tmp_path: Path, top: float, dtype: type, name: str
) -> None:
    ramp: np.ndarray = np.linspace(0, top, 64).astype(dtype)[None].repeat(64, axis=0)
    path = saved(Image.fromarray(ramp), tmp_path / name)
    pixels, problem = load_pixels(ImageItem(path), 64)
    assert problem is None
    np.testing.assert_allclose(pixels[0], np.linspace(0, 255, 64)[None].repeat(64, 0), atol=1)
