"""Zip archives: hostile, encrypted, damaged, with names of unknown encoding."""

from __future__ import annotations

import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.archives import UnpackedArchives, unpack
from visual_search.errors import UserError


def zip_of(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_whatever_its_name_and_kept_files(tmp_path: Path) -> None:
    files = {"a/b/c.jpg": b"c" * 1000, "a/d.txt": b"d", "乌苏啤酒/e.jpg": b"e"}
    archive = zip_of(tmp_path / "archive.bin", files)
    done = unpack(archive, tmp_path / "out")
    assert (done.written, done.kept) == (3, 0)
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    (tmp_path / "out" / "a" / "d.txt").write_bytes(b"longer")
    done = unpack(archive, tmp_path / "out")
    assert (done.written, done.kept) == (1, 2)


def test_names_in_utf8_without_the_flag_that_says_so(tmp_path: Path) -> None:
    name = "12大三元/a.jpg"
    archive = zip_of(tmp_path / "a.zip", {name: b"a"})
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset + 1] &= ~0x08
    archive.write_bytes(bytes(data))
    assert zipfile.ZipFile(archive).namelist() != [name]
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"a"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "c:\\evil"])
def test_paths_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {name: b"evil"})
    with pytest.raises(UserError, match="outside of the folder"):
        unpack(archive, tmp_path / "deep" / "out")
    assert [path for path in tmp_path.rglob("*evil*") if path.is_file()] == []


def test_links_are_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="holds a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out" / "link").exists()


def test_an_encrypted_zip_says_what_to_do(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "img_highres.zip", {"a.jpg": b"a"})
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"img_highres\.zip is encrypted"):
        unpack(archive, tmp_path / "out")


def test_a_damaged_photo_within_is_not_left_behind(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.jpg": b"a" * 500, "b.jpg": b"b" * 500}, 0)
    archive.write_bytes(archive.read_bytes().replace(b"b" * 500, b"b" * 499 + b"c"))
    with pytest.raises(UserError, match=r"a\.zip is no whole archive: Bad CRC-32"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"hello" * 200, "is no whole archive"), (b"PK\x03\x04", "is no whole")],
)
def test_what_is_no_archive(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=words):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        unpack(tmp_path / "b.zip", tmp_path / "out")


def test_a_cut_zip_is_no_archive(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {f"{i}.jpg": bytes(1000) for i in range(50)})
    data = archive.read_bytes()
    for share in (0.3, 0.7, 0.99):
        archive.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match="is no whole archive"):
            unpack(archive, tmp_path / "out")


def test_an_archive_is_gone_through_once_until_it_changes(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a": b"a"})
    target = tmp_path / "out"
    assert archive not in UnpackedArchives(target)
    UnpackedArchives(target).unpack(archive)
    assert archive in UnpackedArchives(target)
    (target / "a").unlink()
    UnpackedArchives(target).unpack(archive)
    assert not (target / "a").exists()
    zip_of(archive, {"a": b"a", "b": b"b"})
    UnpackedArchives(target).unpack(archive)
    assert (target / "a").exists()
    (target / ".unpacked.json").write_text("{")
    assert archive not in UnpackedArchives(target)


def test_a_zip_counts_only_its_own_files_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{i}.jpg": bytes([i]) * 1000 for i in range(9)}
    archive = zip_of(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    (tmp_path / "other.bin").write_bytes(b"x" * 50_000)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    room = SimpleNamespace(free=1500)
    monkeypatch.setattr("dataset.archives.shutil.disk_usage", lambda _: room)
    with pytest.raises(UserError, match=r"what is missing of a\.zip .* make room"):
        unpack(archive, tmp_path)
    for name, data in list(files.items())[:8]:
        (tmp_path / name).write_bytes(data)
    done = unpack(archive, tmp_path)
    assert (done.written, done.kept) == (1, 8)


def test_memory_does_not_hold_the_members(tmp_path: Path) -> None:
    """A member of a tar archive of a million is forgotten when the next one is read."""
    peaks = []
    for number in (20, 20, 1020):
        with tarfile.open(tmp_path / "a.tar", mode="w") as tar:
            for index in range(number):
                tar.addfile(tarfile.TarInfo(f"{'x' * 80}{index}"), None)
        tracemalloc.start()
        unpack(tmp_path / "a.tar", tmp_path / f"out{number}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 300_000  # members alone would be a kilobyte each
