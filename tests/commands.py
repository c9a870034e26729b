"""The kit's commands: in this process, which has loaded what they need, or in several at once."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.conftest import PROJECT
from visual_search.common.errors import UserError, run_command


def inside(main: Callable[[], None], *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a command does when it is called with `arguments`, and what it prints.

    Args:
        main: of the command's module.
        arguments: as on the command line.
    """
    words = [main.__module__, *map(str, arguments)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run_command(main)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def told(main: Callable[[], None], *arguments: object) -> str:
    """What a command prints when it ends well."""
    done = inside(main, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stopped(main: Callable[[], None], *arguments: object) -> str:
    """The sentence with which a command ends at a fault of the user's."""
    done = inside(main, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def logged(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


def refused(words: str, call: Callable[..., object], *given: object, **more: object) -> str:
    """The sentence for the user that a call ends in; `words`, a pattern, are found in it."""
    with pytest.raises(UserError, match=words) as caught:
        call(*given, **more)
    return str(caught.value)


def ran(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, whatever its end: status, what it printed, and its errors."""
    given: dict[str, Any] = {"cwd": PROJECT, "timeout": 300, **more}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **given)
