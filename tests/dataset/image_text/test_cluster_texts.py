"""The three commands on the demo's catalogue, and an assignment that is stopped midway."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset.image_text import cluster_texts
from dataset.image_text import clusters as text_clusters
from dataset.image_text.catalogue_pairs import catalogue_pairs
from dataset.image_text.cluster_texts import assign, main
from dataset.image_text.clusters import TextClusters
from tests.commands import stopped, told
from tests.conftest import PROJECT
from visual_search.text.pairs import SCHEMA, read_pairs, write_pairs


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the demo's pairs, and clusters beside them."""
    pairs = tmp_path_factory.mktemp("demo") / "demo.pairs.parquet"
    write_pairs(pairs, catalogue_pairs(PROJECT / "dataset" / "demo").slice(0, 240))
    yaml = PROJECT / "config/image_text/clusters.yml"
    said = told(main, "fit", pairs, "--config", yaml, "--clusters", 6)
    assert "6 clusters of" in said
    assert f"next: python dataset/image_text/cluster_texts.py assign {pairs}" in said
    return pairs


def test_fit_writes_clusters_a_report_and_a_map(demo: Path) -> None:
    folder = demo.with_name("demo.clusters")
    report = json.loads((folder / "report.json").read_text())
    assert len(report["names"]) == len(report["sizes"]) == 6
    with Image.open(folder / "map.png") as picture:
        assert picture.size == (1100, 825)
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert report["names"][0] in page
    # What tests is not clustered.
    texts = {text for row in read_pairs(demo, "train").texts for text in row}
    assert {example for row in report["examples"] for example in row} <= texts | {
        " ".join(words[k : k + 3])
        for words in (text.split() for text in texts)
        for k in range(max(len(words) - 2, 0))
    }


def test_a_query_is_cleaned_before_it_is_compared(demo: Path, tmp_path: Path) -> None:
    said = told(main, "predict", demo.with_name("demo.clusters"), "СТУЛЬЯ!", "стул")
    first, second = (line.split("\t") for line in said.splitlines())
    assert first == [*second[:2], "СТУЛЬЯ!"]
    assert "no readable clusters" in stopped(main, "assign", demo, "--clusters", tmp_path)


def test_assigned_are_the_cluster_of_each_query_and_of_their_mean(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pq.read_table(demo).slice(0, 12).to_pylist()
    for row, other in zip(source[:5], source[5:10], strict=True):
        for column in ("queries", "texts", "language"):
            row[column] += other[column]
    pairs, output = tmp_path / "p.parquet", tmp_path / "clustered.parquet"
    write_pairs(pairs, pa.Table.from_pylist(source, schema=SCHEMA))
    folder = demo.with_name("demo.clusters")
    monkeypatch.setattr(cluster_texts, "PIECE_IMAGES", 7)
    said = told(main, "assign", pairs, "--clusters", folder, "--output", output)
    clusters = TextClusters.load(folder)
    table = read_pairs(output)
    assert table.clusters is not None
    of_queries = pq.read_table(output)["clusters"].to_pylist()
    sizes = np.bincount(table.clusters, minlength=6).tolist()
    assert f"images of clusters 0, 1, …: {', '.join(map(str, sizes))}" in said
    for row in range(12):
        vectors = clusters.encoder.encode(table.texts[row])
        assert of_queries[row] == clusters.predict_vectors(vectors).tolist()
        mean = vectors.mean(axis=0, keepdims=True)
        assert table.clusters[row] == clusters.predict_vectors(mean)[0]
    # Again, onto itself: the same.
    assign(output, folder)
    assert read_pairs(output).clusters.tolist() == table.clusters.tolist()  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clustered.parquet", "p.parquet"]


def test_a_stopped_assignment_goes_on(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = demo.with_name("demo.clusters"), tmp_path / "out.parquet"
    done: list[int] = []
    whole = text_clusters.clustered

    def clustered(table: pa.Table, clusters: TextClusters) -> pa.Table:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(table.num_rows)
        return whole(table, clusters)

    monkeypatch.setattr(text_clusters, "clustered", clustered)
    monkeypatch.setattr(cluster_texts, "PIECE_IMAGES", 90)
    with pytest.raises(KeyboardInterrupt):
        assign(demo, folder, output)
    assert not output.exists()
    done[:] = [-1]
    assign(demo, folder, output)
    assert done == [-1, 240 - 180]
    assert pq.read_table(output).select(SCHEMA.names) == pq.read_table(demo)
