"""The configurations of the staged recipe, on tiny models made on the spot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.commands import inside
from tests.conftest import PROJECT
from tests.visual_search.drawn_pairs import write_drawn_pairs
from tests.visual_search.tiny_clips import (
    SIDE,
    first_ru_clip,
    hugging_face_clip,
    language_model,
)
from visual_search import main_clip
from visual_search.model.checkpoint import load_checkpoint
from visual_search.text.first_ru_clip import first_ru_clip_state, visual_settings
from visual_search.text.pairs import CLUSTER_FIELDS, write_pairs
from visual_search.text.search import load_text_model

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pairs whose clusters are the forms, a tiny GPT and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("staged")
    path = write_drawn_pairs(folder / "data", photos=2)
    table = pq.read_table(path)
    clusters = np.unique(table["category"].to_pylist(), return_inverse=True)[1]
    columns = ([[k, k] for k in clusters.tolist()], clusters)
    for (name, kind), values in zip(CLUSTER_FIELDS, columns, strict=True):
        table = table.append_column(name, pa.array(values, kind))
    write_pairs(path, table)
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
    done = inside(
        main_clip.main, "--config", PROJECT / "config" / config, "--name", name,
        "--runs", place / "runs", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(load_checkpoint(place / "runs" / name / "last").state)


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
    model = load_text_model(place / "runs" / "still")
    texts = ["красный круг", "стол"]
    torch.testing.assert_close(
        model.encoder.embed_texts(texts), untrained.encoder.embed_texts(texts)
    )
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(pixels), untrained.encoder(pixels))


def test_the_ladder_starts_at_the_published_weights(place: Path) -> None:
    folder = place / "first"
    first_ru_clip(folder)
    untrained = load_text_model(folder)
    visual = json.dumps(visual_settings(first_ru_clip_state(folder)))
    train(
        place, "clip_rugpt.yml", "ladder", pretrain_model=folder,
        **{"backbone.name": f"clip/{visual}", "text.trainable_blocks": 1, "optim.head_lr": 0.0},
    )  # fmt: skip
    model = load_text_model(place / "runs" / "ladder")
    texts = ["красный круг", "стол"]
    torch.testing.assert_close(
        model.encoder.embed_texts(texts), untrained.encoder.embed_texts(texts)
    )
    before = json.loads((place / "runs/ladder/metrics.jsonl").read_text().splitlines()[0])
    assert before["kind"] == "start"
    done = inside(
        main_clip.main, "--config", PROJECT / "config/clip_rugpt.yml", "--name", "other",
        "--runs", place / "runs", "--pretrain_model", folder, "--dataset.num_workers", 0,
        "--dataset.pairs", place / "data/pairs.parquet", "--backbone.name", "timm/test_vit",
        "--text.towers", f"[hf/{place / 'gpt'}]", "--projection.dimension", 12,
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not fit this phase" in done.stderr
