"""Cleaning against imagededup and imagehash: hashes, near-duplicates, a folder's table.

    python -m benchmarks.dedup

Hashing reads the photos of $VPR_REAL_DATA where they are at hand, else photos drawn on the spot.
Every answer is compared with the peer's, or with brute force, before it is timed.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import (
    MB,
    Row,
    alternating_medians,
    arguments,
    bind_to_cores,
    higher_is_better,
    lower_is_better,
    peer_module,
    processor,
    report,
)
from visual_search.errors import exit_with_sentence
from visual_search.hashing import hash_photos, hash_text
from visual_search.near_duplicates import Pairs, pairs_within

MILLION = 1_000_000
SAMPLE = 1000
"""Rows of the million that are also compared with all others by brute force."""


def photos(count: int, folder: Path) -> tuple[Path, str]:
    """A flat folder of photos for both sides, and what they are."""
    flat = folder / "photos"
    flat.mkdir()
    real = Path(os.getenv("VPR_REAL_DATA", "../shared/data")).resolve()
    found = sorted(real.glob("vpr_development_half/*/*.jp*g"))
    found += sorted(real.glob("grocery_store/train/**/*.jpg"))
    if found:
        chosen = found[:: max(len(found) // count, 1)][:count]
        for number, path in enumerate(chosen):
            (flat / f"{number:05}.jpg").symlink_to(path)
        return flat, "real photos"
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(flat / f"{number:05}.jpg", quality=85)
    return flat, "drawn photos of 640 x 480"


def hashing_rows(count: int, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Photos a second, the same hashes on both sides."""
    peer, packaged = peer_module("imagededup.methods"), peer_module("imagehash")
    logging.disable(logging.INFO)
    hasher = peer.PHash(verbose=False)
    with tempfile.TemporaryDirectory() as place:
        flat, what = photos(count, Path(place))
        paths = sorted(flat.iterdir())

        def ours() -> dict[str, str]:
            hashes = hash_photos(paths)
            return {p.name: hash_text(int(h)) for p, h in zip(paths, hashes, strict=True)}  # type: ignore[arg-type]

        def imagededup() -> dict[str, str]:
            return dict(hasher.encode_images(flat, num_enc_workers=options.threads))

        def imagehash() -> dict[str, str]:
            with ThreadPoolExecutor(options.threads) as pool:
                values = pool.map(lambda path: str(packaged.phash(Image.open(path))), paths)
                return {path.name: value for path, value in zip(paths, values, strict=True)}

        def decode() -> None:
            with ThreadPoolExecutor(options.threads) as pool:
                list(pool.map(lambda path: Image.open(path).load(), paths))

        assert ours() == imagehash(), "the hashes differ from imagehash's"
        kind = hash_photos(paths, "imagededup")
        encoded = imagededup()
        theirs = [encoded[path.name] for path in paths]
        assert [hash_text(int(h)) for h in kind] == theirs, "… from imagededup's"  # type: ignore[arg-type]
        calls: list[Callable[[], object]] = [ours, imagededup, imagehash, decode]
        seconds = alternating_medians(calls, options.repeats, warm_up=1)
    rates = [len(paths) / taken for taken in seconds]
    case = f"pHash of {len(paths)} {what}"
    return [
        higher_is_better(case, rates[0], f"imagededup {version('imagededup')}", rates[1], "img/s"),
        higher_is_better(case, rates[0], f"imagehash {version('imagehash')}", rates[2], "img/s"),
    ], [
        f"hashing: all {len(paths)} hashes equal imagehash's, and in the other mode imagededup's; "
        f"Pillow's decoding alone, which both packages need, runs at {rates[3]:.0f} img/s"
    ]


def clustered(count: int) -> np.ndarray:
    """Random hashes, every tenth a near-duplicate of another at up to 12 bits."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // 10
    turned = np.uint64(1) << rng.integers(0, 64, (copies, 12)).astype(np.uint64)
    used = np.arange(12)[None] < rng.integers(0, 13, copies)[:, None]
    hashes[-copies:] = hashes[:copies] ^ np.bitwise_or.reduce(np.where(used, turned, 0), axis=1)
    return rng.permutation(hashes)


def brute_force(hashes: np.ndarray, rows: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """The pairs with one of `rows`, by comparing each with every hash."""
    found = set()
    for row in rows.tolist():
        near = np.flatnonzero(np.bitwise_count(hashes ^ hashes[row]) <= radius)
        found |= {(min(row, j), max(row, j)) for j in near.tolist() if j != row}
    return found


def check(hashes: np.ndarray, pairs: Pairs, radius: int, rows: np.ndarray) -> None:
    """Compare the pairs that have one of `rows` with brute force."""
    chosen = np.isin(pairs.left, rows) | np.isin(pairs.right, rows)
    ours = set(zip(pairs.left[chosen].tolist(), pairs.right[chosen].tolist(), strict=True))
    assert ours == brute_force(hashes, rows, radius), f"wrong pairs at {radius} bits"


def timed_pairs(hashes: np.ndarray, radius: int, repeats: int) -> tuple[Pairs, float]:
    """All pairs, and the median of the seconds that it takes to find them."""
    found: list[Pairs] = []

    def search() -> None:
        found[:] = [pairs_within(hashes, radius)]

    [taken] = alternating_medians([search], repeats, warm_up=0)
    return found[0], taken


def search_rows(
    count: int, limit: float, options: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    """Seconds for all pairs of near-duplicates."""
    rows, notes = [], []
    hashes = clustered(count)
    sample = np.random.default_rng(1).choice(count, min(SAMPLE, count), replace=False)
    for radius, repeats in ((4, options.repeats), (10, 1)):  # 10 bits take minutes
        pairs, taken = timed_pairs(hashes, radius, repeats)
        check(hashes, pairs, radius, sample)
        case = f"near-duplicates among {count} hashes at {radius} bits"
        rows.append(lower_is_better(case, taken, "imagededup: too slow at this size", None, "s"))
        notes.append(
            f"{case}: {len(pairs)} pairs, equal to brute force for {len(sample)} rows against all; "
            f"median of {repeats} run{'s' * (repeats > 1)}"
        )
    for method in ("brute_force_cython", "bktree"):
        row, note = peer_search(method, 10, limit, options.threads)
        rows.append(row)
        notes.append(note)
    return rows, notes


def peer_search(method: str, radius: int, limit: float, threads: int) -> tuple[Row, str]:
    """The largest number of hashes for which imagededup is done within `limit` seconds."""
    hasher = peer_module("imagededup.methods").PHash(verbose=False)
    count, taken = 250, 0.0
    # Its time grows with the square of the number, or faster.
    while 4 * taken <= limit:
        count *= 2
        hashes = clustered(count)
        encodings = {str(i): hash_text(int(value)) for i, value in enumerate(hashes)}
        start = time.perf_counter()
        found = hasher.find_duplicates(
            encoding_map=encodings,
            max_distance_threshold=radius,
            search_method=method,
            num_dist_workers=threads,
        )
        taken = time.perf_counter() - start
    [ours] = alternating_medians([lambda: pairs_within(hashes, radius)], 5)
    pairs = pairs_within(hashes, radius)
    theirs = {(int(i), int(j)) for i, near in found.items() for j in near if int(i) < int(j)}
    mine = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert mine == theirs, f"imagededup's {method} finds other pairs"
    case = f"near-duplicates among {count} hashes at {radius} bits"
    name = f"imagededup {version('imagededup')} {method}"
    return lower_is_better(case, ours, name, taken, "s"), (
        f"{name}: the same pairs; twice as many hashes would take it more than {limit:.0f} s"
    )


def table_rows(sizes: tuple[int, int]) -> tuple[list[Row], list[str]]:
    """Folder to table, hashes off: photos a second, and peak memory at two sizes."""
    peaks, rate = [], 0.0
    for count in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "photos")
            _small_photos(folder, count)
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", DESCRIBE, str(folder)],
                check=True,
                capture_output=True,
                text=True,
            )
            rate = count / (time.perf_counter() - start)
            peaks.append(float(done.stdout.split()[-1]) / MB)
    growth = (peaks[1] - peaks[0]) * MB / (sizes[1] - sizes[0])
    case = f"folder of {sizes[1]} photos to dataset_info.csv"
    return [
        higher_is_better(case, rate, "to reach", 1000.0, "img/s"),
        lower_is_better(f"{case}, peak memory", peaks[1], f"{sizes[0]} photos", peaks[0], "MB"),
    ], [f"folder to table: {growth:.0f} bytes of memory a photo; start of the process included"]


DESCRIBE = """
import sys
from pathlib import Path
from benchmarks.harness import peak_resident
from dataset.folder_info import describe_folder
done = describe_folder(Path(sys.argv[1]), Path(sys.argv[1]))
assert done.photos, done
print(peak_resident())
"""


def _small_photos(folder: Path, count: int) -> None:
    """Photos of 500 a class, all different: a number behind the end of the JPEG is never read."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 40).save(buffer, "JPEG")
    for number in range(count):
        place = folder / str(number // 500)
        if number % 500 == 0:
            place.mkdir(parents=True)
        (place / f"{number % 500:03}.jpg").write_bytes(buffer.getvalue() + b"%d" % number)


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("hashing", "search", "table"), help="one part alone")
    options = parser.parse_args()
    bind_to_cores(options.threads)
    quick = options.quick
    parts = {
        "hashing": lambda: hashing_rows(60 if quick else 1200, options),
        "search": lambda: search_rows(
            20_000 if quick else MILLION, 2.0 if quick else 60.0, options
        ),
        "table": lambda: table_rows((500, 1500) if quick else (50_000, MILLION)),
    }
    rows: list[Row] = []
    notes = [f"{processor()}, of both sides; peers with {options.threads} threads or processes"]
    for name, measure in parts.items():
        if options.only in (None, name):
            more, said = measure()
            rows += more
            notes += said
    report("dedup", rows, notes, options)


if __name__ == "__main__":
    exit_with_sentence(main)
