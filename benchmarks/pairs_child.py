"""One measurement of `benchmarks.pairs` in a process of its own, on its cores; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import daft
from daft import DataType, Series

from benchmarks.harness import peak_resident
from dataset.downloads import Downloader, DownloadLimits
from visual_search.data.images import ImageItem, load_pixels

SIDE = 224
LIMITS = DownloadLimits(allow_private=True, rate=0)


def extract(path: str, output: str) -> dict[str, float]:
    """Step 1's reading of reviews: the engine, the source, the parquet file."""
    from dataset.dataset_creation_steps.engine import start_engine
    from dataset.dataset_creation_steps.reviews import AmazonFile

    start_engine("native")
    start = time.perf_counter()
    AmazonFile(Path(path), "reviews").read().write_parquet(output)
    return {"seconds": time.perf_counter() - start, "peak": peak_resident()}


class DecodeStage:
    """What the embedding stage does before the model."""

    @daft.method.batch(return_dtype=DataType.int64(), batch_size=64)
    def decode(self, data: Series) -> list[int]:
        """Bytes of decoded pixels."""
        with TemporaryDirectory() as folder:
            items = [ImageItem(Path(folder) / str(number)) for number in range(len(data))]
            for item, photo in zip(items, data.to_pylist(), strict=True):
                item.path.write_bytes(photo)
            return [load_pixels(item, SIDE)[0].nbytes for item in items]


def download(urls: str) -> dict[str, float]:
    """Photos a second through the engine: fetched, checked, decoded."""
    from dataset.dataset_creation_steps.engine import start_engine
    from dataset.dataset_creation_steps.photos import FetchStage

    start_engine("native")
    listed = Path(urls).read_text().split()
    frame = daft.from_pydict({"url": listed}).into_batches(256)
    fetch: Any = FetchStage(LIMITS, 0).fetch
    decode: Any = daft.cls(DecodeStage, use_process=False)().decode
    frame = frame.with_column("got", fetch(daft.col("url")))
    frame = frame.with_column("bytes", decode(daft.col("got")["data"])).select("bytes")
    start = time.perf_counter()
    done = sum(batch.num_rows for batch in frame.to_arrow_iter())
    assert done == len(listed)
    return {"rate": done / (time.perf_counter() - start)}


def fetch(urls: str) -> dict[str, float]:
    """Downloads alone."""
    listed = Path(urls).read_text().split()

    async def all_of_them() -> None:
        async with Downloader(LIMITS) as downloader:
            for at in range(0, len(listed), 256):
                found = await asyncio.gather(*map(downloader.fetch, listed[at : at + 256]))
                assert all(download.data for download in found)

    start = time.perf_counter()
    asyncio.run(all_of_them())
    return {"rate": len(listed) / (time.perf_counter() - start)}


def decode(folder: str, threads: str, count: str) -> dict[str, float]:
    """Decoding alone, all threads."""
    paths = sorted(Path(folder).iterdir())
    items = [ImageItem(paths[number % len(paths)]) for number in range(int(count))]
    start = time.perf_counter()
    with ThreadPoolExecutor(int(threads)) as pool:
        done = sum(1 for _ in pool.map(lambda item: load_pixels(item, SIDE), items))
    return {"rate": done / (time.perf_counter() - start)}


WORK: dict[str, Callable[..., dict[str, float]]] = {
    "extract": extract,
    "download": download,
    "fetch": fetch,
    "decode": decode,
}


if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](*sys.argv[2:])))
