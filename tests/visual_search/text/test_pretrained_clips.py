"""A CLIP as others trained it, out of the box: against its own library, or its own equations."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.commands import inside, refused
from tests.conftest import draw_product
from tests.visual_search.tiny_clips import (
    BYTE_PAIRS,
    SIDE,
    first_ru_clip,
    hugging_face_clip,
    padded,
    ru_clip,
)
from visual_search import main_query, main_zero_shot
from visual_search.config import BackboneConfig
from visual_search.data.images import ImageItem
from visual_search.model.checkpoint import load_checkpoint, save_checkpoint
from visual_search.model.clip_folder import MEAN, STD
from visual_search.model.embedder import build_embedder, rebuild_embedder
from visual_search.ranking.export import load_model
from visual_search.text.config import ProjectionConfig, TextConfig
from visual_search.text.encoder import create_text_towers, network_facts
from visual_search.text.pretrained_towers import byte_pairs
from visual_search.text.search import TextSearch, load_text_model
from visual_search.text.zero_shot import name_images

TEXTS = ["красный круг", "a red chair", "круг"]

transformers = pytest.importorskip("transformers")


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def normed(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    return (pixels / 255 - mean) / std


def same_answers(folder: Path, pixels: Tensor, images: Tensor, texts: Tensor) -> None:
    """The model of a folder answers as its own library: unit vectors of `pixels` and of TEXTS."""
    model = load_text_model(folder)
    with torch.no_grad():
        found = model.encoder(pixels), model.embedder(pixels), model.encoder.embed_texts(TEXTS)
    for ours, theirs in zip(found, (images, images, texts), strict=True):
        torch.testing.assert_close(ours, F.normalize(theirs, dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("eos", "act"), [(11, "quick_gelu"), (2, "gelu")])
@torch.no_grad()
def test_a_hugging_face_folder(pixels: Tensor, tmp_path: Path, eos: int, act: str) -> None:
    theirs = hugging_face_clip(tmp_path, eos=eos, act=act)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    numbers = tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")["input_ids"]
    expected = theirs(input_ids=numbers, pixel_values=normed(pixels))
    same_answers(tmp_path, pixels, expected.image_embeds, expected.text_embeds)


def test_the_same_weights_with_another_activation_are_another_model(tmp_path: Path) -> None:
    """As of open_clip's ViT-B-32 and ViT-B-32-quickgelu; wherever the folder lies."""
    hugging_face_clip(tmp_path / "a", act="quick_gelu")
    hugging_face_clip(tmp_path / "b", act="gelu")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    draw_product(0, 0, SIDE).save(tmp_path / "0.png")
    models = [load_text_model(tmp_path / name) for name in "abc"]
    gallery = [ImageItem(tmp_path / "0.png")]
    kept = [TextSearch(model, gallery, tmp_path / "cache").vectors for model in models]
    assert torch.equal(kept[1], TextSearch(models[1], gallery).vectors)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    pytest.importorskip("fastapi")
    from visual_search.serve.query_model import QueryModel

    prints = [QueryModel(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[2] != prints[1]


def test_what_cannot_be_read_answers_nothing(tmp_path: Path) -> None:
    draw_product(0, 0, SIDE).save(tmp_path / "0.png")
    hugging_face_clip(tmp_path / "clip")
    model = load_text_model(tmp_path / "clip")
    gallery = [ImageItem(tmp_path / "none.png"), ImageItem(tmp_path / "0.png")]
    search = TextSearch(model, gallery, tmp_path / "cache")
    assert [hit.place for hit in search.images_for(["red chair"], 5)[0]] == [1]
    assert len(search.problems) == 1
    refused("no image of the gallery can be read", TextSearch(model, gallery[:1]).images_for, ["a"])
    refused(
        r"none\.png cannot be named: the file does not exist", name_images, model, gallery, ["a"]
    )


@torch.no_grad()
def test_a_ru_clip_folder(pixels: Tensor, tmp_path: Path) -> None:
    theirs = ru_clip(tmp_path)
    # By hand from the rules: ▁кр а с н ы ? | ▁круг; unknown letters are one.
    rows = [[2, 14, 9, 10, 11, 12, 1, 16, 3], [2, 4, 1, 4, 1, 4, 1, 3], [2, 16, 3]]
    images, texts = theirs.encode_image(normed(pixels)), theirs.encode_text(padded(rows))
    same_answers(tmp_path, pixels, images, texts)
    # At twice the size the position embeddings are resampled.
    larger = torch.zeros(1, 3, 2 * SIDE, 2 * SIDE, dtype=torch.uint8)
    assert load_text_model(tmp_path, 2 * SIDE).encoder(larger).isfinite().all()


@torch.no_grad()
def test_the_first_release_of_ru_clip(pixels: Tensor, tmp_path: Path) -> None:
    theirs = first_ru_clip(tmp_path)
    # Words of the tokenizer between begin and end, which are [UNK], 1.
    rows = [[1, 2, 3, 1], [1, 6, 7, 8, 1], [1, 3, 1]]
    images, texts = theirs.encode_image(normed(pixels)), theirs.encode_text(rows)
    same_answers(tmp_path, pixels, images, texts)
    torch.save({"visual_encoder.model.proj": torch.zeros(2)}, tmp_path / "ViT-B32-small.pt")
    refused("is not ru-CLIP's first release", load_text_model, tmp_path)


def test_byte_pairs_by_hand(tmp_path: Path) -> None:
    (tmp_path / "bpe.model").write_text(BYTE_PAIRS)
    tokens = byte_pairs(tmp_path / "bpe.model")
    # Begin 2, end 3, padding 0; the strongest rule first, and of equal ones the first in the word.
    assert tokens(["круг", "КРАН уг", "", "xyzк"], 7).tolist() == [
        [2, 16, 3, 0, 0, 0, 0],
        [2, 14, 9, 11, 4, 15, 3],
        [2, 3, 0, 0, 0, 0, 0],
        [2, 4, 1, 5, 3, 0, 0],
    ]
    assert tokens(["круг круг круг"], 4).tolist() == [[2, 16, 16, 3]]
    (tmp_path / "bpe.model").write_text("9 4\n1 2\n")
    refused(r"bpe\.model is no model file of YouTokenToMe", byte_pairs, tmp_path / "bpe.model")


def test_it_is_built_again_without_its_folder(pixels: Tensor, tmp_path: Path) -> None:
    ru_clip(tmp_path / "own")
    name = f"clip/{tmp_path / 'own'}"
    embedder, architecture = build_embedder(BackboneConfig(name, "hub", MEAN, STD), SIDE)
    model = load_text_model(tmp_path / "own")
    model.encoder.text.save_files(tmp_path / "saved")
    shutil.rmtree(tmp_path / "own")
    again = rebuild_embedder(architecture)
    again.load_state_dict(embedder.state_dict())
    assert torch.equal(again.eval()(pixels), embedder.eval()(pixels))
    towers = create_text_towers(TextConfig((name,)), tmp_path / "saved").eval()
    towers.load_state_dict(model.encoder.text.state_dict())
    assert torch.equal(
        towers(towers.tokenize(TEXTS)), model.encoder.text(model.encoder.text.tokenize(TEXTS))
    )


@torch.no_grad()
def test_a_run_sees_another_size_as_its_clip_does(tmp_path: Path) -> None:
    ru_clip(tmp_path / "clip")
    name = f"clip/{tmp_path / 'clip'}"
    _, architecture = build_embedder(BackboneConfig(name, "hub", MEAN, STD), SIDE)
    encoder, best = load_text_model(tmp_path / "clip").encoder, tmp_path / "run" / "best"
    described = network_facts(
        TextConfig((name,), "hub"), ProjectionConfig("none", architecture.dimension)
    )
    save_checkpoint(best, architecture, encoder.state_dict(), {}, {"text": described})
    encoder.text.save_files(best)
    larger = torch.zeros(1, 3, 2 * SIDE, 2 * SIDE, dtype=torch.uint8)
    expected = load_text_model(tmp_path / "clip", 2 * SIDE).encoder(larger)
    torch.testing.assert_close(load_text_model(best, 2 * SIDE).encoder(larger), expected)
    seen = load_model(load_checkpoint(best), torch.device("cpu"), input_size=2 * SIDE)(larger)
    torch.testing.assert_close(seen, expected)


FAULTS: dict[str, Callable[[Path], object]] = {
    "is not valid JSON": lambda folder: (folder / "config.json").write_text("{"),
    "describes no": lambda folder: (folder / "config.json").write_text('{"embed_dim": 4}'),
    "holds no weights": lambda folder: (folder / "pytorch_model.bin").unlink(),
    "do not fit its config.json": lambda folder: torch.save(
        {"visual.proj": torch.tensor(MEAN)}, folder / "pytorch_model.bin"
    ),
    "no model file": lambda folder: (folder / "bpe.model").write_text("1 2 3"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    r"backbone\.mean is \[0\.5, 0\.5, 0\.5\], but .* write": {"mean": (0.5,) * 3},
    r"backbone\.weights is 'model\.pt'; of clip/.* hub or none": {"weights": "model.pt"},
    "takes no backbone.pooling": {"pooling": "gem"},
}


@pytest.mark.parametrize("message", [*FAULTS, *SETTINGS])
def test_what_is_wrong_with_a_folder_or_its_settings_is_said(message: str, tmp_path: Path) -> None:
    ru_clip(tmp_path)
    plain = BackboneConfig(f"clip/{tmp_path}", "hub", MEAN, STD)
    if message in SETTINGS:
        refused(message, build_embedder, replace(plain, **SETTINGS[message]), SIDE)
    else:
        FAULTS[message](tmp_path)
        refused(message, load_text_model, tmp_path)


def test_unknown_weights_of_open_clip_are_named() -> None:
    refused(r"of ViT-B-32; it has openai", load_text_model, Path("open_clip/ViT-B-32/nothing"))


def test_an_untrained_clip_classifies_sets_by_one_file_and_answers_queries(tmp_path: Path) -> None:
    """As the organiser has it: sets beside each other, and one file of what is right."""
    model = ru_clip(tmp_path / "ruclip")
    truth = {}
    for name in ("animals", "forms"):
        folder = tmp_path / "sets" / name
        (folder / "img").mkdir(parents=True)
        for number in range(3):
            draw_product(number, 0, SIDE).save(folder / "img" / f"{number}.png")
        (folder / "classes.json").write_text(json.dumps(["круг", "красный"]))
        truth[name] = {str(number): 0 for number in range(3)}
    del truth["forms"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "bare.txt").write_text("{}\n")
    done = inside(
        main_zero_shot.main, "--run", tmp_path / "ruclip", "--data", tmp_path / "sets",
        "--labels", tmp_path / "truth.json", "--output", tmp_path / "out",
        "--templates", tmp_path / "bare.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "forms: 3 images (0 damaged), 2 classes: no labels, not scored" in done.stdout
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    items = [ImageItem(path) for path in sorted((tmp_path / "sets/forms/img").iterdir())]
    images = load_text_model(tmp_path / "ruclip").embed_images(items).matrix
    rows = padded([[2, 16, 3], [2, 14, 9, 10, 11, 12, 1, 3]])
    with torch.no_grad():
        names = F.normalize(model.encode_text(rows), dim=1)
    expected = (images @ names.T).argmax(dim=1).tolist()
    assert list(predicted["forms"].values()) == expected
    assert predicted["animals"] == predicted["forms"]
    score = json.loads((tmp_path / "out" / "result.json").read_text())["score"]
    assert score == pytest.approx(100 * sum(e == 0 for e in expected) / 3)
    done = inside(
        main_query.main, "--run", tmp_path / "ruclip", "--gallery", tmp_path / "sets/forms/img",
        "--cache", tmp_path / "cache", "красный круг",
    )  # fmt: skip
    assert "img: 3 images, 1 queries" in done.stdout
