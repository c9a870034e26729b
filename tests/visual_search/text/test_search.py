"""What images a gallery has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import refused
from tests.conftest import draw_product
from visual_search.text.search import gallery_images
from visual_search.text.zero_shot import read_zero_shot_set

FORMATS = {"a.jpg": "JPEG", "b.JFIF": "JPEG", "c.jpe": "JPEG", "d": "PNG", "e.dat": "WEBP"}


def zero_shot_images(folder: Path) -> list[Path]:
    (folder.parent / "classes.json").write_text('["cat"]')
    return read_zero_shot_set(folder.parent).images


READERS: dict[str, Callable[[Path], list[Path]]] = {
    "gallery": lambda folder: [item.path for item in gallery_images(folder)],
    "zero-shot": zero_shot_images,
}


@pytest.mark.parametrize("reader", READERS)
def test_images_are_known_by_content_and_others_are_counted(
    reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "img"
    folder.mkdir()
    for name in ("notes.txt", "more.TXT", "Makefile"):
        (folder / name).write_text("no image")
    refused(r"img holds no image, but other files: 2 \.txt, 1 without", READERS[reader], folder)
    for number, (name, kind) in enumerate(FORMATS.items()):
        draw_product(number, 0).save(folder / name, kind)
    (folder / "z.png").write_text("damaged, and reported as such")
    assert [path.name for path in READERS[reader](folder)] == [*FORMATS, "z.png"]
    counts = "img: 6 images; passed over, as they are no images: 2 .txt, 1 without an ending"
    assert counts in capsys.readouterr().out


def test_a_gallery_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nested").mkdir()
    draw_product(0, 0).save(tmp_path / "nested" / "0.png")
    assert [item.path.name for item in gallery_images(tmp_path)] == ["0.png"]
    refused("is no gallery: name a folder", gallery_images, tmp_path / "missing")
