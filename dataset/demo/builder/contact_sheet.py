"""An overview picture: each development product's seller photos beside its boxed user photos."""

import csv
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw

CELL = 150
ROWS = 24
SELLERS, USERS = 2, 3


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _thumbnail(path: Path, box: tuple[int, int, int, int] | None) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    if box:
        x, y, w, h = box
        ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + h - 1), outline="red", width=2)
    picture.thumbnail((CELL - 4, CELL - 4))
    return picture


def write_contact_sheet(output: Path, target: Path) -> None:
    """Draw the first ROWS x 2 development products of the data set in `output` to `target`."""
    folder = output / "development_test_data"
    sellers: dict[str, list[Path]] = defaultdict(list)
    users: dict[str, list[tuple[Path, tuple[int, int, int, int]]]] = defaultdict(list)
    for row in _rows(folder / "gallery.csv"):
        sellers[row["product_id"]].append(folder / row["img_path"])
    for row in _rows(folder / "queries.csv"):
        x, y, w, h = (int(row[f"bbox_{side}"]) for side in "xywh")
        users[row["product_id"]].append((folder / row["img_path"], (x, y, w, h)))
    columns = SELLERS + USERS
    sheet = Image.new("RGB", (2 * columns * CELL, ROWS * CELL), "grey")
    for place, product in enumerate(sorted(sellers, key=int)[: 2 * ROWS]):
        left, top = (place % 2) * columns * CELL, (place // 2) * CELL
        for i, path in enumerate(sellers[product][:SELLERS]):
            sheet.paste(_thumbnail(path, None), (left + i * CELL, top))
        for i, (path, box) in enumerate(users[product][:USERS], start=SELLERS):
            sheet.paste(_thumbnail(path, box), (left + i * CELL, top))
    sheet.save(target)
