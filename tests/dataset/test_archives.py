"""Unpacking: hostile, damaged and cut archives, a full disk, two at once, and going on."""

import gzip
import io
import random
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset import archives
from dataset.archives import unpack
from tests.commands import refused
from tests.disks import small_disk
from visual_search.common.errors import UserError
from visual_search.common.locks import alone

Write = Callable[[bytes], Path]
TAR_MODES = ["w", "w:gz", "w:bz2", "w:xz"]


def contents(number: int, size: int = 1500) -> dict[str, bytes]:
    rng = random.Random(number)
    return {f"images/{i // 100}/{i}.jpg": rng.randbytes(size + i % 7) for i in range(number)}


def tar_of(files: dict[str, bytes], mode: str = "w", **attributes: Any) -> bytes:
    """A tar archive; each member gets the attributes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in attributes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_flag(data: bytes, change: Callable[[int], int], byte: int) -> bytes:
    """A zip archive of one member, with a byte of its flags changed in both headers."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.index(mark) + offset + byte
        changed[place] = change(changed[place])
    return bytes(changed)


def unpacked(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def archive(tmp_path: Path) -> Write:
    """Write an archive's bytes to a file, whose name says nothing."""

    def write(data: bytes) -> Path:
        path = tmp_path / "parts" / "a.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("mode", [*TAR_MODES, "zip"])
def test_what_is_missing_is_written_and_what_is_whole_is_kept(
    mode: str, archive: Write, tmp_path: Path
) -> None:
    files = {**contents(12), "乌苏啤酒/e.jpg": b"e", "x" * 120 + "/y": b"long"}
    # Names like those of half-written files: `a` was once written as `a.unfinished`.
    files |= {"a.unfinished": b"1", "a": b"2", "b/.unpacking": b"3"}
    path = archive(zip_of(files) if mode == "zip" else tar_of(files, mode))
    done = unpack(path, tmp_path / "out")
    assert (done.written, done.kept) == (17, 0)
    assert unpacked(tmp_path / "out") == files
    (tmp_path / "out" / next(iter(files))).write_bytes(b"half")
    (tmp_path / "out" / ".unpacking").write_bytes(b"of a killed run")
    done = unpack(path, tmp_path / "out")
    assert (done.written, done.kept) == (1, 16)
    assert unpacked(tmp_path / "out") == files


OUTSIDE = [
    "../evil.jpg",
    "a/../../evil.jpg",
    "a\\..\\..\\evil.jpg",
    "/tmp/evil.jpg",
    "C:\\evil.jpg",
]
OWN = [".unpacking", "./.unpacked.json", ".unpacking/x"]
GOOD = {"good.jpg": b"good"}


def special(kind: bytes, **attributes: Any) -> bytes:
    """A good file, a special one `x`, and one that would be written through it."""
    special_member = tar_of({"x": b""}, type=kind, **attributes)[: tarfile.BLOCKSIZE]
    return tar_of(GOOD)[:1024] + special_member + tar_of({"x/evil.jpg": b"evil"})


def zip_link() -> bytes:
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("good.jpg", b"good")
        made.writestr(member, "/etc/passwd")
    return buffer.getvalue()


def sparse() -> bytes:
    """A terabyte of nothing in two blocks, as GNU tar writes it with --sparse."""
    header = bytearray(tarfile.TarInfo("huge.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:482] = bytes(96)
    header[483:495] = b"%011o\0" % (1 << 30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar_of(GOOD)[:1024] + bytes(header) + bytes(1024)


def extended(kind: bytes, size: int, data: bytes = b"") -> bytes:
    """A header of a header, and what stands in it."""
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, size
    return tar_of(GOOD)[:1024] + member.tobuf() + data.ljust(-(-len(data) // 512) * 512, b"\0")


HOSTILE = [
    *(
        (make({**GOOD, name: b"evil"}), words)
        for names, words in ((OUTSIDE, "outside of the folder"), (OWN, "needs for itself"))
        for name in names
        for make in (tar_of, zip_of)
    ),
    (special(tarfile.SYMTYPE, linkname=".."), "holds a link"),
    (special(tarfile.LNKTYPE, linkname="../parts/secret"), "holds a link"),
    (special(tarfile.CHRTYPE, devmajor=1, devminor=3), "holds a device"),
    (special(tarfile.FIFOTYPE), "holds a device"),
    (zip_link(), "holds a link"),
    (sparse(), "holds a sparse file"),
    # Read in a time of its size squared by older Pythons; long names, headers of headers.
    *(
        (extended(kind, 200_000, b"1" * 200_000), "a name or header in it has 200000 bytes")
        for kind in (b"x", b"g", b"X", b"L", b"K")
    ),
    (extended(tarfile.XHDTYPE, 512, b"9" * 400 + b" a=b\n") * 2000, "is no whole archive"),
    (extended(tarfile.XHDTYPE, 512, b"9" * 5000 + b" a=b\n"), "is no whole archive"),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("data", "words"), HOSTILE, ids=lambda value: str(value)[:20])
def test_a_hostile_archive_is_refused(
    data: bytes, words: str, packed: bool, archive: Write, tmp_path: Path
) -> None:
    path = archive(gzip.compress(data) if packed and data[:2] != b"PK" else data)
    (tmp_path / "parts" / "secret").write_bytes(b"secret")
    output = tmp_path / "deep" / "out"
    tracemalloc.start()
    refused(words, unpack, path, output)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert set(unpacked(tmp_path / "deep").items()) <= {("out/good.jpg", b"good")}
    assert not any(found.is_symlink() for found in output.rglob("*"))
    assert not Path("/tmp/evil.jpg").exists()


def test_a_link_in_the_target_is_not_followed_out_of_it(archive: Write, tmp_path: Path) -> None:
    path = archive(tar_of({"a/evil.jpg": b"evil"}))
    outside, output = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    output.mkdir()
    (output / "a").symlink_to(outside)
    refused("leads out of", unpack, path, output)
    (output / "a").unlink()
    (output / "a").mkdir()
    (outside / "kept").write_bytes(b"kept")
    for name in ("a/evil.jpg", ".unpacking"):
        (output / name).symlink_to(outside / "kept")
    unpack(path, output)
    assert (outside / "kept").read_bytes() == b"kept"
    assert (output / "a" / "evil.jpg").read_bytes() == b"evil"


def test_two_at_once_do_not_write_one_folder(archive: Write, tmp_path: Path) -> None:
    path = archive(tar_of(GOOD))
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out", ""), pytest.raises(UserError, match="another archive is"):
        unpack(path, tmp_path / "out")
    assert unpack(path, tmp_path / "out").written == 1


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_an_archive_that_is_cut_off_anywhere_is_named(
    mode: str, archive: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SUMMED_BELOW", 0)  # read once, as a large one
    files = contents(12)
    data = zip_of(files) if mode == "zip" else tar_of(files, mode)
    # A member takes 2,048 bytes with its header. Behind the mark at the end of a plain tar there
    # is nothing but padding.
    last = 12 * 2048 + 512 if mode == "w" else len(data)
    for cut in [5, 512, 600, 2048, 2048 * 3, 2048 * 3 + 511, last // 2, last - 1]:
        with pytest.raises(UserError, match=r"a\.bin is no whole archive") as caught:
            unpack(archive(data[:cut]), tmp_path / "out")
        assert "cut off" in str(caught.value) or cut == 5 or mode == "zip"
        for name, content in unpacked(tmp_path / "out").items():
            assert files[name] == content
    assert (unpack(archive(data), tmp_path / "out").kept > 0) is (mode != "zip")
    assert unpacked(tmp_path / "out") == files


@pytest.mark.parametrize("mode", TAR_MODES)
def test_a_damaged_archive_is_named(mode: str, archive: Write, tmp_path: Path) -> None:
    data = bytearray(tar_of(contents(12), mode))
    place = 2048 * 5 + 100 if mode == "w" else len(data) // 2  # within a header
    data[place : place + 40] = bytes(byte ^ 0x55 for byte in data[place : place + 40])
    refused(r"a\.bin is no whole archive", unpack, archive(bytes(data)), tmp_path / "out")


def test_a_damaged_file_within_is_not_left_behind(archive: Write, tmp_path: Path) -> None:
    data = zip_of({"a.jpg": b"a" * 500, "b.jpg": b"b" * 500}, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"a\.bin is no whole archive: Bad CRC-32"):
        unpack(archive(data.replace(b"b" * 500, b"b" * 499 + b"c")), tmp_path / "out")
    assert unpacked(tmp_path / "out") == {"a.jpg": b"a" * 500}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello" * 200, "is no whole archive"),
        (b"PK\x03\x04", "is no whole archive"),
        (with_flag(zip_of(GOOD), lambda byte: byte | 1, 0), r"a\.bin is encrypted"),
    ],
)
def test_what_cannot_be_unpacked(data: bytes, words: str, archive: Write, tmp_path: Path) -> None:
    refused(words, unpack, archive(data), tmp_path / "out")
    refused("cannot be read", unpack, tmp_path / "none.zip", tmp_path / "out")


def test_names_in_utf8_without_the_flag_that_says_so(archive: Write, tmp_path: Path) -> None:
    name = "12大三元/a.jpg"
    path = archive(with_flag(zip_of({name: b"a"}), lambda byte: byte & ~0x08, 1))
    assert zipfile.ZipFile(path).namelist() != [name]
    unpack(path, tmp_path / "out")
    assert unpacked(tmp_path / "out") == {name: b"a"}


# Little in an archive, much when unpacked.
BLOWN_UP = {f"{i}.jpg": bytes([i]) * 100_000 for i in range(20)}


@pytest.mark.parametrize("data", [tar_of(BLOWN_UP, "w:gz"), zip_of(BLOWN_UP)], ids=["tar", "zip"])
def test_a_small_disk_is_told_before_or_fills_up_and_it_goes_on(
    data: bytes, tmp_path: Path, archive: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(data)
    with small_disk(tmp_path / "disk") as disk:
        refused("the disk has room for", unpack, path, disk)
        assert not unpacked(disk)
        with monkeypatch.context() as patch:
            patch.setattr(archives, "SUMMED_BELOW", 0)
            refused(r"missing of a\.bin .* the disk has room for .* make", unpack, path, disk)
            assert 3 <= len(unpacked(disk)) <= 5
            patch.setattr(archives._Writer, "check_room", lambda writer, needed: None)
            refused("the disk is full while unpacking", unpack, path, disk)
        # Room for what is missing, but not for all of it once more.
        subprocess.run(["mount", "-o", "remount,size=2200k", str(disk)], check=True)
        assert unpack(path, disk).kept >= 3
        assert unpacked(disk) == BLOWN_UP


def test_memory_does_not_hold_the_members(tmp_path: Path) -> None:
    """A member of a tar archive of a million is forgotten when the next one is read."""
    peaks = []
    for number in (20, 20, 1020):
        (tmp_path / "a.tar").write_bytes(
            tar_of({f"{'x' * 80}{index}": b"" for index in range(number)})
        )
        tracemalloc.start()
        unpack(tmp_path / "a.tar", tmp_path / f"out{number}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 300_000  # members alone would be a kilobyte each
