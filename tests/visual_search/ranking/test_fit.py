import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from my_submission import to_torchscript
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


def test_each_view_is_half_whitened_as_by_scikit_learns_components(
    weights: Path, dev_folder: Path, tmp_path: Path
) -> None:
    tables = [dev_folder / "gallery.csv", dev_folder / "queries.csv"]
    output = tmp_path / "out"
    said = told(
        *(to_torchscript.main, weights, "--output", output, "--views", *VIEWS),
        *("--fit-on", *tables, "--dimension", "6"),
    )
    assert "power 0.5, fitted to 20 images\n" in said
    described = json.loads((output / "model.json").read_text())
    assert described["embedding"]["views"] == list(VIEWS)
    assert described["whitening"]["fitted_on"] == ["gallery.csv", "queries.csv"]
    assert (described["architecture"]["neck"], described["architecture"]["dimension"]) == (
        *("whitening", 6),
    )
    items = [item for table in tables for item in images_of(table, EmbedSettings())]
    seen = [view for item in items for view in load_views(item, [(v, 32) for v in VIEWS])[0]]
    pixels = torch.from_numpy(np.stack(seen))
    with torch.inference_mode():
        plain = load_exported(weights, torch.device("cpu"))[0](pixels).double().numpy()
        whitened = load_exported(output, torch.device("cpu"))[0](pixels)
        script = load_torchscript(output / "model.pt")
        torch.testing.assert_close(script(pixels), whitened, atol=1e-4, rtol=1e-3)
    components = PCA(6).fit(plain)
    scale = (components.explained_variance_ * (len(plain) - 1) / len(plain)) ** -0.25
    expected = unit(components.transform(plain) * scale)
    # The sign of a component is free.
    np.testing.assert_allclose(whitened @ whitened.T, expected @ expected.T, atol=1e-3)
    # Fitted once more, the new whitening takes the old one's place.
    said = told(
        *(to_torchscript.main, output, "--output", tmp_path / "again"),
        *("--fit-on", *tables, "--dimension", "6"),
    )
    assert "fitted to 20 images, in place of the one that the model had" in said
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
