import re
from pathlib import Path

import pytest

from tests.commands import refused
from visual_search.common.words import config_folder, default_name, spelled_out
from visual_search.config import PhaseConfig
from visual_search.text.config import ClipConfig


def test_files_come_first_then_parts_then_keys() -> None:
    typed = ["epochs=3", "--optim.head_lr", "1", "margin=cosface", "--config=a.yml", "--help"]
    assert spelled_out(typed, PhaseConfig) == [
        *("--config", "a.yml", "--margin", "config/margin/cosface.yml"),
        *("--train.epochs", "3", "--optim.head_lr", "1", "--help"),
    ]


def test_words_alone_are_added_to_the_main_config_of_images_with_classes() -> None:
    main = str(config_folder() / "metric_learning.yml")
    assert spelled_out(["optim.floor=0.1"], PhaseConfig) == [
        *("--config", main, "--optim.floor", "0.1")
    ]  # fmt: skip
    assert spelled_out(["batch_size=4"], ClipConfig) == ["--dataset.batch_size", "4"]
    assert spelled_out(["--optim.floor=0.1"], PhaseConfig) == ["--optim.floor", "0.1"]


def test_a_list_of_one_needs_no_brackets() -> None:
    for given in ("--train.trackers=wandb", "train.trackers=wandb"):
        assert spelled_out([given], PhaseConfig)[-2:] == ["--train.trackers", "[wandb]"]
    whole = ["--dataset.tables", '[{"file": "x"}]']
    assert spelled_out(whole, PhaseConfig) == whole


def test_what_is_a_file_or_yaml_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("config/backbone/vit.yml", "{name: timm/x}", "other/part.yml"):
        assert spelled_out(["--backbone", value], PhaseConfig) == ["--backbone", value]
    monkeypatch.chdir(tmp_path)  # without a config/ of its own: the project's
    found = spelled_out(["--backbone", "vit"], PhaseConfig)[1]
    assert Path(found).is_absolute()
    assert Path(found).is_file()


def test_a_run_is_named_after_its_parts_or_its_config() -> None:
    assert default_name(["backbone=vit", "epochs=3", "dataset=sop"]) == "vit_sop"
    assert default_name(["--config", "a/b.yml", "--config=c/d.yml", "--dataset.seed", "3"]) == "d"
    refused("give the run a name", default_name, ["--dataset.seed", "3"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("backbon=openclip_vit_b32", "did you mean backbone=openclip_vit_b32?"),
        ("backbone=openclip_vit_b31", "did you mean openclip_vit_b32?"),
        ("batchsize=32", "did you mean batch_size=32?"),
        ("dataset=cub", "did you mean cub200?"),
        ("evaluation/data=product10k", "did you mean products10k?"),
        ("optim.learning_rate=1", "did you mean learning_rate=1?"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(words: str, expected: str) -> None:
    refused(re.escape(expected), spelled_out, [words], PhaseConfig)
