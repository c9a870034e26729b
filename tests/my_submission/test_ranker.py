import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from my_submission import to_torchscript
from my_submission.aicrowd_wrapper import AIcrowdWrapper
from my_submission.user_config import My_Ranker
from tests.commands import inside
from tests.conftest import write_csv


@pytest.fixture
def weights(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ranker looks for them."""
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(weights))
    return weights


def ranker(folder: Path) -> My_Ranker:
    return My_Ranker(str(folder), str(folder / "gallery.csv"), str(folder / "queries.csv"))


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


def test_product_ids_are_not_needed_nor_used(weights: Path, dev_folder: Path) -> None:
    with_ids = ranker(dev_folder).predict_product_ranks()
    for name in ("gallery.csv", "queries.csv"):
        lines = (dev_folder / name).read_text().splitlines()
        (dev_folder / name).write_text("\n".join(line.rpartition(",")[0] for line in lines))
    np.testing.assert_array_equal(ranker(dev_folder).predict_product_ranks(), with_ids)


def test_every_query_has_a_row_whatever_is_broken(
    weights: Path, dev_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ranker(dev_folder).predict_product_ranks()
    (dev_folder / "queries" / "0_0.png").write_bytes(b"")
    (dev_folder / "queries" / "0_1.png").write_bytes(b"<html>not found</html>")
    (dev_folder / "queries" / "1_0.png").unlink()
    cmyk = Image.open(dev_folder / "queries" / "1_1.png").convert("CMYK")
    cmyk.save(dev_folder / "queries" / "1_1.png", "JPEG")
    content = (dev_folder / "queries.csv").read_text().splitlines()
    content[5] = content[5].replace("2,2,58,58", "900,900,5,5")
    content[6] = content[6].replace("2,2,58,58", ",nan,-3,x")
    (dev_folder / "queries.csv").write_text("\n".join(content))
    ranks = ranker(dev_folder).predict_product_ranks()
    assert ranks.shape == (10, 1000)
    assert all(len(set(row)) == 1000 for row in ranks.tolist())
    # What is broken costs its own row only.
    np.testing.assert_array_equal(ranks[6:], whole[6:])
    printed = capsys.readouterr().out
    assert "5 images were damaged or had a wrong box" in printed
    assert "0 bytes" in printed
    assert "web page" in printed


class Broken(io.TextIOBase):
    """A stream of which every write fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, _: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


STREAMS: dict[str, Callable[[], Any]] = {
    "closed before the start": lambda: None,
    "closed": lambda: Broken(ValueError("I/O operation on closed file")),
    "full": lambda: Broken(OSError(errno.ENOSPC, "No space left on device")),
    "a broken pipe": lambda: Broken(BrokenPipeError()),
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
    before = sys.stdout
    ranks = ranker(dev_folder).predict_product_ranks()
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
        ranker(dev_folder).predict_product_ranks()
        printed = capsys.readouterr().out
        assert ("WARNING: 5 of 20 images could not be read" in printed) == (number == 5)


def test_what_is_missing_goes_through_the_evaluators_channel(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(dev_folder / "gallery.csv", ["seller_img_id", "img_path"], [])
    with pytest.raises(NameError, match="no gallery image"):
        ranker(dev_folder)
    write_csv(dev_folder / "gallery.csv", ["seller_img_id", "image"], [[0, "a"]])
    with pytest.raises(NameError, match=r"gallery\.csv has no column 'img_path'"):
        ranker(dev_folder)
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(tmp_path / "empty"))
    (dev_folder / "gallery.csv").write_text("seller_img_id,img_path\n0,gallery/0_0.png\n")
    with pytest.raises(NameError, match=r"to_torchscript\.py"):
        ranker(dev_folder)


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
    wrong = run(2, copy, "--output", copy, "--rerank", "swaped_dba")
    assert "--rerank[0].name is 'swaped_dba'; it can be power, center," in wrong
    assert "runs/there-is-no-such-run" in run(2, Path("runs/there-is-no-such-run"))
