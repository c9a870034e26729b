import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import stopped
from visual_search.common.errors import run_command, without_credentials
from visual_search.common.files import write_json, write_text, written_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"text": "ё", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "ё", "n": 1}
    (path.parent / "plain").touch()  # with the rights of any file, not those of a temporary one
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode
    (path.parent / "plain").unlink()

    def interrupted() -> None:
        with written_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1
    assert list(path.parent.iterdir()) == [path]


def _write_often(path: Path) -> None:
    os.getpid = lambda: 1
    for number in range(100):
        write_text(path, str(number) * 1000)
        text = path.read_text()
        assert len(set(text)) <= 2
        assert len(text) in (1000, 2000)


def test_two_containers_write_one_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write_often, [tmp_path / "a.txt"] * 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "No such file or directory: name what exists"),
        (".", "Is a directory: name a file"),
        ("a.txt/b", "Not a directory: a part of the path is a file"),
    ],
)
def test_what_the_file_system_refuses_is_one_sentence(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "a.txt").touch()

    def main() -> None:
        (tmp_path / name).read_bytes()

    assert stopped(main).startswith(f"error: {tmp_path / name}: {words}")


def test_other_errors_keep_their_traceback() -> None:
    def broken() -> None:
        raise OSError(errno.EINVAL, "Invalid argument", "a")

    with pytest.raises(OSError, match="Invalid argument"):
        run_command(broken)


@pytest.mark.parametrize(
    "take", [lambda: bytearray(1 << 60), lambda: np.zeros(1 << 50), lambda: torch.zeros(1 << 58)]
)
def test_memory_that_there_is_not_is_one_sentence(
    take: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: (take(), None)[1])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://oauth2:SECRET@host/a.git", "https://host/a.git"),
        ("https://SECRET@host/a.git", "https://host/a.git"),
        ("https://user:SE@CRET@host:8080/a.git", "https://host:8080/a.git"),
        (
            "fatal: 'ssh://git:SECRET@host/a' is no repository",
            "fatal: 'ssh://host/a' is no repository",
        ),
        ("git@host:user/a.git", "git@host:user/a.git"),
        ("https://host/a@b", "https://host/a@b"),
        (
            "postgresql://u:SECRET@db:5/x?sslpassword=SECRET&port=5",
            "postgresql://db:5/x?sslpassword=…&port=5",
        ),
        ("https://host/a.zip?X-Token=SECRET", "https://host/a.zip?X-Token=…"),
    ],
)
def test_credentials_are_cut_out_of_addresses(address: str, shown: str) -> None:
    assert without_credentials(address) == shown
