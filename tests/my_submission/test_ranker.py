import io
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from PIL import Image

from my_submission import to_torchscript
from my_submission.aicrowd_wrapper import AIcrowdWrapper
from tests.commands import inside
from tests.conftest import write_csv
from tests.hostile import HOSTILE, make_hostile
from tests.submissions import my_ranker
from visual_search.common.files import write_json


@pytest.fixture
def weights(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ranker looks for them."""
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(weights))
    return weights


def test_the_wrapper_gives_the_array_of_the_contract(
    weights: Path, dev_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AICROWD_DATASET_DIR", raising=False)
    named = AIcrowdWrapper(str(dev_folder)).predict_product_ranks()
    monkeypatch.setenv("AICROWD_DATASET_DIR", str(dev_folder))
    ranks = AIcrowdWrapper("ignored").predict_product_ranks()
    np.testing.assert_array_equal(ranks, named)
    assert ranks.shape == (10, 1000)
    assert np.issubdtype(ranks.dtype, np.integer)
    assert all(sorted(row[:10]) == list(range(10)) for row in ranks.tolist())
    # Product ids are not needed nor used.
    for name in ("gallery.csv", "queries.csv"):
        lines = (dev_folder / name).read_text().splitlines()
        (dev_folder / name).write_text("\n".join(line.rpartition(",")[0] for line in lines))
    np.testing.assert_array_equal(my_ranker(dev_folder).predict_product_ranks(), ranks)


BOX_HEADER = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(tmp_path / "log.json"))
    return tmp_path / "log.json"


def saved(kind: str, size: tuple[int, int] = (96, 96), mode: str = "RGB", **options: Any) -> bytes:
    """An image of noise, which no format can make much smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


RUBBISH = b"Exif\x00\x00MM\x00*" + b"\xff" * 40
JPEG = saved("JPEG")
ODD = {
    "bad_exif": JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(RUBBISH) + 2) + RUBBISH + JPEG[2:],
    "trailing": JPEG + b"\x00rubbish" * 90,
    "pixel": saved("JPEG", (1, 1)),
    "stripe": saved("JPEG", (3000, 2)),
    "lab": saved("TIFF", mode="LAB"),
    "animated": saved("WEBP", save_all=True, append_images=[Image.new("RGB", (96, 96))]),
}
"""Read without a word."""


def test_every_query_has_a_row_whatever_is_broken(
    weights: Path,
    dev_folder: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", '{"trim_borders": true, "flip": true}')
    whole = my_ranker(dev_folder).predict_product_ranks()
    for name in HOSTILE:
        make_hostile(dev_folder / "files", name)
    whole_files = {kind: saved(kind) for kind in ("PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG")}
    whole_files["progressive"] = saved("JPEG", progressive=True)
    cut = {name: data[: len(data) // 3] for name, data in whole_files.items()}
    for name, data in (cut | ODD).items():
        (dev_folder / "files" / name).write_bytes(data)
    broken = {*HOSTILE, *cut, "missing.jpg", "a" * 300 + ".jpg"}
    for table, names, box in (
        ("gallery.csv", [*broken, *ODD], ""),
        ("queries.csv", broken, ",0,0,9000,9000"),
    ):
        with (dev_folder / table).open("a", encoding="utf-8") as handle:
            handle.writelines(f"9,files/{name}{box},0\n" for name in names)
    ranks = my_ranker(dev_folder).predict_product_ranks()
    assert ranks.shape == (10 + len(broken), 1000)
    assert np.issubdtype(ranks.dtype, np.integer)
    assert all(sorted(row) == list(range(1000)) for row in ranks.tolist())
    # What is broken costs its own row only.
    kept = [row[row < 10].tolist() for row in ranks[:10]]
    assert kept == [row[row < 10].tolist() for row in whole]
    told = {Path(problem["path"]).name for problem in json.loads(log.read_text())["problems"]}
    assert told == broken
    printed = capsys.readouterr().out
    assert f"{2 * len(broken)} images were damaged or had a wrong box" in printed


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


def test_boxes_that_cannot_be_meant_use_the_whole_photo(
    weights: Path, dev_folder: Path, log: Path
) -> None:
    boxes: list[list[object]] = [[2, 2, 58, 58], *BOXES.values()]
    rows = [[n, "queries/0_0.png", *box] for n, box in enumerate(boxes)]
    write_csv(dev_folder / "queries.csv", BOX_HEADER, rows)
    ranks = my_ranker(dev_folder).predict_product_ranks()
    assert ranks.shape == (len(rows), 1000)
    problems = json.loads(log.read_text())["problems"]
    # Fractions are rounded, one pixel and 1e1 are boxes.
    assert len(problems) == len(BOXES) - 3
    whole = [n + 1 for n, name in enumerate(BOXES) if name in ("empty", "text", "nan", "no area")]
    assert all((ranks[n] == ranks[whole[0]]).all() for n in whole)


def broken_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


STREAMS: dict[str, Callable[[], TextIO | None]] = {
    "closed before the start": lambda: None,
    "full": lambda: open("/dev/full", "w", buffering=1),  # noqa: SIM115
    "a broken pipe": broken_pipe,
    "closed": io.StringIO,
    "ASCII": lambda: io.TextIOWrapper(io.BytesIO(), "ascii"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_no_print_costs_the_answer(
    weights: Path, dev_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Something to tell of a file with a Cyrillic name, and no log that could be written."""
    table = (dev_folder / "queries.csv").read_text("utf-8").replace("0_0.png", "стул.png")
    (dev_folder / "queries.csv").write_text(table, "utf-8")
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(dev_folder / "queries.csv" / "log.json"))
    monkeypatch.setattr(sys, "stdout", STREAMS[name]())
    monkeypatch.setattr(sys, "stderr", STREAMS[name]())
    if name == "closed":
        sys.stdout.close()
        sys.stderr.close()
    before = sys.stdout
    ranks = my_ranker(dev_folder).predict_product_ranks()
    assert sys.stdout is before
    monkeypatch.undo()
    assert ranks.shape == (10, 1000)


def test_many_images_that_cannot_be_read_are_shouted(
    weights: Path, dev_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sorted((dev_folder / "gallery").iterdir())
    for number in (4, 5):
        for path in broken[:number]:
            path.write_bytes(b"")
        my_ranker(dev_folder).predict_product_ranks()
        printed = capsys.readouterr().out
        assert ("WARNING: 5 of 20 images could not be read" in printed) == (number == 5)


@pytest.mark.parametrize(
    ("gallery", "expected"),
    [
        ("seller_img_id,img_path\n", "no gallery image"),
        ("seller_img_id,image\n0,a\n", r"gallery\.csv has no column 'img_path'"),
        ("seller_img_id,img_path\n0,gallery/0_0.png\n", r"to_torchscript\.py"),
    ],
)
def test_what_is_missing_goes_through_the_evaluators_channel(
    dev_folder: Path, monkeypatch: pytest.MonkeyPatch, gallery: str, expected: str
) -> None:
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(dev_folder / "no weights"))
    (dev_folder / "gallery.csv").write_text(gallery)
    with pytest.raises(NameError, match=expected):
        my_ranker(dev_folder)


def test_the_export_command(tmp_path: Path) -> None:
    def run(status: int, model: Path, *options: object) -> str:
        done = inside(to_torchscript.main, model, *options)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    plain, out, copy = (tmp_path / name for name in ("tiny.yml", "out", "copy"))
    plain.write_text("name: timm/test_efficientnet\nweights: none\n")
    said = run(0, plain, "--output", out, "--input_size", 32)
    assert f"--weights {out}" in said
    # An export of earlier versions: the ranker reads it, the rest after the user's word.
    (out / "model.safetensors").unlink()
    larger = ("--output", copy, "--input_size", 40, "--rerank", "center", "swapped_dba")
    assert f"to_torchscript.py {out} --trust --output {out}" in run(2, out, *larger)
    said = run(0, out, "--trust", *larger)
    assert "40 px" in said
    assert "ranks by center(scope=joint) + swapped_dba(gallery_neighbours=9" in said
    told = json.loads((copy / "model.json").read_text())
    assert told["architecture"]["input_size"] == 40
    assert [step["name"] for step in told["rerank"]] == ["center", "swapped_dba"]
    assert told["packages"] == ["timm"]
    run(0, copy, "--output", copy, "--rerank", "none")
    assert json.loads((copy / "model.json").read_text())["rerank"] == []
    # A score is of the views that were scored.
    for views, score in (("squash", 0.5), ("letterbox", None)):
        write_json(copy / "model.json", {**told, "mAP": 0.5, "embedding": {"views": ["squash"]}})
        run(0, copy, "--output", copy, "--views", views)
        assert json.loads((copy / "model.json").read_text())["mAP"] == score
    wrong = run(2, copy, "--output", copy, "--rerank", "swaped_dba")
    assert "--rerank[0].name is 'swaped_dba'; it can be power, center," in wrong
    assert "runs/there-is-no-such-run" in run(2, Path("runs/there-is-no-such-run"))
