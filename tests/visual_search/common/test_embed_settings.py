from typing import get_args

import pytest

from tests.commands import refused
from visual_search.common.model_config import Fit
from visual_search.config import EmbedSettings
from visual_search.data.images import FITS


def test_views_are_read_with_their_sizes() -> None:
    read = EmbedSettings.parsed({"views": ["squash", "letterbox"]}, "x")
    assert (read.sides(288), read.is_plain) == ((288, 288), False)
    sized = EmbedSettings.parsed({"views": ["letterbox"], "view_sizes": [224]}, "x")
    assert (sized.sides(288), EmbedSettings().sides(288)) == ((224,), (288,))
    assert EmbedSettings().is_plain
    assert set(FITS) == set(get_args(Fit))


def test_settings_are_read_from_json_values() -> None:
    assert EmbedSettings.parsed({}, "x") == EmbedSettings()
    read = EmbedSettings.parsed({"flip": True, "precision": "fp16", "batch_size": 8}, "x")
    assert read == EmbedSettings(flip=True, precision="fp16", batch_size=8)
    assert (EmbedSettings().copies, read.copies) == (1, 2)
    assert EmbedSettings(flip=True, crops=True).copies == 10


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"flop": True}, "flop is an unknown key; known: "),
        ({"flip": "yes"}, "flip is 'yes', not bool"),
        ({"precision": "fp8"}, "precision is 'fp8'; it can be auto, fp32, bf16, fp16"),
        ({"batch_size": -1}, "batch_size is -1; it must be 0 to 1,000,000"),
        ({"batch_size": True}, "not int"),
        ({"views": "squash"}, "views is 'squash', not a list"),
        ({"views": ["squash", "cover"]}, "views is 'cover'; it can be squash, letterbox"),
        ({"view_sizes": [224, 288]}, "2 sizes of 1 views"),
        ({"view_sizes": [0]}, "it must be 1 to 4096"),
        (["flip"], "are an object"),
    ],
)
def test_wrong_settings_are_refused_with_their_source(values: object, words: str) -> None:
    said = refused(words, EmbedSettings.parsed, values, "model.json")
    assert said.startswith("model.json: ")
