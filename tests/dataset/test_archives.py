"""Joining parts and unpacking them: kills, hostile archives, pointers, cut files, a full disk."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.archives import JoinedParts, UnpackedArchives, find_parts, unpack, unpack_parts
from tests.conftest import PROJECT
from visual_search.common.errors import UserError

NAME = "images_mean_50k_800"


def contents(number: int, size: int = 1500) -> dict[str, bytes]:
    rng = random.Random(number)
    return {
        f"images_mean_50k/{i // 100}/{i}.jpg": rng.randbytes(size + i % 7) for i in range(number)
    }


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def split(data: bytes, folder: Path, stem: str = f"{NAME}.tar", parts: int = 4) -> list[Path]:
    """As `split -n` does it: parts of one size, aa, ab, …"""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // parts)
    paths = [folder / f"{stem}.parta{chr(97 + i)}" for i in range(parts)]
    for i, path in enumerate(paths):
        path.write_bytes(data[i * size : (i + 1) * size])
    return paths


def unpacked(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "dataset/unpack.py", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("stem", [NAME, f"{NAME}.tar"])
def test_parts_of_any_compression_and_name(stem: str, mode: str, tmp_path: Path) -> None:
    files = contents(40)
    parts = split(tar_of(files, mode), tmp_path / "dataset", stem)
    done = unpack_parts(tmp_path / "dataset" / NAME, tmp_path / "out")
    assert (done.written, done.kept) == (40, 0)
    assert unpacked(tmp_path / "out") == files
    (tmp_path / "out" / next(iter(files))).write_bytes(b"half")
    done = unpack_parts(parts[2], tmp_path / "out")
    assert (done.written, done.kept) == (1, 39)
    assert unpacked(tmp_path / "out") == files


def test_the_command_says_what_it_did_and_what_is_next(tmp_path: Path) -> None:
    split(tar_of(contents(5)), tmp_path)
    done = run(str(tmp_path / NAME))
    assert done.returncode == 0, done.stderr
    assert "5 files unpacked, 0 were there already" in done.stdout
    assert "root" in done.stdout
    assert len(list((tmp_path / "images_mean_50k" / "0").iterdir())) == 5


def test_killed_at_any_time_it_goes_on(tmp_path: Path) -> None:
    files = contents(2500, 600)
    split(tar_of(files), tmp_path)
    output = tmp_path / "out"
    kills = 0
    for goal in (1, 700, 1700):
        child = subprocess.Popen(
            [sys.executable, "dataset/unpack.py", str(tmp_path / NAME), "--output", str(output)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        folder = output / "images_mean_50k" / str(goal // 100)
        while child.poll() is None and not folder.exists():
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 2
    there = unpacked(output)
    assert 0 < len(there) < len(files)
    assert all(there[name] == files[name] for name in there if not name.endswith(".unfinished"))
    done = unpack_parts(tmp_path / NAME, output)
    assert done.kept > 0
    assert done.kept + done.written == len(files)
    after = unpacked(output)
    assert {name: data for name, data in after.items() if name in files} == files
    assert len(after) <= len(files) + kills


def hostile(**attributes: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        good = tarfile.TarInfo("good.jpg")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        member = tarfile.TarInfo("x")
        for key, value in attributes.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(b"evil"))
        through = tarfile.TarInfo("x/evil.jpg")
        through.size = 4
        tar.addfile(through, io.BytesIO(b"evil"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"name": "../evil.jpg", "size": 4}, "outside of the folder"),
        ({"name": "a/../../evil.jpg", "size": 4}, "outside of the folder"),
        ({"name": "a\\..\\..\\evil.jpg", "size": 4}, "outside of the folder"),
        ({"name": "/tmp/evil.jpg", "size": 4}, "outside of the folder"),
        ({"name": "C:\\evil.jpg", "size": 4}, "outside of the folder"),
        ({"type": tarfile.SYMTYPE, "linkname": ".."}, "holds a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "../parts/secret"}, "holds a link"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "holds a device"),
        ({"type": tarfile.FIFOTYPE}, "holds a device"),
    ],
)
def test_a_hostile_archive_is_refused(
    attributes: dict[str, object], words: str, tmp_path: Path
) -> None:
    split(hostile(**attributes), tmp_path / "parts")
    (tmp_path / "parts" / "secret").write_bytes(b"secret")
    output = tmp_path / "deep" / "out"
    with pytest.raises(UserError, match=words):
        unpack_parts(tmp_path / "parts" / NAME, output)
    assert unpacked(tmp_path / "deep") == {"out/good.jpg": b"good"}
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert not Path("/tmp/evil.jpg").exists()


def test_a_link_in_the_target_is_not_followed_out_of_it(tmp_path: Path) -> None:
    split(tar_of({"a/evil.jpg": b"evil"}), tmp_path / "parts")
    outside, output = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    output.mkdir()
    (output / "a").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        unpack_parts(tmp_path / "parts" / NAME, output)
    (output / "a").unlink()
    (output / "a").mkdir()
    (outside / "kept").write_bytes(b"kept")
    for name in ("evil.jpg", "evil.jpg.unfinished"):
        (output / "a" / name).symlink_to(outside / "kept")
    unpack_parts(tmp_path / "parts" / NAME, output)
    assert (outside / "kept").read_bytes() == b"kept"
    assert (output / "a" / "evil.jpg").read_bytes() == b"evil"


def test_a_pointer_says_how_to_get_the_part(tmp_path: Path) -> None:
    parts = split(tar_of(contents(9)), tmp_path)
    parts[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(UserError) as caught:
        unpack_parts(tmp_path / NAME, tmp_path / "out")
    assert f"{parts[1]} is still a git-LFS pointer" in str(caught.value)
    assert f"git lfs pull --include '{tmp_path}/{NAME}*'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts[1].unlink(), "tar.partab is missing"),
        (lambda parts: parts[0].unlink(), "tar.partaa is missing"),
        (lambda parts: parts[2].write_bytes(b""), "partac is empty"),
        (lambda parts: os.truncate(parts[2], 100), "partac has 100 bytes"),
        (lambda parts: parts[3].rename(parts[3].with_suffix(".partd")), "different archives"),
        (lambda parts: [part.unlink() for part in parts], f"no part {NAME}.part"),
    ],
)
def test_wrong_parts_are_named(
    change: Callable[[list[Path]], object], words: str, tmp_path: Path
) -> None:
    change(split(tar_of(contents(9)), tmp_path))
    with pytest.raises(UserError, match=words):
        unpack_parts(tmp_path / NAME, tmp_path / "out")


def test_numbered_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 9, 10, 11, 3, 4, 5, 6, 7, 8):
        (tmp_path / f"x.tar.part{number}").write_bytes(b"x")
    assert [path.name[10:] for path in find_parts(tmp_path / "x")] == [str(i) for i in range(12)]
    (tmp_path / "x.tar.part0").unlink()
    assert len(find_parts(tmp_path / "x.tar")) == 11  # other tools begin with 1
    (tmp_path / "x.tar.part10").unlink()
    with pytest.raises(UserError, match=r"x\.tar\.part10 is missing"):
        find_parts(tmp_path / "x")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_that_is_cut_off_anywhere_is_named(mode: str, tmp_path: Path) -> None:
    files = contents(12)
    data = tar_of(files, mode)
    # A member takes 2,048 bytes with its header. Behind the mark at the end of a plain tar there
    # is nothing but padding.
    last = 12 * 2048 + 512 if mode == "w" else len(data)
    for cut in [5, 512, 600, 2048, 2048 * 3, 2048 * 3 + 511, last // 2, last - 1]:
        split(data[:cut], tmp_path / str(cut), parts=1)
        with pytest.raises(UserError, match=f"{NAME} is no whole archive") as caught:
            unpack_parts(tmp_path / str(cut) / NAME, tmp_path / "out")
        assert "cut off" in str(caught.value) or cut == 5
        for name, content in unpacked(tmp_path / "out").items():
            assert files[name] == content
    split(data, tmp_path / "whole")
    assert unpack_parts(tmp_path / "whole" / NAME, tmp_path / "out").kept > 0
    assert unpacked(tmp_path / "out") == files


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_damaged_archive_is_named(mode: str, tmp_path: Path) -> None:
    data = bytearray(tar_of(contents(12), mode))
    place = 2048 * 5 + 100 if mode == "w" else len(data) // 2  # within a header
    data[place : place + 40] = bytes(byte ^ 0x55 for byte in data[place : place + 40])
    split(bytes(data), tmp_path)
    with pytest.raises(UserError, match=f"{NAME} is no whole archive"):
        unpack_parts(tmp_path / NAME, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before(small_disk: Path, tmp_path: Path) -> None:
    split(tar_of(contents(600)), tmp_path)
    with pytest.raises(UserError, match="the disk has room for"):
        unpack_parts(tmp_path / NAME, small_disk)
    assert not unpacked(small_disk)


def test_what_is_unpacked_already_needs_no_room(small_disk: Path, tmp_path: Path) -> None:
    split(tar_of(contents(14, 20_000)), tmp_path)
    unpack_parts(tmp_path / NAME, small_disk)
    assert unpack_parts(tmp_path / NAME, small_disk).kept == 14


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_only_what_the_archive_has_written_counts_as_room(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the parts lie in the very folder that they are unpacked to."""
    files = contents(60)
    split(tar_of(files, mode), tmp_path)
    (tmp_path / "another_data_set.bin").write_bytes(b"x" * 500_000)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    room = SimpleNamespace(free=len(next(iter(files.values()))) + 10)
    monkeypatch.setattr("dataset.archives.shutil.disk_usage", lambda _: room)
    with pytest.raises(UserError, match="the disk has room for"):
        unpack_parts(tmp_path / NAME, tmp_path)
    assert not (tmp_path / "images_mean_50k").exists()
    for name, data in list(files.items())[1:]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    done = unpack_parts(tmp_path / NAME, tmp_path)
    assert (done.written, done.kept) == (1, 59)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def full_disk_files() -> dict[str, bytes]:
    """Little as a gzip file, much when unpacked."""
    return {f"{i}.jpg": bytes([i]) * 100_000 for i in range(20)}


def test_a_disk_that_fills_up_is_told_and_it_goes_on(small_disk: Path, tmp_path: Path) -> None:
    split(gzip.compress(tar_of(full_disk_files())), tmp_path)
    with pytest.raises(UserError, match="the disk is full while unpacking"):
        unpack_parts(tmp_path / NAME, small_disk)
    assert 3 <= len(unpacked(small_disk)) <= 5
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert unpack_parts(tmp_path / NAME, small_disk).kept >= 3
    assert unpacked(small_disk) == full_disk_files()


def test_a_file_larger_than_may_be_written(tmp_path: Path) -> None:
    split(gzip.compress(tar_of(full_disk_files())), tmp_path)
    done = run(
        str(tmp_path / NAME),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 2
    assert "the disk is full while unpacking" in done.stderr
    assert "Traceback" not in done.stderr


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    moves=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8),
)
def test_parts_read_like_one_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], moves: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    whole = random.Random(str(sizes)).randbytes(sum(sizes))
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append(folder / str(number))
        parts[-1].write_bytes(whole[start : start + size])
        start += size
    with io.BufferedReader(JoinedParts(parts), 4) as joined, io.BytesIO(whole) as reference:
        for offset, count in moves:
            assert joined.seek(offset) == reference.seek(offset)
            assert joined.read(count) == reference.read(count)
            assert joined.tell() == reference.tell() or offset > len(whole)
        joined.seek(0)
        assert joined.read() == whole


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
