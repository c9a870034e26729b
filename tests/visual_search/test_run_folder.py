from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visual_search.errors import UserError
from visual_search.run_folder import RunFolder


def test_a_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.start("x: 1\n")
    run.log(kind="step", step=1)
    with pytest.raises(UserError, match="--overwrite true"):
        run.check_free(overwrite=False)
    run.check_free(overwrite=True)
    assert run.metrics() == [{"kind": "step", "step": 1}]
    run.start("x: 2\n")
    assert run.metrics() == []
    assert (run.path / "config.yml").read_text() == "x: 2\n"


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
