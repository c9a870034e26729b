"""Joining parts: their names, order and faults, pointers, and kills of the command."""

import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.unpack import JoinedParts, find_parts, unpack_parts
from tests.commands import refused
from tests.dataset.test_archives import contents, tar_of, unpacked
from tests.kills import killed_at_each_change

NAME = "images_mean_50k_800"


def split(data: bytes, folder: Path, stem: str = f"{NAME}.tar", parts: int = 4) -> list[Path]:
    """As `split -n` does it: parts of one size, aa, ab, …"""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // parts)
    paths = [folder / f"{stem}.parta{chr(97 + i)}" for i in range(parts)]
    for i, path in enumerate(paths):
        path.write_bytes(data[i * size : (i + 1) * size])
    return paths


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("stem", [NAME, f"{NAME}.tar"])
def test_parts_of_any_compression_and_name(stem: str, mode: str, tmp_path: Path) -> None:
    files = contents(40)
    parts = split(tar_of(files, mode), tmp_path / "dataset", stem)
    assert unpack_parts(tmp_path / "dataset" / NAME, tmp_path / "out").written == 40
    assert unpacked(tmp_path / "out") == files
    assert unpack_parts(parts[2], tmp_path / "out").kept == 40


def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    files, out = contents(6), tmp_path / "out"
    split(tar_of(files, "w:gz"), tmp_path)
    for _ in killed_at_each_change(lambda: unpack_parts(tmp_path / NAME, out)):
        found = unpacked(out) if out.exists() else {}
        assert {name: found[name] for name in found if not name.startswith(".")}.items() <= (
            files.items()
        )
    assert {name: data for name, data in unpacked(out).items() if name[0] != "."} == files


def test_a_pointer_says_how_to_get_the_part(tmp_path: Path) -> None:
    parts = split(tar_of(contents(9)), tmp_path)
    parts[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    words = f"{parts[1]} is still a git-LFS pointer: run `git lfs pull --include '{tmp_path}/{NAME}"
    refused(words, unpack_parts, tmp_path / NAME, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts[1].unlink(), "tar.partab is missing"),
        (lambda parts: parts[0].unlink(), "tar.partaa is missing"),
        (lambda parts: parts[2].write_bytes(b""), "partac has 0 bytes"),
        (lambda parts: os.truncate(parts[2], 100), "partac has 100 bytes"),
        (lambda parts: parts[3].rename(parts[3].with_suffix(".partd")), "tar.parta is missing"),
        (lambda parts: [part.unlink() for part in parts], f"no part {NAME}.part"),
        (lambda parts: parts[0].with_name(f"{NAME}.partaa").touch(), "name the one you mean"),
    ],
)
def test_wrong_parts_are_named(
    change: Callable[[list[Path]], object], words: str, tmp_path: Path
) -> None:
    change(split(tar_of(contents(9)), tmp_path))
    refused(words, unpack_parts, tmp_path / NAME, tmp_path / "out")


def test_numbered_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"x.tar.part{number}").write_bytes(b"x")
    assert [path.name[10:] for path in find_parts(tmp_path / "x")] == [str(i) for i in range(12)]
    (tmp_path / "x.tar.part0").unlink()
    assert len(find_parts(tmp_path / "x.tar")) == 11  # other tools begin with 1
    (tmp_path / "x.tar.part10").unlink()
    refused(r"x\.tar\.part10 is missing", find_parts, tmp_path / "x")


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
