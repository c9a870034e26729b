"""All steps by one command: what it checks first, and what it tells each of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataset.dataset_creation_steps import (
    analyse_pairs,
    download_images,
    extract_features,
    get_pairs,
    prepare_training_set,
)
from dataset.dataset_creation_steps.run import PairsConfig, build_pairs
from visual_search.errors import UserError


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    for name in ("X.json.gz", "meta_X.json.gz"):
        (tmp_path / name).touch()
    return tmp_path


def test_each_step_is_told_its_options(amazon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def step(answer: Any) -> Any:
        def call(*_: object, **options: object) -> Any:
            told.update(options)
            return answer

        return call

    monkeypatch.setattr(get_pairs, "is_finished", step(True))
    extracted = extract_features.Extracted(1, 0, 1, Counter())
    monkeypatch.setattr(extract_features, "extract", step(extracted))
    monkeypatch.setattr(analyse_pairs, "analyse", step({}))
    monkeypatch.setattr(analyse_pairs, "show", step([]))
    kept = download_images.Kept(1, 0, Counter())
    monkeypatch.setattr(download_images, "download_images", step(kept))
    monkeypatch.setattr(prepare_training_set, "prepare_training_set", step([]))
    build_pairs(PairsConfig(amazon, ["X"], overwrite=True, distance=9))
    assert (told["overwrite"], told["distance"]) == (True, 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": []}, "categories is empty"),
        ({"thresholds": []}, "thresholds is empty"),
        ({"distance": 65}, r"distance is a number of bits, 0\.\.64"),
        ({"categories": ["Y"]}, r"Y\.json\.gz does not exist: download it"),
        ({"evaluation": [Path("nowhere")]}, "nowhere: neither a csv file nor a folder"),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    amazon: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build_pairs(PairsConfig(**{"folder": amazon, "categories": ["X"], **changes}))
