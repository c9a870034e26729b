"""`make demo` itself is run by .ci/run; here: what it does when a step fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visual_search import main_demo
from visual_search.errors import UserError


def test_a_failing_step_stops_the_demo_with_its_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"python -c 'import sys; sys.exit\(3\)'` ended with 3"):
        main_demo.python("-c", "import sys; sys.exit(3)")
    assert "$ python -c" in capfd.readouterr().out


def test_it_is_started_in_the_top_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main_demo"])
    with pytest.raises(UserError, match="make demo"):
        main_demo.main()


def test_the_summary_is_what_the_steps_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(project / "config")
    monkeypatch.setattr("sys.argv", ["main_demo"])
    commands: list[tuple[str, ...]] = []

    def stand_in(*arguments: str) -> None:
        commands.append(arguments)
        if arguments[0] == "local_evaluation.py":
            output = Path(arguments[arguments.index("--output") + 1])
            output.mkdir(parents=True)
            score = 0.4 if "zero_shot" in str(output) else 0.6
            values = {"mAP": score, "images_per_second": 30.0}
            (output / "result.json").write_text(json.dumps(values))
        if "visual_search.main_phases" in arguments:
            rows = [
                {"name": name, "mAP": score, "epoch": 1, "seconds": 2.5, "state": "trained"}
                for name, score in (("demo_a", 0.5), ("demo_b", 0.62), ("demo_c", 0.61))
            ]
            Path("runs/demo/phases.json").write_text(json.dumps({"phases": rows}))

    monkeypatch.setattr(main_demo, "python", stand_in)
    main_demo.main()
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())
    assert (summary["zero_shot_map"], summary["trained_map"]) == (0.4, 0.6)
    assert [row["mAP"] for row in summary["phases"]] == [0.5, 0.62, 0.61]
    assert ("my_submission/to_torchscript.py", "runs/demo_b") in commands  # the best, not the last
    assert summary["seconds"] >= 0
    assert [c[0] for c in commands if c[0] != "-m"] == [
        "my_submission/to_torchscript.py",
        "local_evaluation.py",
    ] * 2
