from __future__ import annotations

import pytest

from visual_search.common.errors import UserError
from visual_search.config import EmbedSettings


def test_settings_are_read_from_json_values() -> None:
    assert EmbedSettings.parsed({}, "x") == EmbedSettings()
    read = EmbedSettings.parsed({"flip": True, "precision": "fp16", "batch_size": 8}, "x")
    assert read == EmbedSettings(flip=True, precision="fp16", batch_size=8)
    assert (EmbedSettings().views, read.views) == (1, 2)
    assert EmbedSettings(flip=True, crops=True).views == 10


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"flop": True}, "unknown key 'flop'"),
        ({"flip": "yes"}, "flip is 'yes', not bool"),
        ({"precision": "fp8"}, "precision is 'fp8'; it can be auto, fp32, bf16, fp16"),
        ({"batch_size": -1}, "batch_size is -1; it must be 0 or more"),
        ({"batch_size": True}, "not int"),
        (["flip"], "are an object"),
    ],
)
def test_wrong_settings_are_refused_with_their_source(values: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        EmbedSettings.parsed(values, "model.json")
    assert str(caught.value).startswith("model.json: ")
