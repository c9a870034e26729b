from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.dataset_creation_steps.mean_cosines import (
    MEANS,
    cut,
    mean_cosines,
    threshold_name,
    write_means,
)
from dataset.dataset_creation_steps.snapshots import IMAGES, snapshot_file, write_snapshot
from tests.commands import refused


def images(rows: list[tuple[str, str, list[float] | None]]) -> pa.Table:
    columns = {
        "asin": [asin for asin, _, _ in rows],
        "role": [role for _, role, _ in rows],
        "url": [f"u{n}" for n in range(len(rows))],
        "vector": [vector for _, _, vector in rows],
        "reason": [None if vector else "gone" for _, _, vector in rows],
    }
    return pa.table(columns, schema=IMAGES)


def snapshots(folder: Path, *sources: str) -> list[Path]:
    """One for each source, with a product of two equal images."""
    paths = [snapshot_file(folder / "x.parquet", number) for number in range(len(sources))]
    for path, source in zip(paths, sources, strict=True):
        rows = images([("p", role, [1.0, 0.0]) for role in ("product", "user")])
        write_snapshot(path, rows, source)
    return paths


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
    means = mean_cosines(table).to_pylist()
    assert [(row["url"], round(row["mean_cosine"], 6), row["pairs"]) for row in means] == [
        ("u0", 0.8, 2),
        ("u1", 0.4, 2),
        ("u3", 0.7, 2),
        ("u4", 0.5, 2),
        ("u7", -1.0, 1),
        ("u8", -1.0, 1),
    ]


def test_cut_is_above_and_drops_images_left_alone() -> None:
    columns = [["a", "a", "b", "b", "b"], ["product", "user"] * 2 + ["user"], list("12345")]
    means = pa.table([*columns, [0.5, 0.7, 0.51, 0.6, 0.4], [1] * 5], schema=MEANS)
    assert cut(means, 0.5, 2)["url"].to_pylist() == ["3", "4"]
    assert cut(means, 0.5, 1)["url"].to_pylist() == ["2", "3", "4"]
    assert cut(means, 0.9, 1).num_rows == 0


def test_the_table_is_made_once_for_the_same_snapshots(tmp_path: Path) -> None:
    paths = snapshots(tmp_path, "source", "source")
    output = tmp_path / "means.parquet"
    write_means(paths, output)
    made = output.stat().st_mtime_ns
    write_means(paths, output)
    assert output.stat().st_mtime_ns == made
    others = images([("q", "product", [1.0, 0.0]), ("q", "user", [0.0, 1.0])])
    write_snapshot(paths[1], others, "source")
    write_means(paths, output)
    assert pq.read_table(output)["mean_cosine"].to_pylist() == [1.0, 1.0, 0.0, 0.0]


def test_snapshots_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    paths, output = snapshots(tmp_path, "new", "new", "old"), tmp_path / "means.parquet"
    words = r"_00000.*_00002.* different inputs or models: .*overwr"
    refused(words, write_means, paths, output)
    assert not output.exists()
    write_means(paths[:2], output)
    assert output.exists()


def test_a_snapshot_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet_00000.embeddings"
    path.write_bytes(b"not arrow")
    words = r"x\.parquet_00000\.embeddings is not a readable snapshot"
    refused(words, write_means, [path], tmp_path / "means.parquet")


@pytest.mark.parametrize(
    ("threshold", "name"), [(0.5, "05"), (0.6, "06"), (0.55, "055"), (0.0, "00"), (-0.5, "minus05")]
)
def test_names_of_thresholds(threshold: float, name: str) -> None:
    assert threshold_name(threshold) == name
