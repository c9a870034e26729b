"""Small catalogues of drawn images, and where the real ones lie."""

import csv
import gc
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

PROJECT = Path(__file__).resolve().parent.parent

# Workers share the cores, and the networks are tiny: more threads only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Keep what all tests have loaded out of garbage collections, which take half a second each."""
    gc.freeze()


@pytest.fixture(autouse=True)
def as_many_threads() -> Iterator[None]:
    """Put back the number of torch's threads: sums of more threads differ in their last bit."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def write_yaml(path: Path, values: Any) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def read_phase(file: Path, values: Any) -> Any:
    """The phase of some settings, written to a file, and its complete config."""
    import jsonargparse

    from visual_search.config_reader import parse_phase

    write_yaml(file, values)
    return parse_phase(jsonargparse.ArgumentParser(), ["--config", str(file)])[1:]


def draw_product(product: int, photo: int, side: int = 64) -> Image.Image:
    """A shape whose colour and form are the product's, on a background that is the photo's."""
    rng = np.random.default_rng([product, photo])
    background = tuple(int(v) for v in rng.integers(120, 255, 3))
    colour = tuple(int(v) for v in np.random.default_rng(product).integers(0, 200, 3))
    image = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    corner = [int(v) for v in rng.integers(4, side // 4, 2)]
    frame = (*corner, corner[0] + side // 2, corner[1] + side // 2)
    (pen.rectangle if product % 2 else pen.ellipse)(frame, fill=colour)
    return image


@pytest.fixture
def project() -> Path:
    return PROJECT


@pytest.fixture
def real_images() -> Path:
    """The challenge's development set, or a half of it, where it is at hand."""
    data = os.getenv("VPR_REAL_DATA")
    if not data:
        pytest.skip("VPR_REAL_DATA does not name the folder of the real images")
    table = next(Path(data).glob("*/queries.csv"), None)
    if table is None:
        pytest.skip(f"no folder in {data} has a queries.csv")
    return table.parent


@pytest.fixture(scope="session")
def drawn_dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dev_folder(tmp_path_factory.mktemp("dev"))


@pytest.fixture
def dev_folder(drawn_dev_folder: Path, tmp_path: Path) -> Path:
    """Five products with two seller and two user photos each, in the challenge's layout."""
    return Path(shutil.copytree(drawn_dev_folder, tmp_path / drawn_dev_folder.name))


def write_dev_folder(place: Path) -> Path:
    """The folder `development_test_data` in `place`."""
    folder = place / "development_test_data"
    sides: dict[str, list[list[object]]] = {"gallery": [], "queries": []}
    for side, offset in (("gallery", 0), ("queries", 10)):
        (folder / side).mkdir(parents=True)
        for product in range(5):
            for photo in range(2):
                name = f"{side}/{product}_{photo}.png"
                draw_product(product, offset + photo).save(folder / name)
                box = [] if side == "gallery" else [2, 2, 58, 58]
                sides[side].append([len(sides[side]), name, *box, 100 + product])
    write_csv(folder / "gallery.csv", ["seller_img_id", "img_path", "product_id"], sides["gallery"])
    write_csv(
        folder / "queries.csv",
        ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "product_id"],
        sides["queries"],
    )
    return folder


def export_tiny(folder: Path, seed: int) -> Path:
    """An export of the smallest backbone at 32 px, with random weights of this seed."""
    import torch

    from visual_search.config import BackboneConfig
    from visual_search.model.embedder import build_embedder
    from visual_search.ranking.export import export_torchscript

    torch.manual_seed(seed)
    embedder, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    export_torchscript(embedder, architecture, {}, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that many tests share; not to be changed."""
    return export_tiny(tmp_path_factory.mktemp("export"), seed=0)


@pytest.fixture
def weights(tiny_export: Path, tmp_path: Path) -> Path:
    """A copy of the tiny export that a test may change."""
    return Path(shutil.copytree(tiny_export, tmp_path / "weights"))


@pytest.fixture
def product10k_folder(drawn_product10k: Path, tmp_path: Path) -> Path:
    """Six classes of four training photos and one test photo each, in Product10K's layout."""
    return Path(shutil.copytree(drawn_product10k, tmp_path / drawn_product10k.name))


@pytest.fixture(scope="session")
def drawn_product10k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "Product10K"
    for prefix, table, photos in (
        ("train", "train.csv", range(4)),
        ("test", "test_kaggletest.csv", range(4, 5)),
    ):
        (folder / prefix).mkdir(parents=True)
        rows = []
        for product in range(6):
            for photo in photos:
                name = f"{product}_{photo}.png"
                draw_product(20 + product, photo).save(folder / prefix / name)
                rows.append([name, product, 0])
        write_csv(folder / table, ["name", "class", "group"], rows)
    return folder


def spare_plots(patch: pytest.MonkeyPatch) -> None:
    """Spare trainings a third of their time."""
    from matplotlib.figure import Figure

    from visual_search.common import files, run_folder

    empty = Figure((1, 1))
    patch.setattr(run_folder, "write_figure", lambda path, _: files.write_figure(path, empty))


@pytest.fixture
def small_phase(
    product10k_folder: Path, dev_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A phase that trains within seconds; what a test is about, it adds."""
    spare_plots(monkeypatch)
    return {
        "dataset": {
            "product10k": {"train_valid_root": str(product10k_folder)},
            "dev_set": {"eval_root": str(dev_folder)},
            "num_of_classes": 6,
            "input_size": 32,
            "batch_size": 6,
            "augmentations": "flip",
            "num_workers": 0,
        },
        "backbone": {"name": "timm/test_efficientnet", "weights": "none"},
    }


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are finished as soon as they have begun, where it is of no matter what they learn."""
    from visual_search import train
    from visual_search.common.files import write_json

    class Idle:
        def __init__(self, phase: object, run: Any, *others: object) -> None:
            self.run = run

        def train(self) -> float:
            write_json(self.run.path / "result.json", {"finished": True, "mAP": 0.5})
            return 0.5

    monkeypatch.setattr(train, "Trainer", Idle)
