"""Every kind of file that is written, on a disk that refuses: a sentence, and nothing left."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from accelerate import PartialState
from matplotlib.figure import Figure

from dataset.dataset_creation_steps.image_store import store_image
from dataset.dataset_creation_steps.snapshots import write_snapshot
from dataset.folder_info import describe_folder
from tests.commands import inside
from tests.conftest import draw_product, export_tiny
from tests.disks import REFUSALS
from visual_search.common.files import write_csv, write_figure, write_json, write_text
from visual_search.common.page import Section, write_page
from visual_search.common.run_folder import RunFolder, save_state
from visual_search.data.dataset_info import InfoRow, write_dataset_info
from visual_search.model.checkpoint import save_weights
from visual_search.ranking.store import _write as write_piece
from visual_search.text.pairs import SCHEMA, write_pairs

LARGE = torch.rand(30_000, 10, generator=torch.Generator().manual_seed(0))


def an_image(folder: Path) -> Path:
    """A jpeg beside the folder that refuses, since it is to be read."""
    path = folder.parent / "photos" / "0" / "a.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_product(1, 1).save(path)
    return path


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda to: write_text(to / "a.md", "a" * 9000),
    "json": lambda to: write_json(to / "sub" / "a.json", list(range(9000))),
    "csv": lambda to: write_csv(to / "a.csv", pd.DataFrame({"a": range(9000)})),
    "figure": lambda to: write_figure(to / "a.png", Figure()),
    "page": lambda to: write_page(to / "a.html", "a", [Section("a")]),
    "table": lambda to: write_dataset_info(to / "a.csv", [InfoRow("a.jpg", "a")] * 3000),
    "tables of a folder": lambda to: describe_folder(an_image(to).parents[1], to),
    "image": lambda to: store_image(to, None, an_image(to).read_bytes()),
    "snapshot": lambda to: write_snapshot(to / "a", pa.table({"a": LARGE[:, 0].numpy()}), "a"),
    "parquet": lambda to: write_pairs(to / "a.parquet", SCHEMA.empty_table()),
    "embeddings": lambda to: write_piece(to, [b"a" * 32], LARGE, [""]),
    "weights": lambda to: save_weights(to / "a.safetensors", {"a": LARGE}),
    "state": lambda to: save_state(to, 1, {"a": LARGE}, {}, PartialState(cpu=True)),
    "export": lambda to: export_tiny(to, seed=0),
    "a run's first file": lambda to: RunFolder(to, "a").start("x: 1\n"),
}


KEPT = {"filled", ".dataset_info.csv.sizes.journal"}
"""What fills the disk, and what the same command goes on from."""


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing(
    writer: str, refusal: str, tmp_path: Path
) -> None:
    make, words = REFUSALS[refusal]
    with make(tmp_path / "target") as folder:

        def main() -> None:
            WRITERS[writer](folder)

        done = inside(main)
        left = {path.name for path in folder.rglob("*") if path.is_file()} - KEPT
    assert done.returncode == 2, done.stdout
    said = [line for line in done.stderr.splitlines() if line and "img/s" not in line]
    assert len(said) == 1
    assert said[0].startswith(f"error: {folder}")
    assert words in said[0]
    assert not left
