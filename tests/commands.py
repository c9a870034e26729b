"""The kit's commands without a process of their own: this one has loaded what they need."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

from visual_search.errors import exit_with_sentence


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
            exit_with_sentence(main)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
