"""Files of strangers, over every entry point that reads images."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, features

from dataset.check_table import check
from dataset.downloads import image_problem
from dataset.folder_info import describe_folder
from tests.commands import ran
from tests.conftest import PROJECT, draw_product, write_csv
from tests.hostile import CONTENTS, HOSTILE, chunk, heavy_images, make_hostile, png
from visual_search.cached_features import random_crop
from visual_search.data.duplicates import hashes_of_table
from visual_search.data.image_files import FORMATS, UnreadableImage, is_image, stored_size
from visual_search.data.images import ImageItem, load_pixels, read_region
from visual_search.evaluation.report import thumbnails
from visual_search.ranking.embed import embed_images

Reasons = dict[str, str | None]
"""By file name; None where a reader went on without a word."""

MEMORY_OF_HEAVY_IMAGES = 1_536 << 20


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder with a class of all hostile files and a good one, the first."""
    folder = tmp_path_factory.mktemp("hostile") / "class"
    paths = [make_hostile(folder, name) for name in HOSTILE]
    draw_product(1, 0).save(folder / "good.png")
    return [folder / "good.png", *paths]


def raised(read: Callable[[Path], object], paths: list[Path]) -> Reasons:
    reasons: Reasons = {}
    for path in paths:
        try:
            read(path)
        except UnreadableImage as error:
            reasons[path.name] = str(error)
    return reasons


def by_embedding(paths: list[Path]) -> Reasons:
    items = [ImageItem(path) for path in paths]
    answer = embed_images(
        lambda pixels: pixels.float().mean(dim=(2, 3)),
        items,
        16,
        device=torch.device("cpu"),
        progress=False,
    )
    return {Path(problem.path).name: problem.reason for problem in answer.problems}


def by_hashing(paths: list[Path]) -> Reasons:
    _, unreadable = hashes_of_table(pd.DataFrame(), Path("t.csv"), paths)
    return {paths[place].name: reason for place, reason in unreadable.items()}


def by_folder_info(paths: list[Path]) -> Reasons:
    folder = paths[0].parent.parent
    done = describe_folder(folder, folder / "table", hashes=True)
    assert done.images == 1
    assert done.others == {".ico": 1}
    with (folder / "table" / "broken_photos.csv").open(newline="", encoding="utf-8") as handle:
        found = {Path(row["file_name"]).name: row["reason"] for row in csv.DictReader(handle)}
    return found | dict.fromkeys(("icon.ico", "folder.jpg", "good.png"))


def by_check_table(paths: list[Path]) -> Reasons:
    rows = [[f"class/{path.name}", 1] for path in paths]
    table = write_csv(paths[0].parent.parent / "info.csv", ["file_name", "label"], rows)
    return {paths[found.line - 2].name: found.what for found in check(table, files="all").problems}


def by_report(paths: list[Path]) -> Reasons:
    assert all(thumbnails([ImageItem(path) for path in paths]).values())
    return dict.fromkeys(path.name for path in paths)


def by_random_crop(paths: list[Path]) -> Reasons:
    uncut = [path.name for path in paths if random_crop(ImageItem(path), 0, 0) is None]
    return dict.fromkeys([*uncut, *DECODED])


def by_download(paths: list[Path]) -> Reasons:
    found = {path.name: image_problem(path.read_bytes(), whole=True) for path in paths[:1]}
    assert found == {"good.png": None}
    return {name: image_problem(make(), whole=True) for name, (make, _) in CONTENTS.items()}


DECODED = ("scans.jpg", "infinite.tiff")
"""Found out where pixels are decoded only."""

READERS: dict[str, Callable[[list[Path]], Reasons]] = {
    "header": lambda paths: raised(stored_size, paths) | dict.fromkeys(DECODED),
    "region": lambda paths: raised(lambda path: read_region(ImageItem(path), 64), paths),
    "embedding": by_embedding,
    "hashing": by_hashing,
    "folder_info": by_folder_info,
    "check_table": lambda paths: by_check_table(paths) | dict.fromkeys(DECODED),
    "report": by_report,
    "random_crop": by_random_crop,
    "download": by_download,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("reader", READERS)
def test_a_hostile_file_costs_its_own_row(hostile: list[Path], reader: str) -> None:
    reasons = READERS[reader](hostile)
    expected = CONTENTS if reader == "download" else HOSTILE
    assert reasons.keys() - {"good.png"} == expected.keys()
    assert not reasons.get("good.png")
    for name, words in HOSTILE.items():
        assert words in (reasons.get(name) or words), name


def test_no_other_module_opens_images() -> None:
    sources = [*PROJECT.glob("visual_search/**/*.py"), *PROJECT.glob("dataset/**/*.py")]
    opening = [path.name for path in sources if "Image.open(" in path.read_text("utf-8")]
    drawn = {"obj.py"}  # of the demo's builder: what it made itself
    assert set(opening) - drawn == {"image_files.py"}


def variants(folder: Path) -> dict[str, Path]:
    """The same picture in every format that is read, with endings that say nothing."""
    folder.mkdir(parents=True)
    picture = draw_product(3, 1, 96)
    kinds = {"JPEG": ".jfif", "PNG": "", "WEBP": ".dat", "GIF": ".jpg", "BMP": ".b", "TIFF": ".x"}
    if features.check("avif"):
        kinds["AVIF"] = ".avif"
    paths = {}
    for kind, ending in kinds.items():
        paths[kind] = folder / f"{kind}{ending}"
        picture.save(paths[kind], kind)
    paths["MPO"] = folder / "phone.mpo.bak"
    picture.save(paths["MPO"], "MPO", save_all=True, append_images=[Image.new("RGB", (96, 96))])
    return paths


def test_what_an_image_is_its_content_says(tmp_path: Path) -> None:
    paths = variants(tmp_path / "photos" / "class")
    assert set(FORMATS) == set(paths) - {"MPO"}
    expected = np.asarray(draw_product(3, 1, 96).resize((32, 32)), dtype=float)
    for path in paths.values():
        assert is_image(path), path
        pixels, problem = load_pixels(ImageItem(path), 32)
        assert problem is None
        assert np.abs(pixels.transpose(1, 2, 0) - expected).mean() < 12, path
        assert image_problem(path.read_bytes(), whole=True) is None
    notes = tmp_path / "photos" / "notes.txt"
    notes.write_text("size: 40")
    assert not is_image(notes)
    assert describe_folder(tmp_path / "photos", tmp_path / "table").images == len(paths)


def test_a_large_colour_profile_costs_nothing(tmp_path: Path) -> None:
    import zlib

    profile = chunk(b"iCCP", b"print\0\0" + zlib.compress(bytes(1_500_000)))
    (tmp_path / "print.png").write_bytes(png(40, 30, colour=2, extra=profile))
    pixels, problem = load_pixels(ImageItem(tmp_path / "print.png"), 16)
    assert problem is None
    assert (pixels == 0).all()


MEASURE = """
import sys, re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from visual_search.data.images import ImageItem, load_pixels
import torch
torch.set_num_threads(1)
paths = sorted(Path(sys.argv[1]).iterdir()) * 2
with ThreadPoolExecutor(2) as pool:
    found = list(pool.map(lambda path: load_pixels(ImageItem(path, trim=True), 224)[1], paths))
    found += pool.map(lambda path: load_pixels(ImageItem(path, (9, 9, 300, 300)), 224)[1], paths)
assert not any(found), found
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
def test_memory_of_the_heaviest_images_on_two_threads(tmp_path: Path) -> None:
    heavy_images(tmp_path)
    done = ran(sys.executable, "-c", MEASURE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEMORY_OF_HEAVY_IMAGES
