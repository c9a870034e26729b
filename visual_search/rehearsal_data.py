"""The data folder as the evaluator shows it: tables without products, photos as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from visual_search.capacity import Workload
from visual_search.evaluate import DevSet
from visual_search.tables import BOX_COLUMNS, read_table

TABLES = ("gallery.csv", "queries.csv")

# Side of a drawn photo in pixels: next to nothing to decode, yet each is another one.
DRAWN_SIDE = 16


@dataclass(frozen=True)
class RealPhotos:
    """A development set, or a sample of it."""

    folder: Path
    dev_set: DevSet
    sample: int | None = None
    """Photos, evenly spread; None takes all."""

    @property
    def workload(self) -> Workload:
        """How much there is to rank."""
        if self.sample is None:
            return Workload(len(self.dev_set.queries), len(self.dev_set.gallery))
        gallery, queries = map(len, sample_rows(self.dev_set, self.sample).values())
        return Workload(queries, gallery)

    def show(self, to: Path) -> tuple[Path, ...]:
        """Fill the new folder `to`; returns the folders that must stay as they are."""
        rows = None if self.sample is None else sample_rows(self.dev_set, self.sample)
        return show_folder(self.folder, to, rows)


@dataclass(frozen=True)
class DrawnPhotos:
    """Tiny photos of nothing, as many as are asked for."""

    workload: Workload

    def show(self, to: Path) -> tuple[Path, ...]:
        """Fill the new folder `to`; returns the folders that must stay as they are."""
        return draw_folder(to, self.workload)


def show_folder(
    folder: Path, to: Path, rows: Mapping[str, np.ndarray] | None = None
) -> tuple[Path, ...]:
    """Fill the new folder `to` with the tables less `product_id`, and links to all else.

    Args:
        folder: the data folder.
        to: where to put the view of it.
        rows: for a table by name, which of its rows to keep.

    Returns:
        The folders that must stay as they are while the view is in use.

    Raises:
        UserError: when a table is missing or unreadable.
    """
    to.mkdir(parents=True)
    kept = {to.resolve(), folder.resolve()}
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".csv":
            table = read_table(entry, [])
            if rows is not None and entry.name in rows:
                table = table.iloc[rows[entry.name]]
            table.drop(columns="product_id", errors="ignore").to_csv(to / entry.name, index=False)
            continue
        (to / entry.name).symlink_to(entry.resolve())
        if entry.is_dir() and folder.resolve() not in entry.resolve().parents:
            kept.add(entry.resolve())
    return tuple(sorted(kept))


def sample_rows(dev_set: DevSet, images: int) -> dict[str, np.ndarray]:
    """Rows of both tables, evenly spread, `images` in all where there are as many."""
    whole = Workload(len(dev_set.queries), len(dev_set.gallery))
    share = min(images / whole.images, 1.0)
    counts = (whole.gallery, whole.queries)
    return {
        name: np.linspace(0, count - 1, max(round(count * share), 1)).round().astype(int)
        for name, count in zip(TABLES, counts, strict=True)
    }


def draw_folder(to: Path, workload: Workload) -> tuple[Path, ...]:
    """Fill the new folder `to` with as many rows as the hidden test has, of tiny drawn photos.

    No two photos are alike, so that a ranking meets no more ties than real photos give it.

    Returns:
        The folders that must stay as they are.
    """
    rng = np.random.default_rng(0)
    for side, count in (("gallery", workload.gallery), ("queries", workload.queries)):
        (to / side).mkdir(parents=True)
        prefix = "seller" if side == "gallery" else "user"
        columns: dict[str, object] = {
            f"{prefix}_img_id": np.arange(count),
            "img_path": [f"{side}/{row}.bmp" for row in range(count)],
        }
        if side == "queries":
            box = dict(zip(BOX_COLUMNS, (0, 0, DRAWN_SIDE, DRAWN_SIDE), strict=True))
            columns |= {name: np.full(count, value) for name, value in box.items()}
        pd.DataFrame(columns).to_csv(to / f"{side}.csv", index=False)
        for row in range(count):
            pixels = rng.integers(0, 256, (DRAWN_SIDE, DRAWN_SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(to / side / f"{row}.bmp")
    return (to.resolve(),)
