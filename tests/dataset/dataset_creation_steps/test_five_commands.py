"""All five commands, as a user calls them, against a loopback server with faults."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.dataset.dataset_creation_steps.photo_server import PhotoServer, running
from tests.dataset.dataset_creation_steps.small_amazon import (
    FAULTS,
    PASSING,
    Truth,
    expected_csv,
    make_photos,
    write_files,
)

PRODUCTS = 24
STEPS = "dataset/dataset_creation_steps"
DOWNLOAD = ["--allow-private", "--timeout", "2", "--attempts", "3", "--rate", "0"]


@pytest.fixture
def server() -> Iterator[PhotoServer]:
    with running(PhotoServer(make_photos(PRODUCTS))) as found:
        found.slow = 5.0
        yield found


@pytest.fixture
def command(project: Path, environment: dict[str, str]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as handle:
        return [tuple(row) for row in csv.reader(handle)]


def check(folder: Path, truth: Truth, server: PhotoServer, run: Path) -> None:
    for threshold, name in ((0.5, "05"), (0.6, "06")):
        work = folder / f"reference_{name}"
        expected = expected_csv(truth, server.photos, run, work, threshold, 0.5)
        assert 10 <= len(expected) < 3 * PRODUCTS
        found = rows(folder / f"amazon_review_mean_{name}_full_images.csv")
        assert found == [("image_path", "label"), *expected]
        for path, _ in expected:
            assert (folder / "images_mean_50k" / path).read_bytes() in server.photos.values()


def test_five_commands(
    command: Callable[..., str], server: PhotoServer, model_run: Path, tmp_path: Path
) -> None:
    truth = write_files(tmp_path, server, PRODUCTS)
    pairs = tmp_path / "X.parquet"

    said = command(
        f"{STEPS}/get_pairs.py", tmp_path / "X.json.gz", "--meta", tmp_path / "meta_X.json"
    )
    assert f"next: python {STEPS}/extract_features.py {pairs}" in said
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
    assert {asin: set(urls) for asin, urls in table["user_images"].items()} == {
        asin: set(urls) for asin, urls in truth.user.items()
    }
    assert {asin: set(urls) for asin, urls in table["product_images"].items()} == {
        asin: set(urls) for asin, urls in truth.product.items()
    }

    extract = [f"{STEPS}/extract_features.py", pairs, "--run", model_run, *DOWNLOAD]
    said = command(*extract, "--products", 10)
    assert f"{len(FAULTS) - len(PASSING)} not" in said
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
    assert "3 of them from an earlier call" in command(*extract, "--products", 10)
    assert server.requests.total() == before

    analyse = [f"{STEPS}/analyse_pairs.py", pairs, f"{pairs}_*.embeddings", "--allow-private"]
    command(*analyse, "--threshold", "0.6", "0.5", "--pictures", "4")
    for name in ("X_mean_05.jpg", "X_mean_06.jpg", "X_mean_cosines.png"):
        assert (tmp_path / name).stat().st_size > 5000

    store = tmp_path / "images_mean_50k"
    command(
        f"{STEPS}/download_images.py", tmp_path / "X_mean_05.parquet", "--output", store, *DOWNLOAD
    )
    said = command(
        f"{STEPS}/prepare_training_set.py",
        f"{store}.parquet",
        "--evaluation",
        "--pack",
        "--part-size",
        "0.02",
    )
    assert "not checked for leaks" in said
    check(tmp_path, truth, server, model_run)

    parts = sorted(tmp_path.glob("images_mean_50k_*.tar.part*"))
    assert {path.stat().st_size for path in parts[:-1]} == {20_000}
    packed = subprocess.run(
        ["tar", "-t"],
        input=b"".join(part.read_bytes() for part in parts),
        capture_output=True,
        check=True,
    )
    listed = rows(tmp_path / "amazon_review_mean_05_full_images.csv")[1:]
    assert packed.stdout.decode().split() == sorted(f"images_mean_50k/{path}" for path, _ in listed)


def job(folder: Path, run: Path, *more: str) -> list[str]:
    """The command for all steps, in small pieces."""
    return [
        *(sys.executable, "-m", "dataset.dataset_creation_steps.run"),
        *("--config", "config/amazon_pairs.yml", "--folder", str(folder), "--categories", "[X]"),
        *("--run", str(run), "--images", str(folder / "images_mean_50k"), "--evaluation", "[]"),
        *("--snapshot_products", "3", "--piece_photos", "10", "--pictures", "0"),
        *("--download.allow_private", "true", "--download.timeout", "2"),
        *("--download.attempts", "3", "--download.rate", "0", "--download.connections", "4"),
        *more,
    ]


def kill_at_random(
    arguments: list[str], folder: Path, project: Path, environment: dict[str, str], kills: int
) -> int:
    """Start and kill -9 so many times; how many of the processes ended by it.

    In turns, the kill comes soon after another piece of step 2 or 4 is finished, and at any moment
    from the start on: while step 1 reads, or, with the pieces done, in step 3 or 5.
    """
    chance = random.Random(kills)
    killed, first_piece = 0, 0.0
    for number in range(kills):
        before, start = pieces(folder), time.monotonic()
        process = subprocess.Popen(
            arguments,
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if number % 2 == 0:
            while process.poll() is None and pieces(folder) == before:
                assert time.monotonic() < start + 120
                time.sleep(0.05)
            first_piece = first_piece or time.monotonic() - start
            latest = time.monotonic() + chance.uniform(0, 1.0)
        else:
            # By the time of the first piece, step 1 was over.
            latest = start + chance.uniform(0, 2 * first_piece)
        while process.poll() is None and time.monotonic() < latest:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        ended = process.wait()
        assert ended in (0, -signal.SIGKILL)
        killed += ended == -signal.SIGKILL
    return killed


def pieces(folder: Path) -> int:
    """Finished ones, of steps 2 and 4."""
    return sum(1 for kind in ("embeddings", "photos") for _ in folder.rglob(f"*.{kind}"))


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_result_is_the_same(
    project: Path,
    environment: dict[str, str],
    server: PhotoServer,
    model_run: Path,
    tmp_path: Path,
    kills: int,
) -> None:
    truth = write_files(tmp_path, server, PRODUCTS)
    server.delay = 0.05
    arguments = job(tmp_path, model_run)
    assert kill_at_random(arguments, tmp_path, project, environment, kills) >= (kills + 1) // 2
    done = subprocess.run(
        arguments, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path, truth, server, model_run)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_the_same_on_a_ray_cluster_of_two_workers(
    project: Path,
    environment: dict[str, str],
    server: PhotoServer,
    model_run: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    truth = write_files(tmp_path, server, PRODUCTS)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        done = subprocess.run(
            job(tmp_path, model_run, "--runner", "ray", "--ray_address", cluster.address),
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    check(tmp_path, truth, server, model_run)
