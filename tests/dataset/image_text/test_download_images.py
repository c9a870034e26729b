"""Images and queries from a loopback server; its faults are tested with the review pairs."""

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

pytestmark = pytest.mark.usefixtures("impatient")
IMAGES = 12
CONFIG = DownloadConfig(size_hint=None, allow_private=True, rate=0, attempts=3, timeout=1, max_mb=2)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    start_engine("native")
    images = {f"{n}.jpg": jpeg(n, 0) for n in range(IMAGES)}
    images["copy.jpg"] = images["0.jpg"]
    with running(ImageServer(images)) as found:
        yield found


def write_lines(path: Path, *lines: Any) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join([*texts, ""]))


def call(folder: Path) -> Kept:
    images, metadata, root = (folder / x for x in ("images.json", "metadata.json", "photos"))
    return download_images(images, metadata, root, Filling(CONFIG, 8))


def test_what_is_there_is_kept_with_its_queries(server: ImageServer, tmp_path: Path) -> None:
    images, metadata, root = (tmp_path / x for x in ("images.json", "metadata.json", "photos"))
    names = {str(n): f"images/I/{n}.jpg" for n in range(IMAGES)}
    names["6"] = "images/I/6._SY88.jpg"  # an address of Amazon's form is left as it is
    names |= {"copy": "images/I/copy.jpg", "passing": "503/3.jpg"}
    others = {"gone": "404/3.jpg", "huge": "huge/3.jpg", "alone": "images/I/4.jpg"}
    rows = [{"image": name, "url": server.url(url)} for name, url in (names | others).items()]
    write_lines(images, *rows, rows[5], "no json", {"image": None, "url": "http://x"}, {"image": 7})
    # Cut off within the checksum at the end: all lines are there, and it is noticed.
    images.write_bytes(gzip.compress(images.read_bytes())[:-4])
    queries = [
        {"image": name, "queries": [f"запрос {name}", "ёлка", 5, "", None]}
        for name in [*names, "gone", "huge", 99]
    ]
    write_lines(metadata, *queries, {"image": 1, "queries": []})

    def check() -> None:
        lines = [json.loads(line) for line in metadata_file(root).read_text().splitlines()]
        assert {line["image"]: line["queries"] for line in lines} == {
            name: [f"запрос {name}", "ёлка"] for name in names
        }
        for line in lines:
            content = server.image(names[line["image"]])
            digest = hashlib.sha256(content).hexdigest()
            assert line["file"] == f"{digest[:2]}/{digest[:32]}.jpg"
            assert (root / line["file"]).read_bytes() == content
        kept = {path.relative_to(root).as_posix() for path in root.glob("??/*.jpg")}
        assert kept == {line["file"] for line in lines}

    kept = call(tmp_path)
    check()
    assert {what: count for what, count in kept.tally.items() if count == 1} == {
        "broken lines": 1,
        "gzip cut short or damaged": 1,
        "lines without an image": 1,
        "lines without an address": 1,
        "lines without a query": 1,
    }
    assert (kept.images, kept.contents) == (len(names) + 1, IMAGES)
    assert (kept.lines, kept.queries) == (len(names), 2 * len(names))
    failures = pd.read_csv(failures_file(root), dtype=str).set_index("image")
    assert set(failures.index) == {"gone", "huge"}
    assert failures["reason"]["gone"] == "HTTP 404"
    assert server.requests["/images/I/6._SY88.jpg"] == 1
    assert server.requests["/images/I/6.jpg"] == 0

    before = server.requests.total()
    next(root.glob("??/*.jpg")).unlink()
    options = ["--piece-photos", 8, "--allow-private", "--rate", 0, "--attempts", 3]
    said = told(main, images, metadata, "--output", root, *options, "--timeout", 1, "--max-mb", 2)
    assert "next: python dataset/image_text/text_cleaning.py" in said
    check()
    assert before < server.requests.total() <= before + 8 * CONFIG.attempts


def test_files_that_do_not_belong_together_are_refused(server: ImageServer, tmp_path: Path) -> None:
    images, metadata = tmp_path / "images.json", tmp_path / "metadata.json"
    write_lines(images, {"image": 1, "url": server.url("404/1.jpg")})
    write_lines(metadata, {"image": 2, "queries": ["стол"]})
    refused(r"no image could be had; .*failures\.csv", call, tmp_path)
    write_lines(images, {"image": 1, "url": server.url("images/I/1.jpg")})
    refused("do both files belong together", call, tmp_path)
    write_lines(images, {"picture": 1})
    refused(r"images\.json has no line such as", call, tmp_path)
    (tmp_path / "photos.metadata.json").write_text("")
    files = [tmp_path / name for name in ("images.json", "photos.metadata.json", "photos")]
    refused("would be overwritten", download_images, *files, Filling(CONFIG))
