import os
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from dataset import folder_info
from dataset.folder_info import describe_folder
from tests.commands import refused
from tests.conftest import csv_rows, draw_product
from tests.kills import killed_at_each_change
from visual_search.common.errors import UserError
from visual_search.common.locks import alone
from visual_search.data.duplicates import hash_and_size

TABLES = ("dataset_info.csv", "broken_photos.csv", "duplicate_files.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, one of them a level deeper, with everything that can be wrong in a folder."""
    root = tmp_path / "photos"
    for label, count in (("cup", 3), ("shoe/left", 2), ("lamp", 1)):
        (root / label).mkdir(parents=True)
        for image in range(count):
            side = 40 + 8 * image
            draw_product(len(label), image, side).save(root / label / f"{image}.png")
    (root / "cup" / "copy.png").write_bytes((root / "cup" / "1.png").read_bytes())
    odd = 'two\nlines, "quotes" & a \' ü.PNG'
    (root / "cup" / odd).write_bytes((root / "lamp" / "0.png").read_bytes())
    (root / "cup" / "empty.jpg").touch()
    (root / "cup" / "page.jpg").write_text("<html>not found</html>")
    (root / "cup" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "cup" / "notes.txt").write_text("no image")
    (root / "cup" / "to_the_top").symlink_to(root)
    (root / "stray.png").write_bytes((root / "lamp" / "0.png").read_bytes())
    return root


def test_the_table_of_a_folder(folder: Path) -> None:
    done = describe_folder(folder, folder)
    table = csv_rows(folder / "dataset_info.csv")
    assert list(table[0]) == ["file_name", "label", "width", "height", "is_test"]
    names = [(row["file_name"], row["label"], row["width"]) for row in table]
    assert names == [
        ("cup/0.png", "cup", "40"),
        ("cup/1.png", "cup", "48"),
        ("cup/2.png", "cup", "56"),
        ("cup/copy.png", "cup", "48"),
        ('cup/two\nlines, "quotes" & a \' ü.PNG', "cup", "40"),
        ("lamp/0.png", "lamp", "40"),
        ("shoe/left/0.png", "shoe/left", "40"),
        ("shoe/left/1.png", "shoe/left", "48"),
    ]
    broken = {row["file_name"]: row["reason"] for row in csv_rows(folder / "broken_photos.csv")}
    assert broken.keys() == {"cup/empty.jpg", "cup/page.jpg", "cup/gone.jpg"}
    assert "web page" in broken["cup/page.jpg"]
    assert csv_rows(folder / "duplicate_files.csv") == [
        {"file_name": "cup/copy.png", "duplicate_of": "cup/1.png"},
        {"file_name": "lamp/0.png", "duplicate_of": 'cup/two\nlines, "quotes" & a \' ü.PNG'},
    ]
    assert (done.images, done.classes, done.others) == (8, 3, {".txt": 1})
    outside, small, broken_images, duplicates = done.notes.values()
    assert (outside, small, broken_images, duplicates) == (1, 0, 3, 2)


@pytest.mark.parametrize("start", [".", "photos"])
def test_links_that_lead_to_each_other_are_followed_once(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        draw_product(ord(label), 0, 40).save(root / label / "0.png")
    (root / "a" / "x").symlink_to(root / "b")
    (root / "b" / "y").symlink_to("../a")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    draw_product(3, 0, 40).save(elsewhere / "deep" / "0.png")
    (root / "c").symlink_to(elsewhere / "deep")
    (elsewhere / "deep" / "up").symlink_to(elsewhere)
    monkeypatch.chdir(root if start == "." else tmp_path)
    describe_folder(Path(start), tmp_path / "tables")
    labels = [row["label"] for row in csv_rows(tmp_path / "tables" / "dataset_info.csv")]
    assert labels == ["a", "a/x", "b", "b/y", "c"]


def test_two_at_once_do_not_write_one_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tables"
    target.mkdir()
    with alone(target, ""), pytest.raises(UserError, match="another process is writing tables"):
        describe_folder(folder, target)
    assert list(target.iterdir()) == []
    assert describe_folder(folder, target).images


def test_small_classes_hashes_and_another_place(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tables" / "deep"
    (folder / "cut").mkdir()
    (folder / "cut" / "a.jpg").write_bytes(b"no image")
    done = describe_folder(folder, target, hashes=True, min_images=2)
    table = csv_rows(target / "dataset_info.csv")
    assert {row["label"] for row in table} == {"cup", "shoe/left"}
    small = "classes with fewer than 2 readable images, left out"
    assert (done.classes, done.notes[small]) == (2, 2)
    for row in table:
        assert (target / row["file_name"]).is_file()
        assert row["hash"] == hash_and_size((target / row["file_name"]).read_bytes())[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cup", "cut", "lamp", "shoe", "stray.png")
    ]


def test_nothing_to_describe_is_said(tmp_path: Path) -> None:
    refused("does not exist", describe_folder, tmp_path / "none", tmp_path)
    (tmp_path / "a").mkdir()
    refused("no image in a class folder", describe_folder, tmp_path, tmp_path)


def test_killed_at_any_moment_it_ends_as_an_undisturbed_job(folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    describe_folder(folder, whole, hashes=True)
    for _ in killed_at_each_change(lambda: describe_folder(folder, killed, hashes=True)):
        pass
    assert sorted(path.name for path in killed.iterdir() if path.suffix) == sorted(TABLES)
    for name in TABLES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_journal_is_believed_only_where_the_images_are_as_they_were(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tables"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_info, "write_dataset_info", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            describe_folder(folder, target)
    journal = target / ".dataset_info.csv.sizes.journal"
    os.truncate(journal, journal.stat().st_size - 7)  # as if a kill had come within a line
    Image.new("RGB", (90, 91)).save(folder / "cup" / "2.png")
    (folder / "lamp" / "0.png").unlink()
    facts = mock.Mock(side_effect=folder_info._facts)
    with mock.patch.object(folder_info, "_facts", facts):
        describe_folder(folder, target)
    assert sorted(call.args[0].name for call in facts.call_args_list) == ["1.png", "2.png"]
    sizes = {row["file_name"]: row["width"] for row in csv_rows(target / "dataset_info.csv")}
    assert sizes["../photos/cup/2.png"] == "90"
    assert "../photos/lamp/0.png" not in sizes
    assert sizes["../photos/shoe/left/0.png"] == "40"
    assert not journal.exists()
