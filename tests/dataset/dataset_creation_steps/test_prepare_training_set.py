from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from dataset.dataset_creation_steps.prepare_training_set import LEAKS, prepare_training_set
from tests.commands import refused
from visual_search.data.leak_record import Side, unchecked


def noise(seed: int) -> Image.Image:
    """An image that no other resembles."""
    import numpy as np

    values = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twelve images of four products; means from 0.45 up."""
    folder = tmp_path / "images_mean_50k"
    (folder / "000").mkdir(parents=True)
    rows = []
    for n in range(12):
        noise(n).save(folder / "000" / f"{n:02d}.jpg", quality=95)
        rows.append([f"000/{n:02d}.jpg", f"B{n // 3}", 0.45 + 0.03 * n])
    table = tmp_path / "images_mean_50k.parquet"
    pd.DataFrame(rows, columns=["image_path", "label", "mean_cosine"]).to_parquet(table)
    return table


def paths(file: Path) -> list[str]:
    return [Path(path).stem for path in pd.read_csv(file)["image_path"]]


def test_each_threshold_has_its_table(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = prepare_training_set(store, tmp_path, [0.5, 0.6], [])
    assert [low.name, high.name] == [
        "amazon_review_mean_05_full_images.csv",
        "amazon_review_mean_06_full_images.csv",
    ]
    # 0 and 1 are below 0.5, and 2 is left alone; 3 to 5 are below 0.6 (0.6 itself is not above).
    assert paths(low) == [f"{n:02d}" for n in range(3, 12)]
    assert paths(high) == [f"{n:02d}" for n in range(6, 12)]
    assert f"{low}: 9 images of 3 products" in capsys.readouterr().out


def test_what_looks_like_an_evaluation_image_is_left_out(store: Path, tmp_path: Path) -> None:
    judged = tmp_path / "development_test_data"
    (judged / "gallery").mkdir(parents=True)
    # One image smaller and compressed harder, one as it is, one of something else.
    noise(7).resize((64, 64)).save(judged / "gallery" / "a.jpg", quality=60)
    noise(10).save(judged / "gallery" / "b.jpg", quality=95)
    noise(99).save(judged / "gallery" / "c.jpg")
    lines = [f"{n},gallery/{x}.jpg,{n}" for n, x in enumerate("abc")]
    (judged / "gallery.csv").write_text("\n".join(["seller_img_id,img_path,product_id", *lines]))
    (made,) = prepare_training_set(store, tmp_path, [0.5], [judged])
    assert paths(made) == ["03", "04", "05", "06", "08", "09", "11"]
    leaks = pd.read_csv(tmp_path / LEAKS)
    assert {Path(path).stem for path in leaks["train_photo"]} == {"07", "10"}
    # As a phase names them: the images lie in a folder beside the table.
    side = Side.of(made, store.with_suffix(""))
    assert unchecked([side], [Side.of(judged / "gallery.csv", judged)]) == []
    assert unchecked([Side.of(made)], [Side.of(judged / "gallery.csv")])


def test_nothing_left_and_no_evaluation_set_are_said(store: Path, tmp_path: Path) -> None:
    refused(r"no product has 2 images above 0\.9", prepare_training_set, store, tmp_path, [0.9], [])
    nowhere = [tmp_path / "none"]
    refused("neither a csv file", prepare_training_set, store, tmp_path, [0.5], nowhere)
    refused("does not exist", prepare_training_set, tmp_path / "none.parquet", tmp_path, [0.5], [])
