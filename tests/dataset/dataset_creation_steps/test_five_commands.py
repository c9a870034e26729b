"""All five commands, as a user calls them, against a loopback server with faults."""

import glob
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dataset.dataset_creation_steps import (
    analyse_pairs,
    download_images,
    extract_features,
    get_pairs,
    prepare_training_set,
    run,
    snapshots,
)
from tests.commands import inside, ran, told
from tests.conftest import csv_rows
from tests.dataset.dataset_creation_steps.image_server import ImageServer, running
from tests.dataset.dataset_creation_steps.small_amazon import (
    PASSING,
    QUICK_FAULTS,
    Truth,
    embedded,
    expected_csv,
    make_images,
    write_files,
)

PRODUCTS = 24
STEPS = "dataset/dataset_creation_steps"
DOWNLOAD = ["--allow-private", "--timeout", "9", "--attempts", "3", "--rate", "0"]


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with running(ImageServer(make_images(PRODUCTS))) as found:
        found.slow = 5.0
        yield found


def check(folder: Path, truth: Truth, server: ImageServer, model: Path) -> None:
    vectors = embedded(server.images, model, folder / "reference")
    for threshold, name in ((0.5, "05"), (0.6, "06")):
        expected = expected_csv(truth, server.images, vectors, threshold)
        assert len(truth.product) // 3 <= len(expected) < 3 * len(truth.product)
        found = csv_rows(folder / f"amazon_review_mean_{name}_full_images.csv")
        assert found == [{"image_path": path, "label": label} for path, label in expected]
        for path, _ in expected:
            assert (folder / "images_mean_50k" / path).read_bytes() in server.images.values()


@pytest.mark.usefixtures("impatient")
def test_five_commands(server: ImageServer, model_run: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / "reviews [2018] {v2}"  # no pattern, whoever opens it
    tmp_path.mkdir()
    truth = write_files(tmp_path, server, PRODUCTS, QUICK_FAULTS)
    pairs = tmp_path / "X.parquet"

    said = told(get_pairs.main, tmp_path / "X.json.gz", "--meta", tmp_path / "meta_X.json")
    assert f"next: python {STEPS}/extract_features.py '{pairs}'" in said
    summary = json.loads((tmp_path / "X.parquet.summary.json").read_text())
    assert summary["reviews"]["broken lines"] == 4  # one of them is where the file was cut
    assert summary["reviews"]["gzip cut short or damaged"] == 1
    assert summary["reviews"]["rows without asin"] == 1
    assert summary["reviews"]["image fields that are a string"] == 1
    assert summary["reviews"]["image fields of a wrong type"] == 1
    assert summary["reviews"]["image entries that are no http(s) address"] == 3
    assert summary["products"]["junk rows (getTime in the title)"] == PRODUCTS
    assert summary["products"]["duplicate asins, merged"] == PRODUCTS // 4
    table = pd.read_parquet(pairs).set_index("asin")
    for column, side in (("user_images", truth.user), ("product_images", truth.product)):
        found = {asin: set(urls) for asin, urls in table[column].items()}
        assert found == {asin: set(urls) for asin, urls in side.items()}

    extract = [pairs, "--run", model_run, *DOWNLOAD, "--products", 10]
    said = told(extract_features.main, *extract)
    assert f"{len(QUICK_FAULTS) - len(PASSING)} not" in said
    assert sorted(path.name for path in tmp_path.glob("*.embeddings")) == [
        f"X.parquet_{n:05d}.embeddings" for n in range(3)
    ]
    failures = pd.read_csv(tmp_path / "X.parquet.failures.csv")
    assert set(failures["url"]) == {
        url for urls in truth.user.values() for url, name in urls.items() if name is None
    }
    redirected = failures[failures["url"].str.contains("/private/")]
    assert redirected["reason"].item() == "refused: not a public address"
    assert any("_SL500_" in path for path in server.requests)
    before = server.requests.total()
    assert "3 of them from an earlier call" in told(extract_features.main, *extract)
    assert server.requests.total() == before

    thresholds = ["--threshold", "0.6", "0.5"]
    told(analyse_pairs.main, pairs, f"{glob.escape(str(pairs))}_*.embeddings", *thresholds)
    assert (tmp_path / "X_mean_cosines.png").stat().st_size > 5000

    store = tmp_path / "images_mean_50k"
    told(download_images.main, tmp_path / "X_mean_05.parquet", "--output", store, *DOWNLOAD)
    said = told(prepare_training_set.main, f"{store}.parquet", "--evaluation")
    assert "not checked for leaks" in said
    check(tmp_path, truth, server, model_run)


def job(folder: Path, model: Path, *more: str) -> list[str]:
    """The options of all steps, in small pieces."""
    return [
        *("--config", "config/amazon_pairs.yml", "--folder", str(folder), "--categories", "[X]"),
        *("--run", str(model), "--images", str(folder / "images_mean_50k"), "--evaluation", "[]"),
        *("--snapshot_products", "3", "--piece_photos", "10"),
        *("--download.allow_private", "true", "--download.timeout", "2"),
        *("--download.attempts", "3", "--download.rate", "0", "--download.connections", "4"),
        *more,
    ]


@contextmanager
def stopped_at(numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C once so many pieces are written, counted over all calls within."""
    write, left, written = snapshots.write_snapshot, list(numbers), 0

    def stops(*given: Any) -> None:
        nonlocal written
        write(*given)
        written += 1
        if left and written == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write_snapshot", stops)
        yield
    assert not left


@pytest.mark.usefixtures("impatient")
def test_stopped_in_its_steps_the_result_is_the_same(
    model_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = job(tmp_path, model_run, "--download.timeout", "9", "--download.connections", "16")
    # Of three snapshots and some pieces of images.
    with running(ImageServer(make_images(8))) as server, stopped_at([2, 4], monkeypatch):
        truth = write_files(tmp_path, server, 8, QUICK_FAULTS)
        assert [inside(run.main, *options).returncode for _ in range(3)] == [130, 130, 0]
    check(tmp_path, truth, server, model_run)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_the_same_on_a_ray_cluster_of_two_workers(
    project: Path, environment: dict[str, str], server: ImageServer, model_run: Path, tmp_path: Path
) -> None:
    truth = write_files(tmp_path, server, PRODUCTS)
    with two_workers() as address:
        arguments = job(tmp_path, model_run, "--runner", "ray", "--ray_address", address)
        done = ran(sys.executable, "-m", run.__name__, *arguments, cwd=project, env=environment)
    assert done.returncode == 0, done.stderr
    check(tmp_path, truth, server, model_run)


@contextmanager
def two_workers() -> Iterator[str]:
    """The address of a cluster of Ray."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_the_challenge_winner_s_commands_typed_in_their_folder(
    project: Path, model_run: Path, tmp_path: Path
) -> None:
    """A checkout of its own, in whose folder of scripts the commands are typed."""
    root = tmp_path / "checkout"
    skipped = shutil.ignore_patterns("demo", "__pycache__", "real")
    for name in ("dataset", "visual_search"):
        shutil.copytree(project / name, root / name, ignore=skipped)
    shutil.copytree(model_run, root / "runs" / "my_arcface_2nd" / "best")
    steps = root / "dataset" / "dataset_creation_steps"
    with running(ImageServer(make_images(8))) as server:
        write_files(steps, server, 8)
        for name in ("X.json.gz", "meta_X.json"):
            (steps / name).rename(steps / name.replace("X", "Office_Products"))
        local = "--allow-private --timeout 2 --attempts 3 --rate 0"
        said = ""
        for line in (
            "python get_pairs.py Office_Products.json",
            f"python extract_features.py Office_Products.parquet {local}",
            "python analyse_pairs.py Office_Products.parquet "
            '"Office_Products.parquet_*.embeddings"',
            f"python download_images.py {local}",
            "python prepare_training_set.py",
        ):
            environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            done = ran(sys.executable, *shlex.split(line)[1:], cwd=steps, env=environment)
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout
    assert f"the model that compares is {root / 'runs' / 'my_arcface_2nd'}" in said
    assert (root / "dataset" / "amazon_review_mean_05_full_images.csv").is_file()
