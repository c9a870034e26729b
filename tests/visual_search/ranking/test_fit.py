import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from my_submission import to_torchscript
from my_submission.user_config import My_Ranker
from tests.commands import stopped, told
from tests.conftest import write_csv
from visual_search.config import EmbedSettings
from visual_search.data.images import ImageItem, load_views
from visual_search.model.checkpoint import load_torchscript
from visual_search.ranking.export import load_exported
from visual_search.ranking.fit import images_of

VIEWS = ("squash", "letterbox")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def naive_ranks(weights: Path, folder: Path) -> np.ndarray:
    """Both sides seen in both views, half-whitened by scikit-learn's components, ranked."""
    model, _ = load_exported(weights, torch.device("cpu"))
    assert isinstance(model, nn.Module)

    def seen(table: str) -> np.ndarray:
        """`(views, images, width)`."""
        items = images_of(folder / table, EmbedSettings())
        pixels = [load_views(item, [(view, 32) for view in VIEWS])[0] for item in items]
        with torch.inference_mode():
            rows = [
                model(torch.from_numpy(np.stack(of_view))) for of_view in zip(*pixels, strict=True)
            ]
        return torch.stack(rows).double().numpy()

    gallery, queries = seen("gallery.csv"), seen("queries.csv")
    every = np.concatenate([*gallery, *queries])
    components = PCA(6).fit(every)
    scale = (components.explained_variance_ * (len(every) - 1) / len(every)) ** -0.25

    def whitened(side: np.ndarray) -> np.ndarray:
        return unit(np.mean([unit(components.transform(of) * scale) for of in side], axis=0))

    return np.argsort(-(whitened(queries) @ whitened(gallery).T), axis=1, kind="stable")


def test_the_ranker_answers_with_what_was_fitted(
    weights: Path, dev_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [dev_folder / "gallery.csv", dev_folder / "queries.csv"]
    output = tmp_path / "out"
    said = told(
        *(to_torchscript.main, weights, "--output", output, "--views", *VIEWS),
        *("--fit-on", *tables, "--dimension", "6"),
    )
    assert "power 0.5, fitted to 20 images" in said
    described = json.loads((output / "model.json").read_text())
    assert described["embedding"]["views"] == list(VIEWS)
    assert described["whitening"]["fitted_on"] == ["gallery.csv", "queries.csv"]
    assert (described["architecture"]["neck"], described["architecture"]["dimension"]) == (
        *("whitening", 6),
    )
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        model, _ = load_exported(output, torch.device("cpu"))
        script = load_torchscript(output / "model.pt")
        torch.testing.assert_close(script(pixels), model(pixels), atol=1e-4, rtol=1e-3)
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(output))
    ranks = My_Ranker(str(dev_folder), str(tables[0]), str(tables[1])).predict_product_ranks()
    expected = naive_ranks(weights, dev_folder)
    # Random weights leave near-ties: the first answers tell.
    assert (ranks[:, 0] == expected[:, 0]).mean() >= 0.9
    # Fitted once more, the new whitening takes the old one's place.
    told(
        *(to_torchscript.main, output, "--output", tmp_path / "again"),
        *("--fit-on", *tables, "--dimension", "6"),
    )
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        output / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dimension", "2000"], r"write 0\.\.1?\d*, the width"),
        (["--power", "2"], "argument --power: '2' is no number, 0 to 1"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    weights: Path, dev_folder: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    table = dev_folder / "gallery.csv"
    command = (to_torchscript.main, weights, "--output", tmp_path / "out", "--fit-on", table)
    assert re.search(words, stopped(*command, *options))


def test_the_three_kinds_of_table(dev_folder: Path) -> None:
    settings = EmbedSettings(trim_borders=True)
    gallery = images_of(dev_folder / "gallery.csv", settings)
    queries = images_of(dev_folder / "queries.csv", settings)
    rows = [["gallery/0_0.png", "a", ""], ["queries/0_0.png", "a", "1,2,30,40"]]
    header = ["file_name", "label", "bbox"]
    table = write_csv(dev_folder / "own.csv", header, rows)
    assert gallery[0] == ImageItem(dev_folder / "gallery/0_0.png", None, trim=True)
    assert queries[0].box == (2, 2, 58, 58)
    assert [item.box for item in images_of(table, settings)] == [None, (1, 2, 30, 40)]
