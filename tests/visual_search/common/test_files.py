from __future__ import annotations

import json
from pathlib import Path

import pytest

from visual_search.common.files import write_json, written_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"text": "ё", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "ё", "n": 1}

    def interrupted() -> None:
        with written_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_an_error_not_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")

    def filled() -> None:
        with written_atomically(path) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 10_000)

    with pytest.raises(OSError, match="No space"):
        filled()
    assert path.read_text() == "old"
