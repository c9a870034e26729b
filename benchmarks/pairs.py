"""Reading reviews and downloading images, beside pandas and img2dataset.

    python -m benchmarks.pairs

Reading: a generated file of reviews in Amazon's format, every line of it parsed, by the reader of
step 1; pandas reads a part of it. Downloading: images from a loopback server in a process of its
own, downloaded and decoded to 224 px, by the engine's stages; img2dataset, in an environment of
its own, does the same with as many processes as there are threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import subprocess
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.harness import (
    MB,
    Row,
    alternating_medians,
    arguments,
    higher_is_better,
    lower_is_better,
    peak_resident,
    processor,
    report,
)
from benchmarks.ranker_peers import interpreter
from dataset.dataset_creation_steps.engine import DownloadConfig, start_engine
from visual_search.common.errors import UserError, run_command
from visual_search.data.images import ImageItem, load_pixels

SAMPLE_MB = 150  # of the file, that both sides read several times
CHUNK_LINES = 50_000  # of pandas, at a time
SIDE = 224
LOOPBACK = DownloadConfig(size_hint=0, allow_private=True, rate=0)


def in_child(function: Callable[..., float], *given: Any) -> float:
    """What a function at the top of this module returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *given).result()


def write_reviews(path: Path, size: float) -> None:
    """Reviews in Amazon's format; three of a hundred have images."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    lines = []
    for number in range(20_000):
        text = " ".join(chance.choices(words, k=chance.randint(3, 110)))
        row: dict[str, Any] = {
            "overall": float(chance.randint(1, 5)),
            "verified": True,
            "reviewTime": "09 1, 2016",
            "reviewerID": f"A{chance.randrange(10**12)}",
            "asin": f"B{chance.randrange(10**5):09d}",
            "style": {"Size:": " Large", "Color:": " Blue"},
            "reviewerName": " ".join(chance.choices(words, k=2)),
            "reviewText": text,
            "summary": text[:40],
            "unixReviewTime": 1472688000 + number,
        }
        if chance.random() < 0.03:
            place = "https://images-na.ssl-images-amazon.com/images/I"
            row["image"] = [f"{place}/{chance.randrange(10**10)}._SY88.jpg" for _ in range(3)]
        lines.append(json.dumps(row))
    block = ("\n".join(lines) + "\n").encode()
    with path.open("wb") as handle:
        while handle.tell() < size:
            handle.write(block)


def read_with_pandas(path: Path) -> int:
    """Rows with images; what is not needed is dropped a chunk at a time."""
    rows = 0
    for chunk in pd.read_json(path, lines=True, chunksize=CHUNK_LINES):
        rows += int((chunk["image"].str.len() > 0).sum())
    return rows


def read_with_ours(path: Path) -> int:
    """Rows with images, by the reader of step 1."""
    from dataset.dataset_creation_steps.reviews import Fields, read_objects, review

    tally: Counter[str] = Counter()
    blocks = read_objects(path, tally, Fields)
    return sum(review(fields, tally) is not None for block in blocks for fields in block)


def peak_of_reading(path: Path, output: Path) -> float:
    """Peak memory of step 1's reading, which writes the rows with images, bytes."""
    from dataset.dataset_creation_steps.get_pairs import extract
    from dataset.dataset_creation_steps.reviews import review

    extract(path, review, output)
    return peak_resident()


def reading(options: Namespace, folder: Path) -> list[Row]:
    """Speed beside pandas, and memory on a small and the large file."""
    size = options.size_mb * MB
    sample, large = folder / "sample.json", folder / "large.json"
    write_reviews(sample, min(SAMPLE_MB * MB, size / 10))
    ours_rows, theirs_rows = read_with_ours(sample), read_with_pandas(sample)
    if ours_rows != theirs_rows:
        raise UserError(f"{ours_rows} rows with images, pandas finds {theirs_rows}")
    calls = [lambda: read_with_ours(sample), lambda: read_with_pandas(sample)]
    ours, theirs = alternating_medians(calls, min(options.repeats, 3), warm_up=0)
    megabytes = sample.stat().st_size / MB
    small = in_child(peak_of_reading, sample, folder / "small.parquet")
    write_reviews(large, size)
    big = in_child(peak_of_reading, large, folder / "big.parquet")
    name = f"peak memory, step 1's reading of {large.stat().st_size / 1e9:.1f} GB"
    large.unlink()
    peer = f"pandas {pd.__version__}"
    return [
        higher_is_better("reviews parsed", megabytes / ours, peer, megabytes / theirs, "MB/s"),
        lower_is_better(name, big / MB, f"of {megabytes:.0f} MB", small / MB, "MB"),
    ]


def make_images(folder: Path, count: int) -> None:
    """Images of 500 px as Amazon serves them: about 40 KB, smooth with some grain."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 500), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=80)


@contextmanager
def image_server(folder: Path) -> Iterator[str]:
    """A quick loopback server of a folder of images, in a process of its own, for both sides.

    Yields:
        An address; `<address>/<any number>.jpg` is one of the images.
    """
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        process = context.Process(target=_serve, args=(folder, listening), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


def _serve(folder: Path, listening: socket.socket) -> None:
    from aiohttp import web

    images = [path.read_bytes() for path in sorted(folder.iterdir())]

    async def answer(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        return web.Response(body=images[number % len(images)], content_type="image/jpeg")

    application = web.Application()
    application.router.add_get("/{number}.jpg", answer)
    web.run_app(application, sock=listening, print=None, access_log=None)


def rate_of_ours(urls: list[str]) -> float:
    """Images a second through the engine: fetched, checked, decoded."""
    start_engine("native")
    import daft
    from daft import DataType, Series

    from dataset.dataset_creation_steps.image_store import FetchStage

    class DecodeStage:
        """What the embedding stage does before the model."""

        @daft.method.batch(return_dtype=DataType.int64(), batch_size=64)
        def decode(self, data: Series) -> list[int]:
            with TemporaryDirectory() as folder:
                items = [ImageItem(Path(folder) / str(number)) for number in range(len(data))]
                for item, image in zip(items, data.to_pylist(), strict=True):
                    item.path.write_bytes(image)
                return [load_pixels(item, SIDE)[0].nbytes for item in items]

    frame = daft.from_pydict({"url": urls}).into_batches(256)
    fetch: Any = FetchStage(LOOPBACK).fetch
    decode: Any = daft.cls(DecodeStage, use_process=False)().decode
    frame = frame.with_column("got", fetch(daft.col("url")))
    frame = frame.with_column("bytes", decode(daft.col("got")["data"])).select("bytes")
    start = time.perf_counter()
    done = sum(batch.num_rows for batch in frame.to_arrow_iter())
    assert done == len(urls)
    return done / (time.perf_counter() - start)


def rate_of_img2dataset(urls: list[str], output: Path, processes: int) -> float:
    """Images a second between its first and its last shard's clock: its start is not counted."""
    listed, script = output.with_suffix(".txt"), output.with_suffix(".py")
    listed.write_text("\n".join(urls))
    script.write_text(
        "from img2dataset import download\n"
        "if __name__ == '__main__':\n"
        f"    download(url_list={str(listed)!r}, output_folder={str(output)!r}, "
        f"processes_count={processes}, thread_count=32, image_size={SIDE}, "
        "resize_mode='border', output_format='dummy', number_sample_per_shard=500, "
        "enable_wandb=False, retries=0)\n"
    )
    done = subprocess.run(
        [str(interpreter("img2dataset")), str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        check=False,
    )
    stats = pd.DataFrame(json.loads(path.read_text()) for path in output.glob("*_stats.json"))
    if done.returncode or stats.empty:
        raise UserError(f"img2dataset failed: {done.stderr.strip()[-600:]}")
    seconds = stats["end_time"].max() - stats["start_time"].min()
    return float(stats["successes"].sum() / seconds)


def downloading(options: Namespace, folder: Path) -> tuple[list[Row], list[str]]:
    """Images a second, downloaded and decoded."""
    images = folder / "images"
    make_images(images, 64)
    ours, theirs = [], []
    with image_server(images) as address:
        urls = [f"{address}/{number}.jpg" for number in range(options.photos)]
        for number in range(1 if options.quick else 3):
            ours.append(in_child(rate_of_ours, urls))
            theirs.append(rate_of_img2dataset(urls, folder / f"peer_{number}", options.threads))
    name, peer = "photos downloaded and decoded to 224 px", "img2dataset 1.47.0"
    kb = float(np.mean([path.stat().st_size for path in images.iterdir()])) / 1000
    notes = [
        f"{options.photos} photos of 500 px, {kb:.0f} KB; the server takes its share of the same "
        "cores"
    ]
    medians = float(np.median(ours)), float(np.median(theirs))
    return [higher_is_better(name, medians[0], peer, medians[1], "img/s")], notes


def main() -> None:
    """Measure both and record."""
    parser = arguments(__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size-mb", type=float, default=5000, help="of the large file of reviews")
    add("--photos", type=int, default=6000, help="to download")
    options = parser.parse_args()
    if options.quick:
        options.size_mb, options.photos = 60.0, 600
    # The children, the server and the peer have the same cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with TemporaryDirectory() as folder:
        rows = reading(options, Path(folder))
        more, found = downloading(options, Path(folder))
    head = f"{processor()}, of both sides and the server together"
    report("pairs", [*rows, *more], [head, *found], options)


if __name__ == "__main__":
    run_command(main)
