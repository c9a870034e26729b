from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataset.dataset_creation_steps.engine import DownloadConfig
from dataset.dataset_creation_steps.mean_cosines import (
    MEANS,
    PairCounts,
    cut,
    draw_around,
    mean_cosines,
    threshold_name,
    typical_partners,
    write_means,
)
from dataset.dataset_creation_steps.snapshots import (
    IMAGES,
    snapshot_file,
    stoppable,
    write_snapshot,
)
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import ImageServer, running
from visual_search.common.errors import UserError
from visual_search.data.contact_sheet import CAPTION, CELL, GAP


def images(rows: list[tuple[str, str, list[float] | None]]) -> pa.Table:
    columns = {
        "asin": [asin for asin, _, _ in rows],
        "role": [role for _, role, _ in rows],
        "url": [f"u{n}" for n in range(len(rows))],
        "vector": [vector for _, _, vector in rows],
        "reason": [None if vector else "gone" for _, _, vector in rows],
    }
    return pa.table(columns, schema=IMAGES)


def test_a_case_by_hand() -> None:
    table = images(
        [
            ("a", "product", [1.0, 0.0]),
            ("a", "product", [0.0, 1.0]),
            ("a", "product", None),
            ("a", "user", [0.6, 0.8]),
            ("a", "user", [1.0, 0.0]),
            ("b", "product", [1.0, 0.0]),  # no buyer's photo
            ("c", "user", [1.0, 0.0]),  # none of the shop's
            ("d", "product", [0.0, 1.0]),
            ("d", "user", [0.0, -1.0]),
        ]
    )
    found = PairCounts()
    means = mean_cosines(table, found).to_pylist()
    assert [(row["url"], round(row["mean_cosine"], 6), row["pairs"]) for row in means] == [
        ("u0", 0.8, 2),
        ("u1", 0.4, 2),
        ("u3", 0.7, 2),
        ("u4", 0.5, 2),
        ("u7", -1.0, 1),
        ("u8", -1.0, 1),
    ]
    assert found.counts == {
        "photos without an embedding": 1,
        "photos with an embedding": 8,
        "products without a counterpart": 2,
        "products compared": 2,
        "pairs": 5,
    }
    assert found.histogram.sum() == 5


def test_cut_is_above_and_drops_images_left_alone() -> None:
    columns = [["a", "a", "b", "b", "b"], ["product", "user"] * 2 + ["user"], list("12345")]
    means = pa.table([*columns, [0.5, 0.7, 0.51, 0.6, 0.4], [1] * 5], schema=MEANS)
    assert cut(means, 0.5, 2)["url"].to_pylist() == ["3", "4"]
    assert cut(means, 0.5, 1)["url"].to_pylist() == ["2", "3", "4"]
    assert cut(means, 0.9, 1).num_rows == 0


def test_the_table_is_made_once_for_the_same_snapshots(tmp_path: Path) -> None:
    paths = [snapshot_file(tmp_path / "x.parquet", number) for number in range(2)]
    for number, path in enumerate(paths):
        rows = [(f"p{number}", role, [1.0, 0.0]) for role in ("product", "user")]
        write_snapshot(path, images(list(rows)), "source")
    output = tmp_path / "means.parquet"
    first = write_means(paths, output)
    assert first is not None
    assert first.counts["pairs"] == 2
    assert write_means(paths, output) is None
    others = images([("q", "product", [1.0, 0.0]), ("q", "user", [0.0, 1.0])])
    write_snapshot(paths[1], others, "source")
    again = write_means(paths, output)
    assert again is not None
    assert again.counts["pairs"] == 2


def test_snapshots_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    paths = [snapshot_file(tmp_path / "x.parquet", number) for number in range(3)]
    for number, path in enumerate(paths):
        rows = [(f"p{number}", role, [1.0, 0.0]) for role in ("product", "user")]
        write_snapshot(path, images(list(rows)), "old" if number == 2 else "new")
    with pytest.raises(UserError, match=r"_00000.*_00002.* different inputs or models: .*overwr"):
        write_means(paths, tmp_path / "means.parquet")
    assert not (tmp_path / "means.parquet").exists()
    assert write_means(paths[:2], tmp_path / "means.parquet") is not None


def test_a_snapshot_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet_00000.embeddings"
    path.write_bytes(b"not arrow")
    with pytest.raises(UserError, match=r"x\.parquet_00000\.embeddings is not a readable snapshot"):
        write_means([path], tmp_path / "means.parquet")


@pytest.mark.parametrize(
    ("threshold", "name"), [(0.5, "05"), (0.6, "06"), (0.55, "055"), (0.0, "00"), (-0.5, "minus05")]
)
def test_names_of_thresholds(threshold: float, name: str) -> None:
    assert threshold_name(threshold) == name


CONFIG = DownloadConfig(size_hint=0, allow_private=True, rate=0, attempts=1, timeout=5)


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


def test_kept_images_stand_in_green_above_dropped_ones_in_red(tmp_path: Path) -> None:
    given_up = stoppable(iter([pa.record_batch({"a": [1]})]))
    next(given_up)
    given_up.close()  # a query that nobody waits for any more stops its own stages alone
    images = {f"{p}x{i}.jpg": jpeg(p, i) for p in range(6) for i in range(2)}
    with running(ImageServer(images)) as server:
        rows = [
            (f"B{p}", role, server.url(f"images/I/{p}x{i}.jpg"), 0.1 * p + 0.2)
            for p in range(6)
            for i, role in enumerate(("product", "user"))
        ]
        rows[0] = (*rows[0][:2], server.url("404/gone.jpg"), rows[0][3])
        draw_around(table(rows), 0.45, 9, CONFIG, tmp_path / "X_mean_045.jpg")
        assert server.requests.total() == 2 * len(rows)  # each image, and as a partner
    sheet = np.asarray(Image.open(tmp_path / "X_mean_045.jpg")).astype(int)
    height = CELL + CAPTION + GAP
    # Above are three products, each image with its partner: 12 images, 8 of them in a row.
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
