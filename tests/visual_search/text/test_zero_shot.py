"""Data sets of names and images, what is wrong with some, and templates of names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import refused
from tests.conftest import draw_product
from visual_search.text.zero_shot import (
    ZeroShotAnswer,
    draw_confusion,
    embed_names,
    language_of_names,
    mean_accuracy,
    read_zero_shot_set,
    templates_for,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "animals"
    (place / "img").mkdir(parents=True)
    for number in range(5):
        draw_product(number, 0).save(place / "img" / f"{number}.png")
    # A byte order mark is no part of a file.
    classes, labels = ["кот", ["пёс", "щенок"], "конь"], {str(n): n % 3 for n in range(5)}
    (place / "classes.json").write_text(json.dumps(classes), encoding="utf-8-sig")
    (place / "labels.json").write_text(json.dumps(labels), encoding="utf-8-sig")
    return place


def test_answers_in_the_challenges_format(folder: Path, tmp_path: Path) -> None:
    data = read_zero_shot_set(folder)
    assert (data.name, data.classes) == ("animals", [["кот"], ["пёс", "щенок"], ["конь"]])
    answer = ZeroShotAnswer(data, np.array([0, 1, 2, 1, 1]), 0)
    assert answer.accuracy == pytest.approx(0.8)
    assert answer.as_dict() == {"0": 0, "1": 1, "2": 2, "3": 1, "4": 1}
    (folder / "labels.json").unlink()
    unknown = ZeroShotAnswer(read_zero_shot_set(folder), np.zeros(5, dtype=int), 0)
    assert unknown.accuracy is None
    assert mean_accuracy([answer, unknown]) == pytest.approx(80.0)
    assert mean_accuracy([unknown]) is None
    draw_confusion(tmp_path / "confusion.png", answer)
    assert (tmp_path / "confusion.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.json", "{}", "must be a list of names"),
        ("classes.json", '["кот", 2]', "class 1 is 2; write a name"),
        ("classes.json", '["кот", []]', "class 1 is .*; write a name"),
        ("classes.json", '[["кот", " "]]', "class 0 is .*; write a name"),
        ("classes.json", "[", "is not valid JSON"),
        ("classes.json", "[" * 100_000, "is not valid JSON"),
        ("classes.json", '["кот", "null"]', "class 1 is 'null'; write a name"),
        ("labels.json", '{"0": 0, " 0": 1}', "'0' stands there twice"),
        ("labels.json", '{"0": true}', "the image 0.png has class True"),
        ("labels.json", '{"0": 0}', "the image 1.png has class None"),
        ("labels.json", '{"0": 7}', "the image 0.png has class 7, not a number from 0 to 2"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    refused(message, read_zero_shot_set, folder)


def test_two_images_of_one_id_are_refused(folder: Path) -> None:
    draw_product(1, 1).save(folder / "img" / "0.jpg")
    refused(r"0\.jpg and 0\.png have the same id", read_zero_shot_set, folder)


def test_prompts(tmp_path: Path) -> None:
    assert language_of_names(["стул", "IKEA", "стол"]) == "ru"
    assert language_of_names(["chair"]) == "en"
    file = tmp_path / "templates.txt"
    for content, message in (("{}\n\nна фото\n", r"templates\.txt line 3"), ("\n", "no template")):
        file.write_text(content)
        refused(message, templates_for, ["стул"], file)
    file.write_text("{}\n\nна фото {}\n", encoding="utf-8-sig")
    assert templates_for([], file) == ("{}", "на фото {}")

    class Encoder:
        """Places a text by its length."""

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            angles = torch.tensor([float(len(text)) for text in texts])
            return torch.stack([angles.cos(), angles.sin()], dim=1)

    vectors = embed_names(Encoder(), ["a", "bb"], ["{}", "x{}"])  # type: ignore[arg-type]
    expected = torch.tensor([[np.cos(1.5), np.sin(1.5)], [np.cos(2.5), np.sin(2.5)]])
    torch.testing.assert_close(vectors, expected.float())
