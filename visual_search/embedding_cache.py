"""Embeddings kept on disk, so that a second look at the same model and photos takes seconds.

An entry is named by a fingerprint of all that the numbers depend on: weights, architecture, input
size, the photos' paths, sizes, times of change and boxes, and the code that makes pixels.
Whatever changes makes another entry; nothing is ever looked up by name. Entries hold plain arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visual_search.embed import Embeddings
from visual_search.files import written_atomically
from visual_search.images import ImageItem, ImageProblem

# The code between a file and the model's answer.
_PIXEL_CODE = (
    "embed.py",
    "images.py",
    "model.py",
    "precision.py",
)


def embeddings_fingerprint(
    weights: str, items: Sequence[ImageItem], settings: Mapping[str, Any]
) -> str:
    """SHA-256, as hex digits, of everything that the embeddings of `items` depend on.

    Args:
        weights: a fingerprint of the model's weights.
        items: the photos; of each, path, box, trimming, file size and time of change count.
        settings: what else matters: architecture, input size, device; JSON values.
    """
    digest = hashlib.sha256(code_digest())
    digest.update(json.dumps([weights, settings], sort_keys=True).encode())
    for item in items:
        digest.update(item_state(item))
    return digest.hexdigest()


def code_digest() -> bytes:
    """Digests of the code that makes a file's pixels and the model's answer to them."""
    code = [(Path(__file__).parent / name).read_bytes() for name in _PIXEL_CODE]
    return b"".join(hashlib.sha256(text).digest() for text in code)


def item_state(item: ImageItem) -> bytes:
    """What the pixels of one photo depend on: path, box, trimming, file size, time of change."""
    try:
        status = item.path.stat()
        state = [status.st_size, status.st_mtime_ns]
    except OSError:
        state = []
    return json.dumps([str(item.path.absolute()), item.box, item.trim, state]).encode()


def cached_embeddings(
    folder: Path, fingerprint: str, make: Callable[[], Embeddings]
) -> tuple[Embeddings, bool]:
    """The entry of that fingerprint, or what `make` gives, which is then kept.

    Args:
        folder: of the cache; it is created.
        fingerprint: from :func:`embeddings_fingerprint`.
        make: embeds the photos.

    Returns:
        The embeddings, and whether they were in the cache. A damaged entry is made anew.
    """
    path = folder / f"{fingerprint}.npz"
    if path.is_file():
        try:
            return _read(path), True
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{path} is damaged ({error}); it is made anew", flush=True)
    embeddings = make()
    problems = json.dumps([dataclasses.astuple(problem) for problem in embeddings.problems])
    with written_atomically(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, matrix=embeddings.matrix.numpy(), problems=np.array(problems))
    return embeddings, False


def _read(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as entry:
        matrix = torch.from_numpy(entry["matrix"])
        problems = [ImageProblem(*values) for values in json.loads(str(entry["problems"]))]
    return Embeddings(matrix, tuple(problems))
