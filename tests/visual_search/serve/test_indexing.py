"""Filling an index by the command: new, changed, gone, damaged; another model beside it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import stopped, told
from tests.conftest import draw_product, write_csv
from visual_search import main_evaluate, main_index
from visual_search.data.images import ImageItem, load_pixels
from visual_search.ranking.export import load_exported
from visual_search.serve.records import IndexedImage
from visual_search.serve.store import Store


@pytest.fixture
def own_shop(shop: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(shop.parent, tmp_path / "shop")) / shop.name


def index(address: str, run: Path, *arguments: object) -> str:
    return told(main_index.main, "--database", address, "--run", run, *arguments)


def lines_of(table: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def write_lines(table: Path, lines: Sequence[Mapping[str, object]]) -> None:
    table.write_text("\n".join(map(json.dumps, lines)))


def test_embeddings_are_the_models(
    address: str, tiny_export: Path, own_shop: Path, store: Store
) -> None:
    said = index(address, tiny_export, "--gallery", own_shop)
    assert "12 products: 12 new or changed, 0 removed; 24 images embedded" in said
    (model,) = store.models()
    images, owners, matrix = store.vectors(model)
    embed, architecture = load_exported(tiny_export, torch.device("cpu"))
    for image, owner, vector in zip(images.tolist(), owners, matrix, strict=True):
        (one,) = store.images(image)
        assert one.product == owner
        assert (one.box == (2, 2, 60, 60)) == one.path.endswith(f"/{owner[1:]}_1.png")
        pixels, _ = load_pixels(one.item, architecture.input_size)
        with torch.inference_mode():
            expected = embed(torch.from_numpy(pixels)[None])[0].numpy()
        assert float(vector @ expected) == pytest.approx(1, abs=2e-3)


def test_only_what_changed_is_embedded_again(
    address: str, tiny_export: Path, own_shop: Path, store: Store
) -> None:
    index(address, tiny_export, "--gallery", own_shop)
    again = index(address, tiny_export, "--gallery", own_shop)
    assert "0 new or changed, 0 removed; 0 images" in again
    lines = lines_of(own_shop)
    lines[0]["title"] = "another"  # facts alone
    draw_product(50, 0).save(own_shop.parent / "1_0.png")  # a file
    os.utime(own_shop.parent / "1_0.png", (1, 1))
    (own_shop.parent / "2_1.png").write_bytes(b"no image")  # damaged
    lines[3]["images"] = ["3_0.png"]  # an image less
    write_lines(own_shop, lines[:-1])  # a product less
    said = index(address, tiny_export, "--gallery", own_shop, "--sync")
    assert "11 products: 4 new or changed, 1 removed; 1 images embedded" in said
    assert "1 images left out" in said
    assert "2_1.png: not an image" in said
    assert store.product_ids() == {f"p{n}" for n in range(11)}
    assert len(store.images()) == len(store.vectors(store.models()[0])[0]) == 24 - 1 - 1 - 2
    assert store.products(["p0"])["p0"].title == "another"
    again = index(address, tiny_export, "--gallery", own_shop)
    assert "0 new or changed, 0 removed; 0 images embedded; 1 images left out" in again
    # What could not be read can be, with nothing changed in size or time, as by a permission.
    damaged = own_shop.parent / "2_1.png"
    draw_product(2, 1).save(damaged)
    with store.connection() as connection:
        change = "UPDATE images SET fingerprint = %s WHERE problem IS NOT NULL"
        connection.execute(change, (IndexedImage.of(ImageItem(damaged)).fingerprint,))
    assert "1 new or changed, 0 removed; 1 images" in index(
        address, tiny_export, "--gallery", own_shop
    )


def test_another_model_is_filled_beside_and_takes_over(
    address: str, tiny_export: Path, other_export: Path, shop: Path, store: Store
) -> None:
    index(address, tiny_export, "--gallery", shop)
    other = ("--database", address, "--run", other_export)
    assert f"--run {tiny_export}" in stopped(main_index.main, *other, "--gallery", shop)
    said = index(address, other_export)
    assert "24 images embedded" in said
    assert "--switch changes over" in said
    assert [model.current for model in store.models()] == [True, False]
    assert "add --switch" in stopped(main_index.main, *other, "--drop-old")
    assert "answers from now on" in index(address, other_export, "--switch")
    assert [model.current for model in store.models()] == [False, True]
    said = told(main_index.main, "--database", address, "--drop-old")
    assert f"dropped: {tiny_export.name}" in said


def test_judged_queries_calibrate_and_compare(
    address: str, tiny_export: Path, other_export: Path, tmp_path: Path, store: Store
) -> None:
    products = [{"id": f"{n}", "images": [f"{n}_0.png"]} for n in range(50)]
    rows = []
    for number in range(50):
        for photo in range(2):
            draw_product(number, photo).save(tmp_path / f"{number}_{photo}.png")
        rows.append([number, f"{number}_1.png", 0, 0, 64, 64, number])
    write_lines(tmp_path / "products.jsonl", products)
    header = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "product_id"]
    judged = write_csv(tmp_path / "queries.csv", header, rows)
    said = index(address, tiny_export, "--gallery", tmp_path / "products.jsonl", "--judged", judged)
    assert "calibrated on 100 answers" in said
    assert store.models()[0].calibration
    said = index(address, other_export, "--judged", judged)
    assert "| judged queries | mAP@1000 |" in said
    assert " products:" not in said
    assert "undecided" in said or "is better" in said

    export = ("--database", address, "--export-clicks", tmp_path / "a task, or b")
    assert "--log-images" in stopped(main_index.main, *export)
    model = store.models()[0]
    for number in range(12):
        image = str(tmp_path / f"{number}_1.png")
        query = store.log_query(model.id, image=image, box=[0, 0, 64, 64])
        assert store.log_click(query, f"{number}")
    query = store.log_query(model.id, liked=store.images()[20].id)
    store.log_click(query, "3")
    said = told(main_index.main, *export)
    assert "13 queries, 50 images" in said
    assert shlex.split(said)[-1] == str(tmp_path / "a task, or b" / "clicks.yml")
    assert len(store.clicked(photos=True)) == 12
    task = ("--tasks", tmp_path / "a task, or b" / "clicks.yml", "--cache", tmp_path / "cache")
    where = ("--run", tiny_export, "--output", tmp_path / "scores")
    assert "Clicks" in told(main_evaluate.main, "tasks", *where, *task)
    store.delete(["5"])  # sold: its clicks judge nothing
    assert len(store.clicked(photos=True)) == 11


def test_what_was_missing_by_a_kill_is_made_up(
    address: str, tiny_export: Path, shop: Path, store: Store
) -> None:
    index(address, tiny_export, "--gallery", shop)
    (model,) = store.models()
    before = store.vectors(model)
    with store.connection() as connection:
        connection.execute("DELETE FROM embeddings WHERE image % 2 = 0")
    index(address, tiny_export)
    images, owners, matrix = store.vectors(model)
    assert np.array_equal(images, before[0])
    assert np.array_equal(owners, before[1])
    assert np.allclose(matrix, before[2], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database", "x"], "nothing to do"),
        (["--gallery", "x.csv", "--drop-old"], "--run is missing"),
        (["--run", "runs/none", "--sync"], "--sync needs --gallery"),
        (["--run", "runs/none", "--diagram", "x.png"], "--diagram needs --judged"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], words: str) -> None:
    assert words in stopped(main_index.main, *arguments)
