"""`make demo` and `make demo-text` are run by .ci/run; here: what they do around the commands."""

import json
from pathlib import Path

import pytest

from tests.commands import refused, stopped, told
from tests.conftest import csv_rows
from visual_search import main_demo
from visual_search.common import processes
from visual_search.common.files import write_json


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
            write_json(output / "result.json", {"mAP": score, "images_per_second": 30.0})
        if "visual_search.main_phases" in arguments:
            scores = {"demo_a": 0.5, "demo_b": 0.62, "demo_c": 0.61}
            rows = [{"name": k, "mAP": v, "epoch": 1, "seconds": 2.5} for k, v in scores.items()]
            write_json(Path("runs/demo/phases.json"), {"phases": rows})

    monkeypatch.setattr(main_demo, "python", stand_in)
    return called


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


def test_every_category_of_the_catalogue_has_names(project: Path) -> None:
    names = json.loads((project / "dataset/demo/categories.json").read_text())
    used = {row["category"] for row in csv_rows(project / "dataset/demo/products.csv")}
    assert used == set(names)
    assert all(names.values())
