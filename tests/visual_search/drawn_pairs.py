"""Drawn products whose names say what is drawn: colours and forms, some never seen together."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from visual_search.text.pairs import CLUSTER_FIELDS, SCHEMA, write_pairs

COLOURS = {
    "красный": (200, 30, 30),
    "зелёный": (30, 170, 40),
    "синий": (30, 50, 200),
    "чёрный": (10, 10, 10),
    "жёлтый": (225, 205, 20),
    "розовый": (240, 90, 190),
}
FORMS = ("квадрат", "круг", "крест", "полоса")
HELD_OUT = {
    (colour, FORMS[(number + step) % 4])
    for number, colour in enumerate(COLOURS)
    for step in ((1,) if number % 2 else (0, 2))
}
"""Nine of 24 products; every colour and every form is in the others."""


def draw(colour: str, form: str, photo: int, side: int = 40) -> Image.Image:
    """One photo of a product; place, size and background are the photo's own."""
    rng = np.random.default_rng([photo, *f"{colour} {form}".encode()])
    grey = int(rng.integers(190, 255))
    image = Image.new("RGB", (side, side), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    size = int(rng.integers(side // 2, side * 3 // 4))
    x, y = (int(v) for v in rng.integers(1, side - size, 2))
    frame, fill = (x, y, x + size, y + size), COLOURS[colour]
    if form == "квадрат":
        pen.rectangle(frame, fill=fill)
    elif form == "круг":
        pen.ellipse(frame, fill=fill)
    elif form == "полоса":
        pen.rectangle((x, y + 2 * size // 5, x + size, y + 3 * size // 5), fill=fill)
    else:
        third = size // 3
        pen.rectangle((x, y + third, x + size, y + 2 * third), fill=fill)
        pen.rectangle((x + third, y, x + 2 * third, y + size), fill=fill)
    return image


def pair_row(path: str, queries: list[str], **more: Any) -> dict[str, Any]:
    """A row of the table of pairs; what `more` does not say is that of a plain one."""
    row = {"image_path": path, "image": path, "queries": queries, "texts": queries}
    row |= {"language": ["ru"] * len(queries), "group": path, "category": "", "split": "train"}
    return row | more


def write_drawn_pairs(folder: Path, photos: int = 6, *, clusters: bool = False) -> Path:
    """Photos and their table; names that are held out are of the split test.

    `clusters`: with a cluster of each query and photo, the number of its form.
    """
    rows: list[dict[str, Any]] = []
    (folder / "photos").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        for place, form in enumerate(FORMS):
            test = (colour, form) in HELD_OUT
            for photo in range(photos):
                name = f"photos/{number}_{place}_{photo}.png"
                draw(colour, form, photo).save(folder / name)
                product, split = f"{colour} {form}", "test" if test else "train"
                queries = [product, f"{form} {colour}"]
                more = {"clusters": [place, place], "cluster": place}
                rows.append(pair_row(name, queries, group=product, split=split, **more))
    schema = pa.schema([*SCHEMA, *CLUSTER_FIELDS]) if clusters else SCHEMA
    table = pa.Table.from_pylist(rows, schema=schema)
    write_pairs(folder / "pairs.parquet", table)
    return folder / "pairs.parquet"


def small_clip(pairs: Path) -> dict[str, Any]:
    """Settings with which the drawn products are learnt within seconds."""
    return {
        "dataset": {
            "pairs": str(pairs),
            "input_size": 32,
            "batch_size": 30,
            "augmentations": "flip",
            "num_workers": 0,
        },
        "backbone": {"name": "timm/test_resnet", "weights": "none"},
        "text": {"towers": ["hashed"], "buckets": 500, "dimension": 32},
        "projection": {"dimension": 32},
        "loss": {"temperature": 0.1},
        "optim": {"head_lr": 0.01, "backbone_lr_ratio": 0.5, "warmup_steps": 4},
        "train": {"epochs": 20, "validate_every": 20, "log_steps": 1},
    }
