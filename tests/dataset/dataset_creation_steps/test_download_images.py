"""Step 4 in this process: what is kept, what is done again, and what is not."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from dataset.dataset_creation_steps import image_store
from dataset.dataset_creation_steps.download_images import download_images, table_file
from dataset.dataset_creation_steps.engine import (
    DownloadConfig,
    Filling,
    failures_file,
    start_engine,
)
from dataset.dataset_creation_steps.snapshots import read_snapshot, write_snapshot
from tests.commands import refused, stopped
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import ImageServer, running
from tests.disks import small_disk

CONFIG = DownloadConfig(allow_private=True, rate=0, attempts=2, timeout=5)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    start_engine("native")
    images = {f"{p}x{i}.jpg": jpeg(p, i) for p in range(6) for i in range(4)}
    images["copy.jpg"] = images["0x0.jpg"]
    with running(ImageServer(images)) as found:
        yield found


def rows_of(server: ImageServer) -> list[tuple[str, str, float]]:
    """All its images, four of each of six products."""
    return [(f"B{p}", server.url(f"images/I/{p}x{i}.jpg"), 0.7) for p in range(6) for i in range(4)]


def selection(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    table = pd.DataFrame(rows, columns=["asin", "url", "mean_cosine"])
    table.insert(1, "role", "user")
    table.to_parquet(path)
    return path


def call(path: Path, root: Path, **more: bool) -> tuple[int, list[str]]:
    """How many images are kept, and why others are not."""
    images = download_images([path], root, Filling(CONFIG, 5, **more))
    return len(images), pd.read_csv(failures_file(root))["reason"].tolist()


def kept_names(server: ImageServer, root: Path) -> dict[str, str]:
    """Label by the image's name on the server."""
    table = pd.read_parquet(table_file(root))
    names = {data: name for name, data in reversed(server.images.items())}
    return {
        names[(root / path).read_bytes()]: label
        for path, label in zip(table["image_path"], table["label"], strict=True)
    }


def test_more_images_are_put_behind_each_content_once_where_it_fits_best(
    server: ImageServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images_mean_50k"
    rows = rows_of(server)
    few = selection(tmp_path / "few.parquet", rows[12:])
    assert call(few, root) == (12, [])
    rows += [("B3", server.url("images/I/copy.jpg"), 0.9), ("B1", server.url("404/1x1.jpg"), 0.8)]
    before = server.requests.total()
    assert call(selection(tmp_path / "all.parquet", rows), root) == (24, ["HTTP 404"])
    assert server.requests.total() == before + 14
    said = capsys.readouterr().out
    assert f"24 images in {root}, 1 copies of others left out, 1 could not be had" in said
    assert kept_names(server, root) == {
        f"{p}x{i}.jpg": "B3" if p == i == 0 else f"B{p}" for p in range(6) for i in range(4)
    }
    assert pd.read_csv(failures_file(root))["url"].tolist() == [server.url("404/1x1.jpg")]
    # The table shrinks with the selection, the folder does not.
    assert call(few, root) == (12, [])
    assert server.requests.total() == before + 14
    assert len(pd.read_parquet(table_file(root))) == 12
    assert sum(1 for _ in root.glob("000/*.jpg")) == 24


def test_a_disk_that_fills_up_is_a_sentence_and_the_download_goes_on(
    server: ImageServer, tmp_path: Path
) -> None:
    chosen = selection(tmp_path / "s.parquet", rows_of(server))
    with small_disk(tmp_path / "disk", "80k") as disk:
        root = disk / "images_mean_50k"

        def main() -> None:
            call(chosen, root)

        said = stopped(main).splitlines()[-1]
        assert said.startswith(f"error: {disk}")
        assert "No space left on device: free some space and run the command again" in said
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert call(chosen, root) == (24, [])


def test_an_image_that_was_lost_or_damaged_is_fetched_to_where_it_was(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows with one content to where the first has it."""
    monkeypatch.setattr(image_store, "FOLDER_IMAGES", 1)
    root = tmp_path / "images_mean_50k"
    names = ["0x0.jpg", "1x0.jpg", "copy.jpg"]
    rows = [(f"B{n}", server.url(f"images/I/{name}"), 0.7) for n, name in enumerate(names)]
    chosen = selection(tmp_path / "s.parquet", rows)
    assert call(chosen, root) == (2, [])
    whole = kept_names(server, root)
    first, second = sorted(root.glob("*/*.jpg"))
    assert [path.parent.name for path in (first, second)] == ["000", "001"]
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    assert call(chosen, root) == (2, [])
    assert kept_names(server, root) == whole
    assert sorted(root.glob("*/*.jpg")) == [first, second]


def test_failures_that_may_pass_are_tried_again_on_request(
    server: ImageServer, tmp_path: Path
) -> None:
    root = tmp_path / "images_mean_50k"
    rows = [("B0", server.url(f"images/I/0x{i}.jpg"), 0.7) for i in range(3)]
    rows += [("B0", server.url("503/1x1.jpg"), 0.7), ("B0", server.url("404/1x2.jpg"), 0.7)]
    chosen = selection(tmp_path / "s.parquet", rows)
    assert sorted(call(chosen, root)[1]) == ["HTTP 404", "HTTP 503 (attempt 2 of 2)"]
    before = server.requests.total()
    assert call(chosen, root)[0] == 3
    assert server.requests.total() == before
    assert call(chosen, root, retry_failed=True) == (4, ["HTTP 404"])
    assert server.requests.total() == before + 1  # the one image, not its whole piece


@pytest.mark.parametrize("limit", [{"allow_private": False}, {"max_mb": 0.0001}])
def test_what_an_option_kept_out_is_tried_again_with_another(
    server: ImageServer, tmp_path: Path, limit: dict[str, float]
) -> None:
    root = tmp_path / "images_mean_50k"
    chosen = selection(tmp_path / "s.parquet", rows_of(server))
    narrow = Filling(replace(CONFIG, **limit), 24)  # type: ignore[arg-type]
    refused("--retry-failed tries again", download_images, [chosen], root, narrow)
    assert call(chosen, root, retry_failed=True) == (24, [])


def test_images_of_another_size_are_not_passed_off_as_the_size_asked_for(
    server: ImageServer, tmp_path: Path
) -> None:
    root = tmp_path / "images_mean_50k"
    chosen = selection(tmp_path / "s.parquet", rows_of(server))
    assert call(chosen, root) == (24, [])
    larger = Filling(replace(CONFIG, size_hint=900), 5)
    refused(f"{root} were asked for .* hint 500, not 900", download_images, [chosen], root, larger)
    for piece in (root / ".progress").iterdir():  # as earlier versions wrote it: any size
        write_snapshot(piece, pa.table(read_snapshot(piece).to_pydict()), "plan")
    assert len(download_images([chosen], root, larger)) == 24


def test_a_network_that_goes_down_stops_the_step_soon(server: ImageServer, tmp_path: Path) -> None:
    """Not only once the rest of the query has run its course."""
    root = tmp_path / "images_mean_50k"
    rows = [("A", server.url(f"down/{n}.jpg"), 0.7) for n in range(25)]
    rows += [("B", server.url(f"slow/0x0.jpg?{n:03d}"), 0.7) for n in range(2000)]
    chosen = selection(tmp_path / "s.parquet", rows)
    server.slow = 0.1
    how = Filling(replace(CONFIG, connections=8), 25)
    refused("is the network down", download_images, [chosen], root, how)
    assert not (root / ".progress" / "00000.photos").exists()
    assert sum(server.requests[path] for path in server.requests if "slow" in path) < 800
