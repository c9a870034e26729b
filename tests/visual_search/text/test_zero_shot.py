"""Data sets of names and photos, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import draw_product
from visual_search.common.errors import UserError
from visual_search.text.search import embed_names, language_of_names, templates_for
from visual_search.text.zero_shot import (
    ZeroShotAnswer,
    confusion,
    draw_confusion,
    flat_names,
    mean_accuracy,
    predictions_of,
    read_zero_shot_set,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "animals"
    (place / "img").mkdir(parents=True)
    for number in range(5):
        draw_product(number, 0).save(place / "img" / f"{number}.png")
    (place / "classes.json").write_text(json.dumps(["кот", "пёс", "конь"]))
    (place / "labels.json").write_text(json.dumps({str(n): n % 3 for n in range(5)}))
    return place


def test_answers_in_the_challenges_format(folder: Path, tmp_path: Path) -> None:
    data = read_zero_shot_set(folder)
    assert data.ids == ["0", "1", "2", "3", "4"]
    answer = ZeroShotAnswer(data, np.array([0, 1, 2, 1, 1]), 0)
    assert answer.accuracy == pytest.approx(0.8)
    assert predictions_of([answer]) == {"animals": {"0": 0, "1": 1, "2": 2, "3": 1, "4": 1}}
    assert confusion(answer).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 1]]
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
        ("labels.json", '{"0": 0}', "the image 1.png has class None"),
        ("labels.json", '{"0": 7}', "the image 0.png has class 7, not a number from 0 to 2"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        read_zero_shot_set(folder)


def test_a_class_may_have_several_names(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps(["кот", ["пёс", "щенок"], "конь"]))
    data = read_zero_shot_set(folder)
    assert data.classes == [["кот"], ["пёс", "щенок"], ["конь"]]
    names, class_of = flat_names(data.classes)
    assert dict(zip(names, class_of.tolist(), strict=True)) == {
        "кот": 0,
        "пёс": 1,
        "щенок": 1,
        "конь": 2,
    }


def test_two_photos_of_one_id_are_refused(folder: Path) -> None:
    draw_product(1, 1).save(folder / "img" / "0.jpg")
    with pytest.raises(UserError, match=r"0\.jpg and 0\.png have the same id"):
        read_zero_shot_set(folder)


def test_prompts(tmp_path: Path) -> None:
    assert language_of_names(["стул", "IKEA"]) == "ru" or language_of_names(["стул"]) == "ru"
    assert language_of_names(["chair"]) == "en"
    with pytest.raises(UserError, match="no templates for 'fi'"):
        templates_for("fi")
    file = tmp_path / "templates.txt"
    file.write_text("{}\n\nна фото {}\n")
    assert templates_for("ru", file) == ("{}", "на фото {}")
    file.write_text("{}\nна фото\n")
    with pytest.raises(UserError, match=r"templates\.txt line 2"):
        templates_for("ru", file)

    class Encoder:
        """Places a text by its length."""

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            angles = torch.tensor([float(len(text)) for text in texts])
            return torch.stack([angles.cos(), angles.sin()], dim=1)

    vectors = embed_names(Encoder(), ["a", "bb"], ["{}", "x{}"])  # type: ignore[arg-type]
    expected = torch.tensor([[np.cos(1.5), np.sin(1.5)], [np.cos(2.5), np.sin(2.5)]])
    torch.testing.assert_close(vectors, expected.float())
