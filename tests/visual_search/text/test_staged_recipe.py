"""The configurations of the staged recipe, on tiny models made on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.commands import logged, refused, told
from tests.conftest import PROJECT
from tests.visual_search.drawn_pairs import write_drawn_pairs
from tests.visual_search.tiny_clips import SIDE, first_ru_clip, hugging_face_clip, language_model
from visual_search import main_clip
from visual_search.config import BackboneConfig
from visual_search.model.checkpoint import load_checkpoint
from visual_search.text.config import ClipConfig, PairDataConfig, TextConfig
from visual_search.text.first_ru_clip import first_ru_clip_state, visual_settings
from visual_search.text.phase import ClipPhase
from visual_search.text.search import TextSearchModel, load_text_model

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pairs whose clusters are the forms, a tiny GPT and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("staged")
    write_drawn_pairs(folder / "data", photos=2, clusters=True)
    language_model(folder / "gpt", "gpt2")
    hugging_face_clip(folder / "clip")
    return folder


def train(place: Path, config: str, name: str, **options: Any) -> dict[str, torch.Tensor]:
    """One epoch of a configuration with the tiny models in place; the weights it ends with."""
    small = {
        "dataset.pairs": place / "data" / "pairs.parquet",
        "dataset.input_size": SIDE,
        "dataset.num_workers": 0,
        "dataset.batch_size": 6,
        "train.epochs": 1,
        "optim.head_lr": 0.01,
        "loss.chunk": 4,
    }
    clip = f"clip/{place / 'clip'}"
    if "finetune" in config:
        small |= {"backbone.name": clip, "text.towers": f"[{clip}]", "projection.dimension": 16}
    else:
        small |= {"backbone.name": "timm/test_vit", "backbone.weights": "none"}
        small |= {"text.towers": f"[hf/{place / 'gpt'}]", "projection.dimension": 12}
    words = [word for key, value in (small | options).items() for word in (f"--{key}", value)]
    run = "--config", PROJECT / "config" / config, "--name", name, "--runs", place / "runs"
    told(main_clip.main, *run, *words)
    return dict(load_checkpoint(place / "runs" / name / "last").state)


def same_answers(one: TextSearchModel, other: TextSearchModel) -> None:
    texts = ["красный круг", "стол"]
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    torch.testing.assert_close(one.encoder.embed_texts(texts), other.encoder.embed_texts(texts))
    with torch.no_grad():
        torch.testing.assert_close(one.encoder(pixels), other.encoder(pixels))


def test_projections_by_cluster_with_a_network_beside_the_gpt(place: Path) -> None:
    state = train(place, "clip_rugpt_clusters.yml", "clustered", **{"projection.clusters": 4})
    assert state["neck.text.classifier.embedding.weight"].shape[1] == 128
    assert "neck.text.classifier.block.linear1.weight" in state
    assert state["neck.text.classifier.linear.weight"].any()  # nothing, before it learnt
    texts = ["красный круг", "синий квадрат"]
    vectors = load_text_model(place / "runs" / "clustered").encoder.embed_texts(texts)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_a_folder_is_trained_on_from_where_it_is(place: Path) -> None:
    untrained = load_text_model(place / "clip")
    options = {"optim.head_lr": 0.0, "text.trainable_blocks": 1}
    train(place, "clip_finetune.yml", "still", **options)
    same_answers(load_text_model(place / "runs" / "still"), untrained)


def test_the_ladder_starts_at_the_published_weights(place: Path) -> None:
    folder = place / "first"
    first_ru_clip(folder)
    untrained = load_text_model(folder)
    visual = json.dumps(visual_settings(first_ru_clip_state(folder)))
    train(
        place, "clip_rugpt.yml", "ladder", pretrain_model=folder,
        **{"backbone.name": f"clip/{visual}", "text.trainable_blocks": 1, "optim.head_lr": 0.0},
    )  # fmt: skip
    same_answers(load_text_model(place / "runs" / "ladder"), untrained)
    assert logged(place / "runs" / "ladder", "start")
    other = ClipConfig(
        PairDataConfig(str(place / "data/pairs.parquet")),
        BackboneConfig("timm/test_vit", "none"),
        TextConfig((f"hf/{place / 'gpt'}",)),
        pretrain_model=str(folder),
    )
    refused("does not fit this phase", ClipPhase, other, Accelerator())
