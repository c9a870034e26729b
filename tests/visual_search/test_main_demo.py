"""`make demo` and `make demo-text` are run by .ci/run; here: what they do around the commands."""

import json
from pathlib import Path

import pytest

from tests.commands import refused, stopped, told
from tests.conftest import csv_rows
from visual_search import main_demo
from visual_search.common import processes


@pytest.fixture
def commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> list[tuple[str, ...]]:
    """The demo's commands; each writes what the real one would, and runs nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(project / "config")
    called: list[tuple[str, ...]] = []

    def stand_in(*arguments: str) -> None:
        called.append(arguments)
        if arguments[0] == "local_evaluation.py":
            score = 0.4 if "runs/demo/zero_shot" in arguments else 0.6
            output = Path(arguments[arguments.index("--output") + 1])
            put(output / "result.json", {"mAP": score, "images_per_second": 30.0})
        if "visual_search.main_phases" in arguments:
            table = Path(arguments[3]).parent.name
            rows = [
                {"name": name, "mAP": score, "epoch": 1, "seconds": 2.5, "state": "trained"}
                for name, score in (("demo_a", 0.5), ("demo_b", 0.62), ("demo_c", 0.61))
            ]
            put(Path("runs", table, "phases.json"), {"phases": rows})
            for number, row in enumerate(rows):
                scores = {"text_to_photo": {"R@1": number / 10}, "photo_to_text": {"R@1": 0.5}}
                put(
                    Path("runs", str(row["name"]), "metrics.jsonl"), {"kind": "retrieval", **scores}
                )
        if "visual_search.main_zero_shot" in arguments:
            data = {"categories": {"accuracy": 0.3, "chance": 0.1}}
            put(Path("runs/demo_c/zero_shot/result.json"), {"data": data})

    monkeypatch.setattr(main_demo, "python", stand_in)
    return called


def put(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_a_failing_step_stops_the_demo_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "PRELOADED", [])
    monkeypatch.chdir(tmp_path)
    Path("step.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    refused("`python step.py 3` ended with 3", main_demo.python, "step.py", "3")
    assert "$ python step.py 3" in capfd.readouterr().out


def test_it_is_started_in_the_top_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "make demo" in stopped(main_demo.main)


def test_the_summary_is_what_the_steps_measured(commands: list[tuple[str, ...]]) -> None:
    told(main_demo.main)
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert (summary["zero_shot_map"], summary["trained_map"]) == (0.4, 0.6)
    assert [row["mAP"] for row in summary["phases"]] == [0.5, 0.62, 0.61]
    assert ("my_submission/to_torchscript.py", "runs/demo_b") in commands  # the best, not the last
    assert summary["seconds"] >= 0
    assert [c[0] for c in commands if c[0] != "-m"] == [
        "my_submission/to_torchscript.py",
        "local_evaluation.py",
    ] * 2


def test_the_text_demo_scores_each_stage_and_asks_the_last(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_demo, "write_categories", lambda folder: folder)
    said = told(main_demo.main, "--text")
    summary = json.loads(Path("runs/demo_text/summary.json").read_text())
    found = {name: values["text_to_photo"]["R@1"] for name, values in summary["stages"].items()}
    assert found == {"demo_a": 0.0, "demo_b": 0.1, "demo_c": 0.2}
    assert (summary["zero_shot_accuracy"], summary["zero_shot_chance"]) == (0.3, 0.1)
    modules = [c[1].rpartition(".")[2] for c in commands if c[0] == "-m"]
    assert modules == ["main_phases", "main_zero_shot", "main_query"]
    assert "runs/demo_c" in commands[-1]
    assert "demo_c                photo to text" in said


def test_every_category_of_the_catalogue_has_names(project: Path) -> None:
    names = json.loads((project / "dataset/demo/categories.json").read_text())
    used = {row["category"] for row in csv_rows(project / "dataset/demo/products.csv")}
    assert used == set(names)
    assert all(names.values())
