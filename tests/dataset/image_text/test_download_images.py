"""Images and queries from a loopback server with every fault, in this process and killed."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dataset.dataset_creation_steps.engine import (
    DownloadConfig,
    Filling,
    failures_file,
    start_engine,
)
from dataset.image_text.download_images import Kept, download_images, main, metadata_file
from tests.commands import refused, told
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import ImageServer, running
from tests.dataset.dataset_creation_steps.small_amazon import FAULTS, PASSING

pytestmark = pytest.mark.usefixtures("impatient")
IMAGES = 30
CONFIG = DownloadConfig(size_hint=None, allow_private=True, rate=0, attempts=3, timeout=1, max_mb=2)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    start_engine("native")
    images = {f"{n}.jpg": jpeg(n, 0) for n in range(IMAGES)}
    images["copy.jpg"] = images["0.jpg"]
    with running(ImageServer(images)) as found:
        found.slow = 2.0
        yield found


def write_files(folder: Path, server: ImageServer) -> dict[str, tuple[bytes, list[str]]]:
    """`images.json` (cut gzip), `metadata.json`; of each image that is to be had what it is."""
    images: list[Any] = [
        {"image": n, "url": server.url(f"images/I/{n}.jpg")} for n in range(IMAGES)
    ]
    # An address of Amazon's form, which is left as it is.
    images[6]["url"] = server.url("images/I/6._SY88.jpg")
    names = {str(n): f"{n}.jpg" for n in range(IMAGES)}
    for fault in FAULTS:
        images.append({"image": fault, "url": server.url(f"{fault}/3.jpg")})
        if fault in PASSING:
            names[fault] = "3.jpg"
    images.append({"image": "huge", "url": server.url("huge/3.jpg")})
    images.append({"image": "copy", "url": server.url("images/I/copy.jpg")})
    names["copy"] = "0.jpg"
    images.append({"image": "alone", "url": server.url("images/I/4.jpg")})  # without a query
    images += [images[5], {"image": None, "url": "http://x"}, {"image": 7}]
    lines = [json.dumps(image) for image in images]
    lines.insert(3, "no json")
    whole = gzip.compress("\n".join([*lines, ""]).encode())
    # Cut off within the checksum at the end: all lines are there, and it is noticed.
    (folder / "images.json").write_bytes(whole[:-4])
    queries = [
        {"image": image["image"], "queries": [f"запрос {image['image']}", "ёлка", 5, "", None]}
        for image in images[:-3]
        if image["image"] != "alone"
    ]
    queries += [{"image": 99, "queries": ["нет фото"]}, {"image": 1, "queries": []}]
    (folder / "metadata.json").write_text(
        "".join(json.dumps(query, ensure_ascii=False) + "\n" for query in queries)
    )
    return {
        image: (server.images[name], [f"запрос {image}", "ёлка"]) for image, name in names.items()
    }


def check(root: Path, truth: dict[str, tuple[bytes, list[str]]]) -> None:
    lines = [json.loads(line) for line in metadata_file(root).read_text().splitlines()]
    found = {str(line["image"]): (line["file"], line["queries"]) for line in lines}
    assert len(found) == len(lines)
    assert {
        image: ((root / file).read_bytes(), queries) for image, (file, queries) in found.items()
    } == truth
    for file, _ in found.values():
        digest = hashlib.sha256((root / file).read_bytes()).hexdigest()
        assert file == f"{digest[:2]}/{digest[:32]}.jpg"
    kept = {path.relative_to(root).as_posix() for path in root.glob("??/*.jpg")}
    assert kept == {file for file, _ in found.values()}


def call(folder: Path) -> Kept:
    images, metadata, root = (folder / x for x in ("images.json", "metadata.json", "photos"))
    return download_images(images, metadata, root, Filling(CONFIG, 8))


def test_what_is_there_is_kept_with_its_queries(server: ImageServer, tmp_path: Path) -> None:
    truth = write_files(tmp_path, server)
    kept = call(tmp_path)
    check(tmp_path / "photos", truth)
    assert kept.tally["broken lines"] == 1
    assert kept.tally["gzip cut short or damaged"] == 1
    assert kept.tally["lines without an image"] == 1
    assert kept.tally["lines without an address"] == 1
    assert kept.tally["lines without a query"] == 1
    assert (kept.images, kept.contents) == (len(truth) + 1, IMAGES)
    assert (kept.lines, kept.queries) == (len(truth), 2 * len(truth))
    failures = pd.read_csv(failures_file(tmp_path / "photos"), dtype=str).set_index("image")
    assert set(failures.index) == {*FAULTS, "huge"} - set(PASSING)
    assert failures["reason"]["404"] == "HTTP 404"
    assert server.requests["/images/I/6._SY88.jpg"] == 1
    assert server.requests["/images/I/6.jpg"] == 0

    before = server.requests.total()
    next((tmp_path / "photos").glob("??/*.jpg")).unlink()
    files = [tmp_path / "images.json", tmp_path / "metadata.json", "--output", tmp_path / "photos"]
    options = ["--piece-photos", 8, "--allow-private", "--rate", 0, "--attempts", 3]
    said = told(main, *files, *options, "--timeout", 1, "--max-mb", 2)
    assert "next: python dataset/image_text/text_cleaning.py" in said
    check(tmp_path / "photos", truth)
    assert before < server.requests.total() <= before + 8 * CONFIG.attempts


def test_an_image_at_another_address_is_fetched_from_there(
    server: ImageServer, tmp_path: Path
) -> None:
    def write(directory: str) -> None:
        image = {"image": 9, "url": server.url(f"{directory}/9.jpg")}
        (tmp_path / "images.json").write_text(json.dumps(image))

    (tmp_path / "metadata.json").write_text(json.dumps({"image": 9, "queries": ["стол"]}))
    write("images/I")
    assert call(tmp_path).lines == 1
    write("404")
    refused(r"no image could be had; .*failures\.csv", call, tmp_path)


def test_files_that_do_not_belong_together_are_refused(server: ImageServer, tmp_path: Path) -> None:
    image = {"image": 1, "url": server.url("images/I/1.jpg")}
    (tmp_path / "images.json").write_text(json.dumps(image))
    (tmp_path / "metadata.json").write_text(json.dumps({"image": 2, "queries": ["стол"]}))
    refused("do both files belong together", call, tmp_path)
    (tmp_path / "images.json").write_text(json.dumps({"picture": 1}))
    refused(r"images\.json has no line such as", call, tmp_path)
    (tmp_path / "photos.metadata.json").write_text("")
    files = [tmp_path / name for name in ("images.json", "photos.metadata.json", "photos")]
    refused("would be overwritten", download_images, *files, Filling(CONFIG))
