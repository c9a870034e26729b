"""Step 2 in this process: what is gone on from, and what is made anew."""

import contextlib
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest

from dataset.dataset_creation_steps import snapshots
from dataset.dataset_creation_steps.engine import DownloadConfig, Filling, start_engine
from dataset.dataset_creation_steps.extract_features import extract
from dataset.dataset_creation_steps.snapshots import (
    read_snapshot,
    snapshot_file,
    snapshot_files,
    source_of,
)
from tests.commands import refused
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import ImageServer, running
from visual_search.model.checkpoint import load_checkpoint, save_checkpoint

CONFIG = DownloadConfig(size_hint=0, allow_private=True, rate=0, attempts=2, timeout=5)
PRODUCTS = 6


@pytest.fixture
def server() -> Iterator[ImageServer]:
    start_engine("native")
    images = {f"{p}x{i}.jpg": jpeg(p, i) for p in range(PRODUCTS) for i in range(2)}
    with running(ImageServer(images)) as found:
        yield found


@pytest.fixture
def pairs(server: ImageServer, tmp_path: Path) -> Path:
    """A table of step 1, with an image of the shop and one of a buyer for each product."""
    sides = [[[server.url(f"images/I/{p}x{i}.jpg")] for p in range(PRODUCTS)] for i in range(2)]
    columns = {
        "asin": [f"B{p}" for p in range(PRODUCTS)],
        "title": ["t"] * PRODUCTS,
        "product_images": sides[0],
        "user_images": sides[1],
    }
    path = tmp_path / "X.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


@pytest.fixture
def other_run(model_run: Path, tmp_path: Path) -> Path:
    """The same model with other weights."""
    found = load_checkpoint(model_run)
    state = {name: tensor * 1.5 for name, tensor in found.state.items()}
    save_checkpoint(tmp_path / "other", found.architecture, state, {}, {"run": "other"})
    return tmp_path / "other"


def call(pairs: Path, run: Path, products: int = 2, **more: bool) -> str:
    """What the step says in the end."""
    overwrite = more.pop("overwrite", False)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        extract(pairs, run, Filling(CONFIG, products, **more), overwrite=overwrite)
    return said.getvalue().splitlines()[-1]


def asins(pairs: Path) -> list[str]:
    tables = [read_snapshot(path) for path in snapshot_files(pairs).values()]
    return [asin for table in tables for asin in table["asin"].to_pylist()[::2]]


def test_overwriting_leaves_no_snapshot_of_another_model(
    server: ImageServer, pairs: Path, model_run: Path, other_run: Path
) -> None:
    assert "3 snapshots, 0 of them" in call(pairs, model_run)
    refused("from another input or another model: start with --overw", call, pairs, other_run)
    said = call(pairs, other_run, 3, overwrite=True)
    # The third snapshot, with more products, was of the call before.
    assert said.startswith(f"{2 * PRODUCTS} images embedded, 0 not")
    assert said.endswith("2 snapshots, 0 of them from an earlier call")
    assert asins(pairs) == [f"B{p}" for p in range(PRODUCTS)]
    assert len({source_of(path) for path in snapshot_files(pairs).values()}) == 1
    before = server.requests.total()
    for overwrite in (True, False):
        assert "2 snapshots, 2 of them" in call(pairs, other_run, 3, overwrite=overwrite)
    assert server.requests.total() == before


def test_overwriting_goes_on_where_it_was_killed(
    pairs: Path, model_run: Path, other_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(pairs, model_run)
    write = snapshots.write_snapshot

    def dies(path: Path, *given: object) -> None:
        write(path, *given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "write_snapshot", dies)
    with pytest.raises(KeyboardInterrupt):
        call(pairs, other_run, overwrite=True)
    monkeypatch.undo()
    (path,) = snapshot_files(pairs).values()
    made = path.stat().st_mtime_ns
    assert "1 of them" in call(pairs, other_run, overwrite=True)
    assert path.stat().st_mtime_ns == made
    assert asins(pairs) == [f"B{p}" for p in range(PRODUCTS)]
    assert snapshot_file(pairs, 2).is_file()


@pytest.mark.usefixtures("impatient")
def test_failures_that_may_pass_are_tried_again_on_request(
    server: ImageServer, pairs: Path, model_run: Path
) -> None:
    table = pd.read_parquet(pairs)
    table["user_images"] = [
        *table["user_images"][:3],
        [server.url("503/3x1.jpg")],
        *table["user_images"][4:],
    ]
    table.to_parquet(pairs)
    assert f"{2 * PRODUCTS - 1} images embedded, 1 not" in call(pairs, model_run)
    before = server.requests.total()
    said = call(pairs, model_run, retry_failed=True)
    assert said.startswith(f"{2 * PRODUCTS} images embedded, 0 not")
    assert "2 of them" in said
    assert server.requests.total() == before + 1  # the one image, not its whole piece
    tables = [read_snapshot(path) for path in snapshot_files(pairs).values()]
    urls = [url for table in tables for url in table["url"].to_pylist()]
    assert sorted(urls) == sorted(chain(*table["product_images"], *table["user_images"]))
