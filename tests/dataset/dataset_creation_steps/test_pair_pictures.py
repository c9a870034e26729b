from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from dataset.dataset_creation_steps.mean_cosines import MEANS, draw_around, typical_partners
from dataset.dataset_creation_steps.photos import stoppable
from dataset.downloads import DownloadLimits
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.photo_server import PhotoServer, running
from visual_search.contact_sheet import CAPTION, CELL, GAP

LIMITS = DownloadLimits(allow_private=True, rate=0, attempts=1, timeout=5)


def table(rows: list[tuple[str, str, str, float]]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table([*columns, [1] * len(rows)], schema=MEANS)


def test_partners_are_what_a_search_of_the_whole_table_finds() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"a{n}", role, f"{n}{role}0", 0.3) for n in range(20) for role in ("product", "user")]
    rows += [
        (f"a{rng.integers(20)}", str(rng.choice(["product", "user"])), f"x{n}", rng.random())
        for n in range(200)
    ]
    means = table(rows)
    shown = means.take(pa.array(rng.choice(len(rows), 30, replace=False))).to_pylist()
    expected = [
        max(
            (row for row in rows if row[0] == one["asin"] and row[1] != one["role"]),
            key=lambda row: row[3],
        )[2]
        for one in shown
    ]
    assert typical_partners(means, shown) == expected


def test_kept_photos_stand_in_green_above_dropped_ones_in_red(tmp_path: Path) -> None:
    given_up = stoppable(iter([pa.record_batch({"a": [1]})]))
    next(given_up)
    given_up.close()  # a query that nobody waits for any more stops its own stages alone
    photos = {f"{p}x{i}.jpg": jpeg(p, i) for p in range(6) for i in range(2)}
    with running(PhotoServer(photos)) as server:
        rows = [
            (f"B{p}", role, server.url(f"images/I/{p}x{i}.jpg"), 0.1 * p + 0.2)
            for p in range(6)
            for i, role in enumerate(("product", "user"))
        ]
        rows[0] = (*rows[0][:2], server.url("404/gone.jpg"), rows[0][3])
        draw_around(table(rows), 0.45, 9, LIMITS, 0, tmp_path / "X_mean_045.jpg")
        assert server.requests.total() == 2 * len(rows)  # each photo, and as a partner
    sheet = np.asarray(Image.open(tmp_path / "X_mean_045.jpg")).astype(int)
    height = CELL + CAPTION + GAP
    # Above are three products, each photo with its partner: 12 photos, 8 of them in a row.
    assert sheet.shape[:2] == (4 * height + GAP, 8 * (CELL + GAP) + GAP)
    frames = [
        sheet[GAP + row * height + 1, GAP + column * (CELL + GAP) + 20]
        for row, column in ((0, 0), (0, 7), (1, 3), (2, 0), (2, 7), (3, 3))
    ]
    for number, frame in enumerate(frames):
        shown = 1 if number < 3 else 0  # green or red
        assert frame[shown] > 100
        assert max(frame[1 - shown], frame[2]) < 90
    assert sheet[GAP + height + 75, GAP + 4 * (CELL + GAP) + 75].min() > 240
