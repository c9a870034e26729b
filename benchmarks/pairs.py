"""Reading reviews, downloading photos and cutting pairs, beside pandas and img2dataset.

    python -m benchmarks.pairs

Reading: a generated file of reviews in Amazon's format, every line of it parsed, by the engine's
source; pandas reads a part of it. Downloading: photos from a loopback server in a process of its
own, downloaded and decoded to 224 px, by the engine's stages; img2dataset, in an environment of
its own, does the same with as many processes as there are threads. Cutting: a table of a million
pairs at two thresholds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import (
    Row,
    alternating_medians,
    arguments,
    bind_to_cores,
    higher_is_better,
    lower_is_better,
    processor,
    report,
)
from benchmarks.pairs_server import photo_server
from benchmarks.ranker_peers import interpreter
from visual_search.common.errors import UserError, exit_with_sentence

MB = 1e6
SAMPLE_MB = 150  # of the file, that both sides read several times
CHUNK_LINES = 50_000  # of pandas, at a time
SIDE = 224
CHILD = "benchmarks.pairs_child"


def write_reviews(path: Path, size: float) -> None:
    """Reviews in Amazon's format; three of a hundred have photos."""
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
    """Rows with photos; what is not needed is dropped a chunk at a time."""
    rows = 0
    for chunk in pd.read_json(path, lines=True, chunksize=CHUNK_LINES):
        rows += int((chunk["image"].str.len() > 0).sum())
    return rows


def read_with_ours(path: Path) -> int:
    """Rows with photos, by the source that the engine reads."""
    from dataset.dataset_creation_steps.reviews import Fields, read_objects, review

    tally: Counter[str] = Counter()
    blocks = read_objects(path, tally, Fields)
    return sum(review(fields, tally) is not None for block in blocks for fields in block)


def child(*given: object) -> dict[str, float]:
    """Run a measurement in a process of its own: seconds and peak memory."""
    command = [sys.executable, "-m", CHILD, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()[-600:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def reading(options: Namespace, folder: Path) -> tuple[list[Row], list[str]]:
    """Speed beside pandas, and memory on a small and the large file."""
    size = options.size_mb * MB
    sample, large = folder / "sample.json", folder / "large.json"
    write_reviews(sample, min(SAMPLE_MB * MB, size / 10))
    ours_rows, theirs_rows = read_with_ours(sample), read_with_pandas(sample)
    if ours_rows != theirs_rows:
        raise UserError(f"{ours_rows} rows with photos, pandas finds {theirs_rows}")
    calls: list[Callable[[], Any]] = [
        lambda: read_with_ours(sample),
        lambda: read_with_pandas(sample),
    ]
    repeats = min(options.repeats, 3)
    ours, theirs = alternating_medians(calls, repeats, warm_up=0)
    megabytes = sample.stat().st_size / MB
    peer = f"pandas {pd.__version__}"
    rows = [
        higher_is_better("reviews parsed", megabytes / ours, peer, megabytes / theirs, "MB/s"),
    ]
    small = child("extract", sample, folder / "small")
    write_reviews(large, size)
    big = child("extract", large, folder / "big")
    gigabytes = large.stat().st_size / 1e9
    large.unlink()
    name = f"peak memory, step 1's reading of {gigabytes:.1f} GB"
    rows.append(
        lower_is_better(name, big["peak"] / MB, f"of {megabytes:.0f} MB", small["peak"] / MB, "MB")
    )
    notes = [
        f"reading by the engine, parquet of the rows with photos included: "
        f"{gigabytes * 1000 / big['seconds']:.0f} MB/s on the large file",
        _roofline(sample),
    ]
    return rows, notes


def _roofline(sample: Path) -> str:
    """What reading and splitting lines cost alone: no parser can be faster."""
    start = time.perf_counter()
    with sample.open("rb") as handle:
        while piece := handle.read(1 << 18):
            piece.split(b"\n")
    rate = sample.stat().st_size / MB / (time.perf_counter() - start)
    return f"bound of reading: reading and splitting into lines alone {rate:.0f} MB/s, one thread"


def make_photos(folder: Path, count: int) -> list[Path]:
    """Photos of 500 px as Amazon serves them: about 40 KB, smooth with some grain."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 500), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, smooth.shape)
        path = folder / f"{number}.jpg"
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=80)
        paths.append(path)
    return paths


def downloading(options: Namespace, folder: Path) -> tuple[list[Row], list[str]]:
    """Photos a second, downloaded and decoded, and what each half reaches alone."""
    photos = make_photos(folder / "photos", 64)
    count = options.photos
    with photo_server(folder / "photos") as address:
        urls = folder / "urls.txt"
        urls.write_text("\n".join(f"{address}/{number}.jpg" for number in range(count)))
        ours, theirs = [], []
        for number in range(1 if options.quick else 3):
            ours.append(child("download", urls)["rate"])
            theirs.append(_img2dataset(urls, folder / f"img2dataset_{number}", options.threads))
        alone = child("fetch", urls)["rate"]
    decode = child("decode", folder / "photos", options.threads, count)["rate"]
    peer = "img2dataset 1.47.0"
    rows = [
        higher_is_better(
            "photos downloaded and decoded to 224 px",
            float(np.median(ours)),
            peer,
            float(np.median(theirs)),
            "img/s",
        )
    ]
    kb = sum(path.stat().st_size for path in photos) / len(photos) / 1000
    bound = 1 / (1 / alone + 1 / decode)
    notes = [
        f"{count} photos of 500 px, {kb:.0f} KB; the server takes its share of the same cores",
        f"download alone {alone:.0f} img/s, decode alone {decode:.0f} img/s, bound on the same "
        f"cores {bound:.0f} img/s",
    ]
    return rows, notes


def _img2dataset(urls: Path, output: Path, processes: int) -> float:
    """Photos a second between its first and its last shard's clock: its start is not counted."""
    code = (
        "from img2dataset import download\n"
        "if __name__ == '__main__':\n"
        f"    download(url_list={str(urls)!r}, output_folder={str(output)!r}, "
        f"processes_count={processes}, thread_count=32, image_size={SIDE}, "
        "resize_mode='border', output_format='dummy', number_sample_per_shard=500, "
        "enable_wandb=False, retries=0)\n"
    )
    script = output.with_suffix(".py")
    script.write_text(code)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [str(interpreter("img2dataset")), str(script)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    stats = [json.loads(path.read_text()) for path in output.glob("*_stats.json")]
    if done.returncode or not stats:
        raise UserError(f"img2dataset failed: {done.stderr.strip()[-600:]}")
    good = sum(shard["successes"] for shard in stats)
    seconds = max(shard["end_time"] for shard in stats) - min(
        shard["start_time"] for shard in stats
    )
    return float(good / seconds)


def cutting(options: Namespace, folder: Path) -> tuple[list[Row], list[str]]:
    """Seconds for both thresholds on a table of photos with a million pairs in all."""
    from dataset.dataset_creation_steps.analyse_pairs import analyse, output_names
    from dataset.dataset_creation_steps.mean_cosines import MEANS, _identity

    products = options.pairs // 6  # two photos of the shop and three of buyers each
    photos = products * 5
    rng = np.random.default_rng(0)
    columns = [
        pa.array(np.repeat([f"B{n:09d}" for n in range(products)], 5)),
        pa.array(["product"] * 2 + ["user"] * 3, pa.string()).take(
            pa.array(np.tile(np.arange(5), products))
        ),
        pa.array(
            [f"https://images-na.ssl-images-amazon.com/images/I/{n}.jpg" for n in range(photos)]
        ),
        pa.array(rng.normal(0.5, 0.2, photos).clip(-1, 1)),
        pa.array(np.tile([3, 3, 2, 2, 2], products), pa.int32()),
    ]
    parquet = folder / "X.parquet"
    snapshot = folder / "X.parquet_00000.embeddings"
    snapshot.touch()
    schema = MEANS.with_metadata({b"source": _identity([snapshot])})
    names = output_names(parquet)
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), names["means"])
    names["counts"].write_text("{}")
    (seconds,) = alternating_medians([lambda: analyse(parquet, None, [0.6, 0.5])], 3, warm_up=0)
    case = f"{options.pairs} pairs cut at 0.6 and 0.5"
    return [lower_is_better(case, seconds, "the aim", 10.0, "s")], []


def main() -> None:
    """Measure all three and record."""
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--size-mb", type=float, default=5000, help="of the large file of reviews")
    parser.add_argument("--photos", type=int, default=6000, help="to download")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="to cut")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure"
    )
    options = parser.parse_args()
    if options.quick:
        options.size_mb, options.photos, options.pairs = 60.0, 600, 60_000
    bind_to_cores(options.threads)  # the children, the server and the peer with it
    rows: list[Row] = []
    notes = [f"{processor()}, of both sides and the server together"]
    with TemporaryDirectory() as folder:
        for part in options.parts:
            place = Path(folder) / part
            place.mkdir()
            more_rows, more_notes = PARTS[part](options, place)
            rows += more_rows
            notes += more_notes
    report("pairs", rows, notes, options)


PARTS = {"reading": reading, "downloading": downloading, "cutting": cutting}


if __name__ == "__main__":
    exit_with_sentence(main)
