"""From metadata.json to the table of pairs, worked out by hand and by several processes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dataset.image_text import text_cleaning
from dataset.image_text.text_cleaning import clean_queries, main, pairs_file
from dataset.image_text.text_normalization import CleaningConfig, QueryRules
from tests.commands import refused, stopped, told
from visual_search.text.config import ClusterConfig
from visual_search.text.pairs import read_pairs

FILES = [f"ab/{n:032x}.jpg" for n in range(100)]


def write(folder: Path, *lines: tuple[list[str], int | None]) -> Path:
    """A metadata.json: of each image its queries, and the number of its file in `FILES`."""
    path = folder / "images.metadata.json"
    with path.open("w") as handle:
        for number, (queries, file) in enumerate(lines, 1):
            there = {} if file is None else {"file": FILES[file]}
            handle.write(json.dumps({"image": number, "queries": queries, **there}) + "\n")
    return path


def run(path: Path, config: CleaningConfig | None = None) -> tuple[dict[str, Any], list[Any]]:
    output = pairs_file(path)
    config = config or CleaningConfig(test_share=0.0)
    summary = clean_queries(path, output, path.parent / "photos", config)
    return summary, pq.read_table(output).to_pylist()


def test_what_is_left_and_what_is_dropped(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (["Красные кресла!", "кресло красное", "фото"], 0),
        (["12345", "http://x.ru", "для"], 1),
        (["desk lamps", "ааааааа"], 2),
        (["Кресло  красное", "красное кресло", "Кресло красное!"], 3),
        (["шкаф"], 0),
        (["Лампа настольная"], 4),
        (["лампы настольные"], 5),
    )
    summary, rows = run(path)
    assert [row["image"] for row in rows] == ["1", "3", "4", "5", "6", "7"]
    first = rows[0]
    assert first["queries"] == ["Красные кресла!", "кресло красное"]
    assert first["texts"] == ["красный кресло", "кресло красный"]
    assert first["language"] == ["ru", "ru"]
    assert first["image_path"] == f"photos/{FILES[0]}"
    assert rows[1]["texts"] == ["desk lamp"]
    assert rows[1]["language"] == ["en"]
    groups = {row["image"]: row["group"] for row in rows}
    assert groups["1"] == groups["5"]  # the same image
    assert groups["6"] == groups["7"]  # the same text
    assert len(set(groups.values())) == 4
    assert {reason: found["queries"] for reason, found in summary["dropped"].items()} == {
        "nothing is left after cleaning": 2,
        "only words of asking": 1,
        "numbers, sizes and units only": 1,
        "one letter over and over": 1,
        "the same query of the same image": 1,
    }
    assert (summary["queries"], summary["kept queries"], summary["photos"]) == (14, 8, 6)
    assert summary["languages"] == {"ru": 7, "en": 1}
    assert json.loads(Path(f"{pairs_file(path)}.summary.json").read_text()) == summary
    assert str(read_pairs(pairs_file(path)).paths[0]).endswith(FILES[0])


def test_what_stands_at_too_many_images_is_dropped(tmp_path: Path) -> None:
    lines = [(["картина"] * (n < 30) + [f"стол {n}а"], n) for n in range(100)]
    path = write(tmp_path, *lines, (["картина"], 0))
    config = CleaningConfig(
        test_share=0.0, drop=QueryRules(max_photo_share=0.3, min_common_photos=10)
    )
    summary, rows = run(path, config)
    assert summary["dropped"]["stands at too many images"] == {
        "queries": 31,
        "examples": ["картина"],
    }
    assert len(rows) == 100
    drop = replace(config.drop, max_photo_share=0.31)
    assert run(path, replace(config, drop=drop))[0]["dropped"] == {}
    drop = replace(config.drop, min_common_photos=32)
    assert run(path, replace(config, drop=drop))[0]["dropped"] == {}


def test_several_processes_give_what_one_gives_and_groups_are_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, *(([f"Столы {n % 40}а"], n % 90) for n in range(200)))
    config = CleaningConfig(test_share=0.3, workers=2)
    alone, expected = run(path, config)  # one block: no other process
    monkeypatch.setattr(text_cleaning, "BLOCK_IMAGES", 30)
    together, found = run(path, config)
    assert (together, found) == (alone, expected)
    sides: dict[str, set[str]] = {}
    for row in found:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    assert 0.1 < alone["test photos"] / 200 < 0.5
    assert not list(tmp_path.glob(".*"))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    refused('lines without "file"', run, write(tmp_path, (["стол"], None)))
    refused("no query is left of 1", run, write(tmp_path, (["фото"], 0)))
    refused("does not exist", run, tmp_path / "other.json")
    refused("test_share is 1", CleaningConfig, test_share=1.0)


def test_the_command_reads_its_rules_from_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, (["стол", "обои"], 0))
    own = tmp_path / "own.yml"
    own.write_text("drop: {asking_words: обои}\ntest_share: 0\n")
    rules = ["--config", "config/image_text/cleaning.yml", "--config", own]
    said = told(main, path, *rules)
    assert "1 dropped: only words of asking ('обои')" in said
    assert "1 images (0 to test with), 1 of 2 queries; languages: ru 1" in said
    assert f"next: python dataset/image_text/text_statistics.py {pairs_file(path)}" in said
    wrong = stopped(main, path, *rules, "--drop.max_wrods", "3")
    assert wrong.startswith("error: ")
    assert "max_wrods" in wrong


@pytest.mark.parametrize("config", [CleaningConfig(), ClusterConfig()])
def test_the_yaml_says_what_the_defaults_are(project: Path, config: Any) -> None:
    name = "cleaning" if isinstance(config, CleaningConfig) else "clusters"
    written = yaml.safe_load((project / f"config/image_text/{name}.yml").read_text())
    assert written == asdict(config)
