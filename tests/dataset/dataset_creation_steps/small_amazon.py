"""Reviews and products in Amazon's format with every kind of dirt, and the csv they must give.

The expected csv is worked out here by plain loops, from what the files were made of.
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import ImageServer

PASSING = ("429", "503", "moved")
FAULTS = (
    *PASSING,
    *("404", "down", "slow", "truncated", "cut", "html", "page", "loop", "private", "file"),
    *("pixel", "empty", "reset"),
)
QUICK_FAULTS = tuple(fault for fault in FAULTS if fault != "slow")


@dataclass
class Truth:
    """Which image (name on the server) each address of a product gives; None for a broken one."""

    product: dict[str, dict[str, str | None]] = field(default_factory=dict)
    user: dict[str, dict[str, str | None]] = field(default_factory=dict)


def make_images(products: int) -> dict[str, bytes]:
    """Two images of the shop's and three of buyers for each product; and one in one size only."""
    images = {f"{p}x{i}.jpg": jpeg(p, i) for p in range(products) for i in range(5)}
    images["exact/only.jpg"] = jpeg(0, 77)
    return images


def write_files(
    folder: Path, server: ImageServer, products: int, faults: Sequence[str] = FAULTS
) -> Truth:
    """`X.json.gz` (cut short) and `meta_X.json`; what they hold."""
    truth = Truth()
    reviews: list[Any] = []
    meta: list[Any] = []
    for p in range(products):
        asin = f"B{p:03d}"
        truth.product[asin], truth.user[asin] = {}, {}
        _product(asin, p, server, truth, meta)
        for i in range(2, 5):
            # Every fifth image shows another product.
            shown = (p + 7) % products if (3 * p + i) % 5 == 0 else p
            url = server.url(f"images/I/{shown}x{i}._SY88.jpg")
            truth.user[asin][url] = f"{shown}x{i}.jpg"
            reviews.append({"asin": asin, "overall": 5.0, "image": [url], "verified": True})
        reviews.append({"asin": asin, "overall": 1.0, "reviewText": 'no "image": here'})
    for number, fault in enumerate(faults):
        asin = f"B{number % products:03d}"
        url = server.url(f"{fault}/{number % products}x4.jpg")
        truth.user[asin][url] = f"{number % products}x4.jpg" if fault in PASSING else None
        reviews.append({"asin": asin, "image": [url]})
    only = server.url("images/I/exact/only.jpg")
    truth.user["B000"][only] = "exact/only.jpg"
    reviews += [
        {"asin": "B000", "image": only},  # a string in place of a list
        {"asin": "B001", "image": [None, "not a url", {"x": 1}]},
        {"asin": "B002", "image": 7},
        {"image": [server.url("images/I/1x3.jpg")]},
        {"asin": "NOT_SOLD", "image": [server.url("images/I/1x3.jpg")]},
    ]
    _write(folder, reviews, meta)
    return truth


def _product(asin: str, p: int, server: ImageServer, truth: Truth, meta: list[Any]) -> None:
    urls = [server.url(f"images/I/{p}x{i}.jpg") for i in range(2)]
    small = [url.replace(".jpg", "._SS40_.jpg") for url in urls]
    truth.product[asin] = {urls[0]: f"{p}x0.jpg", urls[1]: f"{p}x1.jpg"}
    if p % 4 == 0:  # the same product twice, an image each
        meta.append({"asin": asin, "title": "t", "imageURLHighRes": urls[:1]})
        meta.append({"asin": asin, "title": "t", "imageURLHighRes": urls[1:]})
    elif p % 4 == 1:  # only the small ones
        meta.append({"asin": asin, "title": "t", "imageURL": small, "imageURLHighRes": []})
        truth.product[asin] = {small[0]: f"{p}x0.jpg", small[1]: f"{p}x1.jpg"}
    elif p % 4 == 2:  # a string
        meta.append({"asin": asin, "title": "t", "imageURLHighRes": urls[0]})
        del truth.product[asin][urls[1]]
    else:
        meta.append({"asin": asin, "imageURL": small, "imageURLHighRes": urls})
    junk = "var aPageStart = (new Date()).getTime();"
    meta.append({"asin": asin, "title": junk, "imageURLHighRes": [server.url("404/junk.jpg")]})


def _write(folder: Path, reviews: list[Any], meta: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in reviews]
    lines[3:3] = [
        '{"asin": "B00',
        "",
        "[1, 2]",
        '{"asin": "B\xff"'.encode("latin-1").decode("latin-1"),
    ]
    filler = [json.dumps({"asin": "B000", "reviewText": str(n) * 9}) for n in range(5_000)]
    packed = gzip.compress("\n".join([*lines, *filler]).encode())
    (folder / "X.json.gz").write_bytes(packed[: len(packed) * 3 // 4])
    (folder / "meta_X.json").write_text("\n".join(json.dumps(row) for row in meta))


def expected_csv(
    truth: Truth, images: dict[str, bytes], vectors: dict[str, np.ndarray], threshold: float
) -> list[tuple[str, str]]:
    """Path and label of each image to train on, sorted as in the csv; 0.5 was downloaded."""
    means: list[tuple[float, str, str, str]] = []  # mean, asin, url, name
    for asin, shop in truth.product.items():
        sides = [
            {url: name for url, name in side.items() if name is not None}
            for side in (shop, truth.user[asin])
        ]
        for side, other in ((sides[0], sides[1]), (sides[1], sides[0])):
            for url, name in side.items():
                cosines = [
                    sum(float(a) * float(b) for a, b in zip(vectors[name], vectors[x], strict=True))
                    for x in other.values()
                ]
                if cosines:
                    means.append((sum(cosines) / len(cosines), asin, url, name))
    kept = _enough([row for row in means if row[0] > 0.5])
    best: dict[bytes, tuple[float, str, str, str]] = {}
    for row in sorted(kept, key=lambda row: (-row[0], row[1], row[2])):
        best.setdefault(images[row[3]], row)
    final = _enough([row for row in best.values() if row[0] > threshold])
    digests = [(hashlib.sha256(images[row[3]]).hexdigest()[:32], row[1]) for row in final]
    return sorted(((f"000/{digest}.jpg", asin) for digest, asin in digests), key=lambda x: x[::-1])


def _enough(rows: list[tuple[float, str, str, str]]) -> list[tuple[float, str, str, str]]:
    labels = [row[1] for row in rows]
    return [row for row in rows if labels.count(row[1]) >= 2]


def embedded(images: dict[str, bytes], run: Path, folder: Path) -> dict[str, np.ndarray]:
    from visual_search.data.images import ImageItem
    from visual_search.model.checkpoint import load_checkpoint
    from visual_search.ranking.embed import embed_images

    folder.mkdir(parents=True)
    model = load_checkpoint(run).embedder()
    paths = [folder / name.replace("/", "_") for name in images]
    for path, data in zip(paths, images.values(), strict=True):
        path.write_bytes(data)
    found = embed_images(
        model, [ImageItem(path) for path in paths], 64, device=torch.device("cpu"), progress=False
    )
    return dict(zip(images, found.matrix.numpy(), strict=True))
