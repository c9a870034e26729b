"""Errors that are the user's to solve: one sentence, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something in the user's files, settings or machine; the message says what to do about it."""


def exit_with_sentence(main: Callable[[], None]) -> None:
    """Run an entry point; a :class:`UserError` becomes `error: …` on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
