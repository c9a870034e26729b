import random
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from dataset.prepare_real_photos import (
    GROCERY_TABLE,
    PRODUCTS_TABLE,
    parse_arguments,
    prepare,
    split,
)
from tests.commands import refused
from tests.dataset import layouts
from visual_search.data.dev_sets import read_dev_set, read_dev_table


@pytest.fixture
def data(tmp_path: Path, dev_folder: Path) -> Path:
    """A small data folder: three grocery classes, and the five products of `dev_folder`."""
    folder = tmp_path / "data"
    layouts.grocery_store(folder)
    dev_folder.rename(folder / "development_test_data")
    return folder


def test_the_tables_of_a_small_folder(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "somewhere" / "real"
    assert prepare(data, output) == {
        GROCERY_TABLE: 9,
        PRODUCTS_TABLE: 8,
        "gallery.csv": 6,
        "queries.csv": 6,
        "all_gallery.csv": 10,
        "all_queries.csv": 10,
        "grocery_store.csv": 9,
    }
    whole = read_dev_set(output, "all_gallery.csv", "all_queries.csv")
    assert all(item.path.is_file() for item in [*whole.gallery, *whole.queries])
    catalogue = read_dev_table(output / "grocery_store.csv")
    assert (len(catalogue.gallery), len(catalogue.queries)) == (3, 6)
    assert all("iconic" in item.path.as_posix() for item in catalogue.gallery)
    phones = read_dev_table(
        output / "grocery_store.csv", leave_one_out=True, select="/(train|val)/"
    )
    assert (len(phones.gallery), len(phones.queries)) == (6, 6)
    grocery, products = (pd.read_csv(output / name) for name in (GROCERY_TABLE, PRODUCTS_TABLE))
    assert Counter(grocery["label"]) == {
        f"grocery_store/{name}": 3 for name in ("Apple", "Leek", "Milk")
    }
    assert grocery["width"].tolist()[:3] == [20, 21, 22]
    assert grocery["bbox"].isna().all()
    # Seller images whole, user images by their box.
    boxes = dict(zip(products["file_name"], products["bbox"].fillna(""), strict=True))
    assert {box for name, box in boxes.items() if "/queries/" in name} == {"2,2,58,58"}
    assert {box for name, box in boxes.items() if "/gallery/" in name} == {""}
    for name in [*grocery["file_name"], *products["file_name"]]:
        assert (output / name).is_file()
    dev_set = read_dev_set(output)
    assert all(item.path.is_file() for item in [*dev_set.gallery, *dev_set.queries])


@pytest.mark.parametrize("folds", [2, 3])
def test_each_product_is_judged_in_one_fold_and_trains_in_the_others(
    data: Path, tmp_path: Path, folds: int
) -> None:
    judged_in = Counter[str]()
    for fold in range(folds):
        output = tmp_path / f"real_{fold}"
        prepare(data, output, seed=3, folds=folds, fold=fold)
        products = pd.read_csv(output / PRODUCTS_TABLE)["label"]
        train = {label.removeprefix("vpr/") for label in products}
        dev_set = read_dev_set(output)
        judged = {str(product) for product in dev_set.gallery_products}
        assert judged == {str(product) for product in dev_set.query_products}
        assert not train & judged
        assert len(train | judged) == 5
        judged_in.update(judged)
    assert set(judged_in.values()) == {1}
    assert len(judged_in) == 5


def test_the_folds_are_cut_from_a_shuffled_sorted_list() -> None:
    ids = sorted([30, 4, 100, 7, 9])
    random.Random(0).shuffle(ids)
    assert split([9, 100, 4, 30, 7, 7], 0) == [set(ids[:2]), set(ids[2:])]
    assert split(ids, 0, 3) == [{ids[0]}, set(ids[1:3]), set(ids[3:])]
    assert split(range(100), 0) != split(range(100), 1)


def test_either_data_set_will_do(data: Path, tmp_path: Path) -> None:
    challenge = ["train_products.csv", "all_gallery.csv", "gallery.csv", "all_queries.csv"]
    for folder, names in (
        (data / "development_test_data", [*challenge, "queries.csv"]),
        (data / "GroceryStoreDataset", [GROCERY_TABLE, "grocery_store.csv"]),
    ):
        assert list(prepare(folder, tmp_path / folder.name)) == names
    prepare(data, data / "real")
    assert prepare(data, data / "real")  # its own tables are not taken for the challenge's


def test_queries_without_a_match_are_told_and_long_ids_stay_apart(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    challenge = data / "development_test_data"
    for name in ("gallery.csv", "queries.csv"):
        table = pd.read_csv(challenge / name)
        table["product_id"] += 2**60
        if name == "queries.csv":
            table.loc[0, "product_id"] = 7
        table.to_csv(challenge / name, index=False)
    prepare(challenge, tmp_path / "real")
    said = "queries.csv: 1 queries without a match are in all_queries.csv alone"
    assert said in capsys.readouterr().err
    rows = {name: pd.read_csv(tmp_path / "real" / name) for name in (PRODUCTS_TABLE, "gallery.csv")}
    assert (
        rows[PRODUCTS_TABLE]["label"].nunique() + rows["gallery.csv"]["product_id"].nunique() == 5
    )


def test_faults_are_named(data: Path, tmp_path: Path) -> None:
    grocery = data / "GroceryStoreDataset" / "dataset"
    lines = (grocery / "val.txt").read_text()
    (grocery / "val.txt").write_text("val/Apple/b.jpg, 0, 0\nval/Leek/b.jpg, 8, 0\n")
    refused(r"val.txt line 2: .*8, 0", prepare, data, tmp_path / "real")
    (grocery / "val.txt").write_text(lines)
    (grocery / "train" / "Leek" / "a.jpg").write_bytes(b"")
    refused(r"Leek/a\.jpg cannot be read: the file is empty", prepare, data, tmp_path / "real")
    words = "holds neither the challenge's development set"
    refused(words, prepare, tmp_path / "nowhere", tmp_path / "real")
    challenge = data / "development_test_data"
    shutil.copytree(challenge, data / "copy")
    refused(r"copy and .*development_test_data both have", prepare, data, tmp_path / "real")
    text = (challenge / "gallery.csv").read_text().splitlines()
    (challenge / "gallery.csv").write_text("\n".join(text[:3]))
    words = r"gallery\.csv has fewer products \(1\) than --folds \(2\)"
    refused(words, prepare, challenge, tmp_path / "real")
    assert not (tmp_path / "real").exists()


def test_the_folder_and_the_fold_that_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no default outside the repository, and no fold behind the last one."""
    monkeypatch.delenv("VPR_REAL_DATA", raising=False)
    for arguments in ([], ["--data", "x", "--fold", "2"]):
        with pytest.raises(SystemExit):
            parse_arguments(arguments)
    assert parse_arguments(["--data", "x", "--folds", "3"]).fold == 2
    monkeypatch.setenv("VPR_REAL_DATA", "somewhere")
    assert (parse_arguments([]).data, parse_arguments([]).fold) == (Path("somewhere"), 1)
