import json
from pathlib import Path

import pytest

import local_evaluation
from local_evaluation import data_folder, main
from tests.commands import stopped, told


def test_the_command_prints_and_writes_the_score(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    (dev_folder / "queries" / "3_0.png").write_bytes(b"")
    table = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(table.replace("58,58,104", "58,58,999", 1))
    said = told(main, "--data-folder", dev_folder, "--weights", weights, "--output", output)
    result = json.loads((output / "result.json").read_text())
    assert f"{{'mAP': {result['mAP']}}}" in said
    assert 0 < result["mAP"] < 1
    assert result["seconds"] > 0
    assert result["images_per_second"] == pytest.approx(20 / result["seconds"], rel=0.2)
    assert (result["queries"], result["gallery"]) == (10, 10)
    assert result["queries_without_match"] == 1
    assert "1 of 10 queries have no match in the gallery; each counts as 0" in said
    assert [Path(p["path"]).name for p in result["problems"]] == ["3_0.png"]
    assert "images/s" in said
    assert str(output / "report.html") in said
    assert "3_0.png" in (output / "report.html").read_text()

    # The environment variable names the folder as well as the option does.
    other = tmp_path / "other"
    monkeypatch.setenv("AICROWD_DATASET_DIR", str(dev_folder))
    told(main, "--weights", weights, "--output", other)
    assert json.loads((other / "result.json").read_text())["mAP"] == result["mAP"]


def test_what_cannot_be_scored_is_one_sentence(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AICROWD_DATASET_DIR", "VISUAL_SEARCH_WEIGHTS", "VISUAL_SEARCH_RANKER_LOG"):
        monkeypatch.setenv(name, "")  # what the command sets is taken back afterwards
    output = ("--output", tmp_path / "out")
    here, model = ("--data-folder", dev_folder), ("--weights", weights)
    assert "no model in" in stopped(main, *here, *output, "--weights", tmp_path / "none")
    assert "nowhere" in stopped(main, *model, *output, "--data-folder", "nowhere")
    for path in sorted((dev_folder / "gallery").iterdir())[:5]:
        path.write_bytes(b"")
    assert "5 of 20 images could not be read" in stopped(main, *here, *model, *output)
    # Where the result cannot be written, nothing is ranked first.
    monkeypatch.setattr(local_evaluation, "run_submission", lambda *_: pytest.fail("ranked"))
    said = stopped(main, *here, *model, "--output", dev_folder / "queries.csv" / "out")
    assert "queries.csv/out cannot be written (Not a directory): name another" in said
    (dev_folder / "queries.csv").unlink()
    assert "queries.csv does not exist" in stopped(main, *here, *model, *output)
    assert not (tmp_path / "out" / "result.json").exists()


def test_which_folder_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AICROWD_DATASET_DIR", raising=False)
    assert data_folder(None) == Path("dataset/demo/development_test_data")
    (tmp_path / "public_dataset").mkdir()
    assert data_folder(None) == Path("public_dataset")
    monkeypatch.setenv("AICROWD_DATASET_DIR", "/data")
    assert data_folder(None) == Path("/data")
    assert data_folder(Path("named")) == Path("named")
