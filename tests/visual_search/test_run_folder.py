from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visual_search.common.errors import UserError
from visual_search.run_folder import RunFolder


def test_an_unfinished_run_continues_a_finished_one_is_replaced_only_when_asked(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path, "a")
    assert not run.check("x: 1\n", overwrite=False)
    run.start("x: 1\ntrain:\n  epochs: 3\n  save_steps: 1\n")
    run.log(kind="step", step=1)
    # What changes no weight may differ.
    assert run.check("x: 1\ntrain:\n  epochs: 3\n  save_steps: 9\n", overwrite=False)
    with pytest.raises(UserError, match=r"train\.epochs: 3 -> 4.*--overwrite true"):
        run.check("x: 1\ntrain:\n  epochs: 4\n  save_steps: 1\n", overwrite=False)
    (run.path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="finished run"):
        run.check("x: 1\ntrain:\n  epochs: 3\n  save_steps: 1\n", overwrite=False)
    assert not run.check("x: 2\n", overwrite=True)
    assert run.metrics() == [{"kind": "step", "step": 1}]
    run.start("x: 2\n")
    assert run.metrics() == []
    assert (run.path / "config.yml").read_text() == "x: 2\n"


def test_metrics_are_cut_back_to_a_state(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.start("")
    run.log(step=1)
    length = run.metrics_bytes()
    run.log(step=2)
    run.cut_metrics(length)
    assert run.metrics() == [{"step": 1}]
    run.cut_metrics(10_000)
    assert run.metrics() == [{"step": 1}]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/tmp", ".", "..", "a b"])
def test_names_stay_inside_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        RunFolder(tmp_path, name)


def test_plot_is_a_picture(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.start("")
    for step in range(1, 30):
        run.log(kind="step", step=step, loss=1 / step, lr_head=1e-3, lr_backbone=1e-5)
    run.log(kind="validation", step=29, mAP=0.3)
    with Image.open(run.plot()) as picture:
        assert picture.size[0] > 800
