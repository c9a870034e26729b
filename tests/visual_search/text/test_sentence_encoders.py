"""Texts to vectors: what all encoders keep to, and what each is for."""

from pathlib import Path

import numpy as np
import pytest

from tests.commands import refused
from visual_search.text.sentence_encoders import sentence_encoder

TEXTS = ["письменный стол", "столик", "кресло", "мягкое кресло", "лампа", "настольная лампа"]


def test_rows_are_of_length_one_and_in_the_order_of_the_texts() -> None:
    encoder = sentence_encoder("use")
    found = encoder.encode([*TEXTS, TEXTS[2]])
    assert found.shape == (7, encoder.dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[2], found[6])
    alone = np.stack([encoder.encode([text])[0] for text in TEXTS])
    np.testing.assert_allclose(found[:6], alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dimension)
    assert np.isfinite(encoder.encode(["", "?"])).all()


def test_use_knows_that_two_languages_say_the_same() -> None:
    use = sentence_encoder("use")
    russian = use.encode(["настольная лампа", "деревянный стол", "детская кровать"])
    english = use.encode(["desk lamp", "wooden table", "children's bed"])
    assert (russian @ english.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_a_model_of_a_folder(tmp_path: Path) -> None:
    """A Bert of two layers, as sentence-transformers keeps its models."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nстол")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=6, num_attention_heads=2, **sizes))
    bert.save_pretrained(tmp_path / "bert")
    SentenceTransformer(str(tmp_path / "bert")).save(str(tmp_path / "model"))
    encoder = sentence_encoder(f"sentence-transformers/{tmp_path / 'model'}")
    found = encoder.encode(["стол", "кресло", "стол"])
    assert found.shape == (3, encoder.dimension) == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    refused("could not be loaded", sentence_encoder, f"sentence-transformers/{tmp_path / 'other'}")


def test_what_cannot_be_had_is_said() -> None:
    refused("no sentence encoder is called 'bert'", sentence_encoder, "bert")
