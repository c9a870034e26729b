"""Catalogues with names as tables of pairs."""

from pathlib import Path

from dataset.image_text.catalogue_pairs import catalogue_pairs, main
from tests.commands import refused, stopped, told
from tests.conftest import csv_rows
from visual_search.text.pairs import in_language, read_pairs, write_pairs


def test_the_demo_says_what_its_products_are_called(project: Path, tmp_path: Path) -> None:
    folder = project / "dataset" / "demo"
    products = {row["product_id"]: row for row in csv_rows(folder / "products.csv")}
    table = catalogue_pairs(folder, ("ru", "en"))
    rows = table.to_pylist()
    for row in rows:
        product = products[row["group"]]
        assert row["queries"] == [product["name_ru"], product["name_en"]]
        assert row["category"] == product["category"]
        assert row["language"] == ["ru", "en"]
        assert (row["split"] == "train") == (product["split"] == "train")
        assert (folder / row["image_path"]).is_file()
    trained = {row["group"] for row in rows if row["split"] == "train"}
    assert trained.isdisjoint(row["group"] for row in rows if row["split"] == "test")
    assert len({row["image_path"] for row in rows}) == len(rows) > 2000
    write_pairs(tmp_path / "pairs.parquet", table)
    both = read_pairs(tmp_path / "pairs.parquet", "test")
    places, asked = in_language(both, "ru")
    assert places.tolist() == list(range(len(both)))
    for row in range(len(both)):
        assert list(asked.queries[row]) == [both.queries[row][0]]
        assert list(asked.texts[row]) == [both.texts[row][0]]
    assert (asked.groups == both.groups).all()
    refused("has a query in the language 'fr'", in_language, both, "fr")


def test_the_command_writes_paths_that_can_be_used(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "pairs.parquet"
    told(main, "--output", output)
    table = read_pairs(output, "test")
    assert all(path.is_file() for path in table.paths[:20])
    said = stopped(main, "--catalogue", tmp_path, "--output", output)
    assert "neither products.csv nor classes.csv" in said


def test_groceries_have_a_name_and_a_description(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "lady.txt").write_text("Pink Lady is\nsweet. ")
    (tmp_path / "classes.csv").write_text(
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
        "Iconic Image Path (str),Product Description Path (str)\n"
        "Pink-Lady,7,Red-Apple,0,/x.jpg,/text/lady.txt\n"
    )
    (tmp_path / "train.txt").write_text("train/a.jpg, 7, 0\n\n")
    (tmp_path / "val.txt").write_text("val/b.jpg, 7, 0\n")
    first, second = catalogue_pairs(tmp_path).to_pylist()
    assert first["queries"] == ["Pink Lady", "Pink Lady is sweet."]
    assert first["texts"] == ["pink lady", "pink lady sweet"]
    assert (first["split"], second["split"]) == ("train", "test")
    assert (first["group"], first["category"]) == ("7", "Red Apple")
    assert second["image_path"] == "val/b.jpg"
    (tmp_path / "val.txt").unlink()
    refused(r"val\.txt cannot be read", catalogue_pairs, tmp_path)
    (tmp_path / "val.txt").write_text("val/b.jpg, 8, 0\n")
    refused(r"val\.txt line 1: .* with a class of classes\.csv", catalogue_pairs, tmp_path)
