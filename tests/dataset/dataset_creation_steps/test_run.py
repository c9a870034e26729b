"""All steps by one command: what it checks first, and what it tells each of them."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dataset.dataset_creation_steps import (
    analyse_pairs,
    download_images,
    extract_features,
    get_pairs,
    prepare_training_set,
)
from dataset.dataset_creation_steps.run import PairsConfig, build_pairs
from tests.commands import refused


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    for name in ("X.json.gz", "meta_X.json.gz"):
        (tmp_path / name).touch()
    return tmp_path


def test_each_step_is_told_its_options(
    amazon: Path, model_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        mock.patch.object(get_pairs, "is_finished", return_value=True),
        mock.patch.object(extract_features, "extract") as extract,
        mock.patch.object(analyse_pairs, "analyse"),
        mock.patch.object(download_images, "download_images"),
        mock.patch.object(prepare_training_set, "prepare_training_set") as prepare,
    ):
        build_pairs(PairsConfig(amazon, ["X"], model_run, overwrite=True, distance=9))
    assert "evaluation is empty: the images are not checked for leaks" in capsys.readouterr().out
    assert extract.call_args.kwargs["overwrite"] is True
    assert prepare.call_args.kwargs["distance"] == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": []}, "categories is empty"),
        ({"thresholds": []}, "thresholds is empty"),
        ({"distance": 65}, "distance is 65; it must be 0 to 64"),
        ({"categories": ["Y"]}, r"Y\.json\.gz does not exist: download it"),
        ({"run": Path("nowhere")}, "nowhere is neither a run folder nor a model file"),
        (
            {"evaluation": [Path("nowhere")]},
            r"nowhere: neither a csv file nor a folder .* evaluation: \[\] in a config",
        ),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    amazon: Path,
    model_run: Path,
    changes: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(get_pairs, "get_pairs", lambda *_: pytest.fail("it works already"))
    given = {"folder": amazon, "categories": ["X"], "run": model_run, **changes}
    refused(words, lambda: build_pairs(PairsConfig(**given)))
