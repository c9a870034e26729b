import contextlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from dataset.dataset_creation_steps.prepare_training_set import LEAKS, pack, prepare_training_set
from dataset.unpack import find_parts
from tests.commands import refused
from tests.dataset.dataset_creation_steps.conftest import jpeg
from visual_search.common.errors import UserError
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


def test_each_threshold_has_its_table(store: Path, tmp_path: Path) -> None:
    made = prepare_training_set(store, tmp_path, [0.5, 0.6], [])
    assert [table.path.name for table in made] == [
        "amazon_review_mean_05_full_images.csv",
        "amazon_review_mean_06_full_images.csv",
    ]
    # 0 and 1 are below 0.5, and 2 is left alone; 3 to 5 are below 0.6 (0.6 itself is not above).
    assert paths(made[0].path) == [f"{n:02d}" for n in range(3, 12)]
    assert paths(made[1].path) == [f"{n:02d}" for n in range(6, 12)]
    assert (made[0].images, made[0].labels) == (9, 3)


def test_what_looks_like_an_evaluation_image_is_left_out(store: Path, tmp_path: Path) -> None:
    judged = tmp_path / "development_test_data"
    (judged / "gallery").mkdir(parents=True)
    # One image smaller and compressed harder, one as it is, one of something else.
    noise(7).resize((64, 64)).save(judged / "gallery" / "a.jpg", quality=60)
    noise(10).save(judged / "gallery" / "b.jpg", quality=95)
    noise(99).save(judged / "gallery" / "c.jpg")
    lines = [f"{n},gallery/{x}.jpg,{n}" for n, x in enumerate("abc")]
    (judged / "gallery.csv").write_text("\n".join(["seller_img_id,img_path,product_id", *lines]))
    made = prepare_training_set(store, tmp_path, [0.5], [judged])
    assert paths(made[0].path) == ["03", "04", "05", "06", "08", "09", "11"]
    leaks = pd.read_csv(tmp_path / LEAKS)
    assert {Path(path).stem for path in leaks["train_photo"]} == {"07", "10"}
    # As a phase names them: the images lie in a folder beside the table.
    side = Side(made[0].path, store.with_suffix(""))
    assert unchecked([side], [Side(judged / "gallery.csv", judged)]) == []
    assert unchecked([Side(made[0].path)], [Side(judged / "gallery.csv")])


def test_nothing_left_and_no_evaluation_set_are_said(store: Path, tmp_path: Path) -> None:
    refused(r"no product has 2 images above 0\.9", prepare_training_set, store, tmp_path, [0.9], [])
    with pytest.raises(UserError, match="neither a csv file nor a folder"):
        prepare_training_set(store, tmp_path, [0.5], [tmp_path / "none"])
    refused("does not exist", prepare_training_set, tmp_path / "none.parquet", tmp_path, [0.5], [])


def test_packed_twice_gives_the_same_bytes_and_old_parts_go(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "000").mkdir(parents=True)
    names = [f"000/{n}.jpg" for n in range(20)]
    for n, name in enumerate(names):
        (root / name).write_bytes(jpeg(n, 0))
    stem = tmp_path / "images_1.tar"
    small = pack(root, names, stem, 5_000)
    assert [path.name for path in small[:3]] == [f"images_1.tar.parta{x}" for x in "abc"]
    first = b"".join(path.read_bytes() for path in small)
    large = pack(root, reversed(names), stem, 20_000)
    assert len(large) < len(small)
    assert sorted(tmp_path.glob("images_1.tar.part*")) == large
    assert b"".join(path.read_bytes() for path in large) == first


def joined(parts: list[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in parts)


def complaint(stem: Path) -> str:
    """What is wrong with the parts; empty where nothing is."""
    try:
        find_parts(stem)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_kill_while_parts_are_exchanged_is_noticed(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it comes: the parts are all of one call, or one is missing."""
    root = tmp_path / "images"
    root.mkdir()
    for n in range(12):
        (root / f"{n}.jpg").write_bytes(jpeg(n, 0))
    stem = tmp_path / "x.tar"
    old, new = [f"{n}.jpg" for n in range(12)], [f"{n}.jpg" for n in range(9)]
    whole = [joined(pack(root, names, stem, 5_000)) for names in (old, new)]
    original, noticed = getattr(Path, call), 0
    for number in range(12):
        pack(root, old, stem, 5_000)
        done = 0

        def killed(path: Path, *given: Any, number: int = number, **more: Any) -> Any:
            nonlocal done
            if call == "replace" or path.name.startswith("x.tar.part"):
                done += 1
                if done > number:
                    raise KeyboardInterrupt
            return original(path, *given, **more)

        monkeypatch.setattr(Path, call, killed)
        with contextlib.suppress(KeyboardInterrupt):
            pack(root, new, stem, 5_000)
        monkeypatch.undo()
        lacking = complaint(stem)
        noticed += bool(lacking)
        if lacking:
            assert "x.tar.partaa is missing" in lacking or "has no part" in lacking
        else:
            assert joined(find_parts(stem)) in whole
    assert noticed >= 3
    pack(root, new, stem, 5_000)
    assert find_parts(stem)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_image_that_is_gone_leaves_the_old_parts(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.jpg").write_bytes(jpeg(0, 0))
    (before,) = pack(root, ["a.jpg"], tmp_path / "x.tar", 1_000_000)
    data = before.read_bytes()
    refused("run download_images", pack, root, ["a.jpg", "b.jpg"], tmp_path / "x.tar", 1_000_000)
    assert before.read_bytes() == data
    assert not list(tmp_path.glob(".*.tmp"))
