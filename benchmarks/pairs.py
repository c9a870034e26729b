"""Downloading images beside img2dataset.

    python -m benchmarks.pairs

Images from a loopback server in a process of its own, downloaded and decoded to 224 px, by the
engine's stages; img2dataset, in an environment of its own, does the same with as many processes as
there are threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.harness import arguments, higher_is_better, processor, report
from benchmarks.ranker_peers import interpreter
from dataset.dataset_creation_steps.engine import DownloadConfig, start_engine
from visual_search.common.errors import UserError, run_command
from visual_search.data.images import ImageItem, load_pixels

SIDE = 224
LOOPBACK = DownloadConfig(size_hint=0, allow_private=True, rate=0)


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


def main() -> None:
    """Measure both and record."""
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=6000, help="to download")
    options = parser.parse_args()
    if options.quick:
        options.photos = 600
    # The server and the peer have the same cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    ours, theirs = [], []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder / "images", 64)
        sizes = [path.stat().st_size for path in (folder / "images").iterdir()]
        with image_server(folder / "images") as address:
            urls = [f"{address}/{number}.jpg" for number in range(options.photos)]
            rate_of_ours(urls[:100])  # loads the engine
            for number in range(1 if options.quick else 3):
                ours.append(rate_of_ours(urls))
                theirs.append(rate_of_img2dataset(urls, folder / f"{number}", options.threads))
    case, peer = "photos downloaded and decoded to 224 px", "img2dataset 1.47.0"
    medians = float(np.median(ours)), float(np.median(theirs))
    notes = [
        f"{processor()}, of both sides and the server together",
        f"{options.photos} photos of 500 px, {np.mean(sizes) / 1000:.0f} KB",
    ]
    report("pairs", [higher_is_better(case, medians[0], peer, medians[1], "img/s")], notes, options)


if __name__ == "__main__":
    run_command(main)
