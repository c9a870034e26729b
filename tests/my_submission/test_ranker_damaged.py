"""Whatever is broken: every query has a valid row, nothing crashes, all failures are listed."""

import json
from pathlib import Path

import numpy as np
import pytest

from my_submission.user_config import My_Ranker
from tests.conftest import draw_product, write_csv
from tests.my_submission.damaged_files import NOTHING, PARTLY, PIXELS, write_files

BOX_HEADER = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


@pytest.fixture
def log(tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(tiny_export))
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(tmp_path / "log.json"))
    return tmp_path / "log.json"


def ranked(folder: Path) -> np.ndarray:
    ranker = My_Ranker(str(folder), str(folder / "gallery.csv"), str(folder / "queries.csv"))
    return ranker.predict_product_ranks()


def is_valid(ranks: np.ndarray, n_queries: int) -> bool:
    return (
        ranks.shape == (n_queries, 1000)
        and np.issubdtype(ranks.dtype, np.integer)
        and bool((ranks >= 0).all())
        and all(len(set(row)) == 1000 for row in ranks.tolist())
    )


def test_damaged_and_odd_files_on_both_sides(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    expected = write_files(folder / "files")
    draw_product(1, 0).save(folder / "good.png")
    names = [f"files/{name}" for name in expected]
    gallery = [[n, name] for n, name in enumerate(["good.png", *names])]
    queries = [[n, name, 0, 0, 90_000, 90_000] for n, name in enumerate(["good.png", *names])]
    write_csv(folder / "gallery.csv", ["seller_img_id", "img_path"], gallery)
    write_csv(folder / "queries.csv", BOX_HEADER, queries)
    monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", '{"trim_borders": true, "flip": true}')
    ranks = ranked(folder)
    assert is_valid(ranks, len(queries))
    assert all(set(row) == set(range(1000)) for row in ranks.tolist())
    reasons: dict[str, set[str]] = {}
    for problem in json.loads(log.read_text())["problems"]:
        reasons.setdefault(Path(problem["path"]).name, set()).add(problem["reason"])
    for name, outcome in expected.items():
        told = reasons.get(name, set())
        grey = any("a grey image is used" in reason for reason in told)
        damaged = any("readable part" in reason for reason in told)
        assert not (outcome == NOTHING and not grey), (name, told)
        assert not (outcome == PARTLY and not (damaged or grey)), (name, told)
        assert not (outcome == PIXELS and (grey or damaged)), (name, told)
    # The box reaches outside every photo; only the good one of the gallery has nothing to tell.
    assert reasons["good.png"] == {next(iter(reasons["good.png"]))}
    assert "clipped" in next(iter(reasons["good.png"]))


BOXES: dict[str, list[object]] = {
    "empty": ["", "", "", ""],
    "text": ["a", "b", "c", "d"],
    "nan": ["nan", "NaN", "inf", "-inf"],
    "negative": [-40, -40, 20, 20],
    "no area": [5, 5, 0, 9],
    "negative size": [5, 5, -9, 9],
    "huge": [10**30, 0, 10**30, 9],
    "fractions": [1.6, 2.4, 20.5, 30.9],
    "one pixel": [3, 3, 1, 1],
    "outside": [900, 900, 10, 10],
    "over the edge": [50, 50, 500, 500],
    "exponent": ["1e1", "1e1", "2e1", "2e1"],
}


def test_boxes_that_cannot_be_meant_use_the_whole_photo(log: Path, dev_folder: Path) -> None:
    boxes: list[list[object]] = [[2, 2, 58, 58], *BOXES.values()]
    rows = [[n, "queries/0_0.png", *box] for n, box in enumerate(boxes)]
    write_csv(dev_folder / "queries.csv", BOX_HEADER, rows)
    ranks = ranked(dev_folder)
    assert is_valid(ranks, len(rows))
    problems = json.loads(log.read_text())["problems"]
    # Fractions are rounded, one pixel and 1e1 are boxes.
    assert len(problems) == len(BOXES) - 3
    whole = [n + 1 for n, name in enumerate(BOXES) if name in ("empty", "text", "nan", "no area")]
    assert all((ranks[n] == ranks[whole[0]]).all() for n in whole)
