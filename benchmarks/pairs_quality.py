"""What the thresholds keep of noisy reviews, and what training on it brings.

    python -m benchmarks.pairs_quality

From the embedded catalogue: half of the products train a first phase. The other half become
"reviews": a shop's two photos, buyers' clean photos, and as many that are of no use: photos of
another product, close-ups, damaged photos. All five steps run on them, over loopback, with the
first phase's model. Precision and recall are of the buyers' photos that a threshold keeps; then
the third phase (contrastive, cross-batch memory) trains on the filtered and on the unfiltered
pairs, and both are judged on the 206 development products, which neither has seen.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from benchmarks.harness import Row, arguments, higher_is_better, processor, report
from benchmarks.pairs_server import photo_server
from dataset.dataset_creation_steps.engine import DownloadConfig
from dataset.dataset_creation_steps.run import PairsConfig, build_pairs
from visual_search.common.errors import UserError, exit_with_sentence
from visual_search.common.files import write_json, write_text

DEMO = Path("dataset/demo/Product10K")
WORK = Path("runs/pairs_quality")
THRESHOLDS = (0.5, 0.6)
UNFILTERED = -1.0
SHOP_PHOTOS = 2
FIRST = "pairs_quality_arcface"


def photos_by_product() -> dict[str, list[Path]]:
    """All photos of each product of the catalogue's training side."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder, table in (("train", "train.csv"), ("test", "test_kaggletest.csv")):
        with (DEMO / table).open(newline="") as handle:
            for row in csv.DictReader(handle):
                found[row["class"]].append(DEMO / folder / row["name"])
    return dict(sorted(found.items()))


def run(*command: str) -> None:
    """A command of the kit.

    Raises:
        UserError: when it fails.
    """
    print("$ python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command], check=False).returncode:
        raise UserError(f"python {' '.join(command[:4])} failed")


def train(config: str, name: str, table: Path, root: Path, seed: int, *more: str) -> float:
    """Train a phase on a table, unless that is done; its mAP on the development set."""
    result = Path("runs") / name / "result.json"
    if not result.is_file():
        tables = json.dumps([{"file": str(table), "root": str(root)}])
        run(
            *("-m", "visual_search.main_arcface", "--config", config, "--name", name),
            *("--dataset.product10k.use", "false", "--dataset.tables", tables),
            *("--dataset.seed", str(seed), *more),
        )
    return float(json.loads(result.read_text("utf-8"))["mAP"])


def write_reviews(photos: dict[str, list[Path]], address: str, folder: Path, seed: int) -> Path:
    """Photos, reviews and products in Amazon's format; where the truth of each address is."""
    chance = random.Random(seed)
    served: list[bytes] = []
    truth: dict[str, str] = {}
    reviews, meta = [], []

    def publish(data: bytes, kind: str) -> str:
        url = f"{address}/{len(served)}.jpg"
        served.append(data)
        truth[url] = kind
        return url

    for product, paths in photos.items():
        clean = [path.read_bytes() for path in paths]
        shop, buyers = clean[:SHOP_PHOTOS], clean[SHOP_PHOTOS:]
        urls = [publish(data, "shop") for data in shop]
        meta.append({"asin": product, "title": product, "imageURLHighRes": urls})
        published = [publish(data, "clean") for data in buyers]
        for number in range(len(buyers)):
            kind = ("wrong product", "close-up", "wrong product", "damaged")[number % 4]
            others = photos[chance.choice([other for other in photos if other != product])]
            source = chance.choice(others if kind == "wrong product" else paths)
            published.append(publish(useless(source, kind, chance), kind))
        reviews += [{"asin": product, "overall": 5.0, "image": [url]} for url in published]
    (folder / "served").mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(served):
        (folder / "served" / f"{number:05d}.jpg").write_bytes(data)
    for name, rows in (("Demo.json", reviews), ("meta_Demo.json", meta)):
        write_text(folder / name, "\n".join(json.dumps(row) for row in rows) + "\n")
    write_json(folder / "truth.json", truth)
    return folder / "truth.json"


def useless(path: Path, kind: str, chance: random.Random) -> bytes:
    """A photo that a buyer should not have sent."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    if kind == "close-up":
        w, h = width // 5, height // 5
        x, y = chance.randint(0, width - w), chance.randint(0, height - h)
        image = image.crop((x, y, x + w, y + h)).resize((width, height), Image.Resampling.BICUBIC)
    elif kind == "damaged":
        image = image.filter(ImageFilter.GaussianBlur(width / 12)).point(lambda v: v // 4)
    else:  # the same photo elsewhere: other bytes, as another buyer's camera would give
        margin = max(1, width // 30)
        image = image.crop((margin, margin, width - margin, height - margin))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def build(folder: Path, model: Path) -> None:
    """All five steps."""
    build_pairs(
        PairsConfig(
            folder=folder,
            categories=["Demo"],
            run=model,
            thresholds=[UNFILTERED, *THRESHOLDS],
            images=folder / "images_mean_50k",
            evaluation=[Path("dataset/demo/development_test_data")],
            pictures=0,
            download=DownloadConfig(size_hint=0, rate=0, allow_private=True),
        )
    )


def kept_quality(folder: Path) -> list[Row]:
    """Precision and recall of the buyers' photos that each threshold keeps."""
    truth = json.loads((folder / "truth.json").read_text("utf-8"))
    clean = {url for url, kind in truth.items() if kind == "clean"}
    everything = {url for url, kind in truth.items() if kind != "shop"}
    rows = []
    for threshold in THRESHOLDS:
        table = pd.read_parquet(folder / f"Demo_mean_{str(threshold).replace('.', '')}.parquet")
        kept = set(table.loc[table["role"] == "user", "url"])
        right = len(kept & clean)
        share = len(clean) / len(everything)
        peer = "everything kept"
        rows += [
            higher_is_better(
                f"precision at {threshold}", right / max(len(kept), 1), peer, share, ""
            ),
            higher_is_better(f"recall at {threshold}", right / len(clean), peer, 1.0, ""),
        ]
        for kind in ("wrong product", "close-up", "damaged"):
            of_kind = {url for url, found in truth.items() if found == kind}
            print(f"at {threshold}: {len(kept & of_kind)} of {len(of_kind)} kept: {kind}")
    return rows


def trained_on_pairs(folder: Path, seeds: Sequence[int]) -> Iterator[tuple[str, list[float]]]:
    """mAP after the third phase on each table, over the seeds."""
    tables = {"unfiltered": "minus1", "above 0.5": "05", "above 0.6": "06"}
    for case, name in tables.items():
        table = folder / f"amazon_review_mean_{name}_full_images.csv"
        yield (
            case,
            [
                train(
                    "config/demo/xbm_1st.yml",
                    f"pairs_quality_{name}_{seed}",
                    table,
                    folder / "images_mean_50k",
                    seed,
                    *("--pretrain_model", f"runs/{FIRST}"),
                )
                for seed in seeds
            ],
        )


def measure(options: Namespace) -> tuple[list[Row], list[str]]:
    """All of it."""
    photos = photos_by_product()
    names = sorted(photos)
    random.Random(0).shuffle(names)
    half = names[: len(names) // 2]
    WORK.mkdir(parents=True, exist_ok=True)
    first = WORK / "first.csv"
    lines = [f"{path.relative_to(DEMO)},{name}" for name in half for path in photos[name]]
    write_text(first, "\n".join(["file_name,label", *lines]) + "\n")
    before = train("config/demo/arcface_1st.yml", FIRST, first, DEMO, 42)

    reviewed = {name: photos[name] for name in names[len(names) // 2 :]}
    if not (WORK / "images_mean_50k.parquet").is_file():
        folder = WORK / "served"
        # The addresses stand in the files, so the files are written once the port is known.
        with photo_server(folder) as address:
            write_reviews(reviewed, address, WORK, seed=0)
            build(WORK, Path("runs") / FIRST)
    rows = kept_quality(WORK)
    scores = dict(trained_on_pairs(WORK, range(options.seeds)))
    plain = float(np.mean(scores["unfiltered"]))
    for case in ("above 0.5", "above 0.6"):
        mean = float(np.mean(scores[case]))
        rows.append(higher_is_better(f"mAP, pairs {case}", mean, "unfiltered", plain, ""))
    notes = [f"mAP before, after the first phase on the other half: {before:.4f}"]
    notes += [
        f"mAP on pairs {case}: " + ", ".join(f"{score:.4f}" for score in found)
        for case, found in scores.items()
    ]
    return rows, notes


def main() -> None:
    """Measure and record."""
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings on each table")
    options = parser.parse_args()
    rows, notes = measure(options)
    report("pairs-quality", rows, [processor(), *notes], options)


if __name__ == "__main__":
    exit_with_sentence(main)
