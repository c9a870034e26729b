import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from dataset.dataset_creation_steps.run import PairsConfig
from dataset.image_text.text_normalization import CleaningConfig
from tests.commands import refused
from tests.conftest import PROJECT
from tests.visual_search.test_unused import with_key
from visual_search.common.errors import UserError
from visual_search.common.keys import Key, keys_of
from visual_search.common.ranges import check_ranges
from visual_search.common.run_folder import flat_settings
from visual_search.common.unused import unused
from visual_search.config import (
    BackboneConfig,
    DatasetConfig,
    MarginConfig,
    OptimConfig,
    PairLossConfig,
    PhaseConfig,
    TableConfig,
)
from visual_search.config_reader import parse_config, parse_phase, read_part
from visual_search.evaluation.tasks import read_task
from visual_search.phase_chain import read_chain
from visual_search.text.config import ClipConfig, ClusterConfig
from visual_search.tuning import read_search_space


def parsed(*arguments: str) -> tuple[PhaseConfig, str]:
    _, phase, text = parse_phase(jsonargparse.ArgumentParser(prog="x"), arguments)
    return phase, text


def fault(*arguments: str) -> str:
    return refused(".", parsed, *arguments)


def written(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "name"), [(PhaseConfig, "phase.yml"), (ClipConfig, "text_phase.yml")]
)
def test_what_an_earlier_version_kept_with_a_run_is_still_read(kind: type, name: str) -> None:
    file = Path(__file__).with_name("earlier") / name
    *_, text = parse_config(jsonargparse.ArgumentParser(), kind, ["--config", str(file)])
    kept, now = (flat_settings(yaml.safe_load(one)) for one in (file.read_text(), text))
    assert {key: now[key] for key in kept} == kept


def test_files_merge_left_to_right_and_arguments_come_last(tmp_path: Path) -> None:
    written(tmp_path / "backbone" / "b.yml", "name: timm/resnet18\nweights: none\n")
    first = written(
        tmp_path / "a.yml",
        "dataset:\n  product10k:\n    train_prefix: pictures\n  input_size: 200\n"
        "backbone: backbone/b.yml\noptim:\n  head_lr: 1.0e-2\n",
    )
    second = written(tmp_path / "c.yml", "dataset:\n  input_size: 300\n  seed: 7\n")
    phase, _ = parsed("--config", first, f"--config={second}", "--dataset.seed", "9")
    assert phase.dataset.product10k.train_prefix == "pictures"
    assert phase.dataset.product10k.val_prefix == "test"
    assert phase.dataset.input_size == 300
    assert phase.dataset.seed == 9
    assert phase.optim.head_lr == 0.01
    # The part's own file is named relative to the file that names it.
    assert phase.backbone == BackboneConfig(name="timm/resnet18", weights="none")


def test_the_resolved_config_gives_the_same_phase_again(tmp_path: Path, project: Path) -> None:
    phase, text = parsed("--config", str(project / "config/arcface_1st.yml"))
    again, _ = parsed("--config", written(tmp_path / "resolved.yml", text))
    assert again == phase


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dataset: {inputsize: 3}", "unknown key 'dataset.inputsize'; did you mean 'input_size'"),
        ("dataset: {tables: [{fil: a.csv}]}", "unknown key 'dataset.tables.0.fil'"),
        ("dataset: {tables: 3}", "dataset.tables must be a list of tables, not 3"),
        ("dataset: {input_size: big}", '"dataset.input_size"'),
        ("train: {precision: fp8}", '"train.precision"'),
        ("optim: 3", "optim must be a table of keys and values"),
        ("dataset: {product10k: [1]}", "dataset.product10k must be a table"),
        ("dataset: {augmentations: heavy}", '"dataset.augmentations"'),
        ("- 1", "must be a table of keys"),
        ("optim: {betas: [0.9, 1]}", "optim.betas is (0.9, 1.0); it must be 0 or more, below 1"),
        (
            "dataset: {tables: [{file: a.csv, weight: 0}]}",
            "dataset.tables.0.weight is 0.0; it must be above 0",
        ),
        ("train: {epochs: 0}", "train.epochs is 0; it must be 1 or more"),
        ("optim: {head_lr: 1}\noptim: {floor: 1}", "the key optim is there twice"),
        ("optim:\n  floor: 0\n  floor: 1", "the key floor is there twice"),
        ("? [a]\n: 1", "found unhashable key"),
        ("margin: {name: }", "margin.name is empty; write a value, or leave the key out"),
        ("dataset: {tables: }", "dataset.tables is empty"),
        ("dataset: {tables: [{file: a.csv, root: }]}", "dataset.tables.0.root is empty"),
        ("optim:", "optim is empty"),
        ("# nothing", "is empty"),
    ],
)
def test_a_fault_names_its_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    good = written(tmp_path / "good.yml", "dataset: {seed: 1}")
    bad = written(tmp_path / "bad.yml", text)
    message = fault("--config", good, "--config", bad)
    assert bad in message
    assert words in message


def test_a_part_in_its_own_file_is_checked_like_the_rest(tmp_path: Path) -> None:
    part = written(tmp_path / "part.yml", "nam: x\n")
    message = fault("--config", written(tmp_path / "a.yml", "backbone: part.yml\n"))
    assert f"{part}: unknown key 'backbone.nam'" in message
    refused("part.yml: unknown key 'nam'", read_part, Path(part), BackboneConfig)
    grey = written(tmp_path / "b.yml", "name: timm/x\nmean: grey\n")
    refused(r"b.yml.*mean", read_part, Path(grey), BackboneConfig)
    assert "none.yml" in fault("--config", str(tmp_path / "none.yml"))
    missing = written(tmp_path / "c.yml", "backbone: parts/none.yml\n")
    assert "parts/none.yml" in fault("--config", missing)


def test_unknown_arguments_are_refused() -> None:
    message = fault("--dataset.sed", "3")
    assert message == "there is no option --dataset.sed; did you mean --dataset.seed?"
    assert fault("--nothing.like.it") == "there is no option --nothing.like.it"
    assert fault("--optim.head_lr=-1") == "optim.head_lr is -1.0; it must be 0 or more"


def test_a_wrong_value_that_is_typed_is_not_put_down_to_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.yml", "dataset:\n  batch_size: 8\n")
    message = fault("--config", path, "--dataset.batch_size", "many")
    assert message == 'key "dataset.batch_size": expected a whole number. Got value: many'
    message = fault("--margin.name", "arcfce")
    assert message.startswith("key \"margin.name\": expected one of 'softmax', 'arcface',")


PARTS: dict[str, type] = {
    "backbone": BackboneConfig, "dataset": DatasetConfig, "margin": MarginConfig,
    "optim": OptimConfig, "pairs": PairLossConfig,
}  # fmt: skip
OTHERS = ("amazon_pairs.yml", "cleaning.yml", "clusters.yml")  # tests/dataset


def notes(arguments: list[str], command: str) -> list[str]:
    """What would be said of keys that change nothing."""
    kind: Any = ClipConfig if command == "main_clip" else PhaseConfig
    return unused(parse_config(jsonargparse.ArgumentParser(), kind, arguments)[1])


@pytest.mark.parametrize("path", sorted((PROJECT / "config").rglob("*.yml")), ids=lambda p: p.stem)
def test_every_config_of_the_project_is_valid_and_all_of_it_counts(path: Path) -> None:
    folder, values = path.parent.name, yaml.safe_load(path.read_text())
    if path.stem.endswith("phases"):
        chain, before = read_chain(path), None
        for step in chain.phases:
            assert not notes(step.arguments(before), chain.command)
            before = Path("runs", step.name)
    elif folder in PARTS:
        read = dataclasses.asdict(read_part(path, PARTS[folder]))
        assert read.items() >= {k: v for k, v in values.items() if isinstance(v, str | int)}.items()
    elif folder in ("evaluation", "tune"):
        assert read_task(path) if folder == "evaluation" else read_search_space(path)
    elif path.name not in OTHERS:
        command = "main_clip" if values.keys() & {"text", "projection"} else "main_arcface"
        assert not notes(["--config", str(path)], command)


def test_tables_are_a_list(tmp_path: Path) -> None:
    text = "dataset:\n  tables:\n  - {file: a.csv, weight: 0.5}\n  - {file: b.csv, fold: 2}\n"
    phase, resolved = parsed("--config", written(tmp_path / "a.yml", text))
    assert phase.dataset.tables == (TableConfig("a.csv", weight=0.5), TableConfig("b.csv", fold=2))
    again, _ = parsed("--config", written(tmp_path / "resolved.yml", resolved))
    assert again == phase


CONFIGS = (
    *(PhaseConfig(), TableConfig("a.csv"), ClipConfig(), ClusterConfig()),
    *(PairsConfig(Path("a"), []), CleaningConfig()),
)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        pytest.param(config, key, id=f"{type(config).__name__}.{key.name}")
        for config in CONFIGS
        for key in keys_of(config)
        if re.search(r"\b(int|float)\b", str(key.hint))
    ],
)
def test_every_number_has_a_range_and_says_it(config: Any, key: Key) -> None:
    check_ranges(config)  # the defaults are in it
    for wrong in (-7, math.nan, math.inf, 10**18, 1e300, 10**400, -(10**18)):
        several = isinstance(key.default, tuple | list)
        value = (*(key.default or ())[:-1], wrong) if several else wrong
        if wrong == -7 and key.name.endswith(".power"):
            continue
        last = key.name.rpartition(".")[2]  # some parts check themselves
        with pytest.raises(UserError, match=rf"^(x: )?[\w.]*{last} is .*; it must be .*\d"):
            check_ranges(with_key(config, key.name, value), where=lambda name: "x: ")
