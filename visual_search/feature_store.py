"""Features of photos kept on disk photo by photo: a list that grows or shrinks costs what is new.

A store is a folder named by a fingerprint of the model and of the code that makes pixels; each
file in it holds the features of some photos and a key of each: path, box, file size, time of
change. A killed job has kept every file it finished.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_search.embed import Embeddings
from visual_search.embedding_cache import code_digest, item_state
from visual_search.files import written_atomically
from visual_search.images import ImageItem

# Photos a file: what a killed job loses at the most, some minutes on a CPU.
PIECE = 4096
_KEY_BYTES = 16

Make = Callable[[Sequence[ImageItem], str], Embeddings]
"""Embeds photos; the text says which part of the whole they are."""


@dataclass(frozen=True)
class Features:
    """Features of a list of photos."""

    matrix: Tensor
    """`(n, width)`, float32, on the CPU."""
    reasons: tuple[str, ...]
    """`(n,)`: what was wrong with each photo; empty where nothing was."""
    made: int
    """How many were not in the store."""


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex digits, of names and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # Raw bytes, since numpy knows no bfloat16.
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_folder(root: Path, weights: str, settings: Mapping[str, Any]) -> Path:
    """Where the features of a model are kept.

    Args:
        root: of all stores.
        weights: from :func:`weights_fingerprint`.
        settings: what else the numbers depend on: architecture, input size; JSON values.
    """
    digest = hashlib.sha256(code_digest())
    digest.update(json.dumps([weights, settings], sort_keys=True).encode())
    return root / digest.hexdigest()[:32]


def stored_features(folder: Path, items: Sequence[ImageItem], make: Make) -> Features:
    """The features of `items`, from the store where it has them; the others are made and kept.

    Args:
        folder: from :func:`model_folder`; it is created.
        items: the photos; one that is listed twice is made once.
        make: embeds those that are missing, at most :data:`PIECE` at a time.
    """
    keys = [hashlib.sha256(item_state(item)).digest()[:_KEY_BYTES] for item in items]
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    answer = _Answer(len(items))
    for path, found in _pieces(folder):
        answer.take(path, found, rows)
    missing = [same[0] for same in rows.values() if same[0] not in answer.filled]
    for start in range(0, len(missing), PIECE):
        piece = missing[start : start + PIECE]
        part = "" if len(missing) <= PIECE else f" {start + 1}..{start + len(piece)}"
        embedded = make([items[row] for row in piece], part)
        told = {problem.path: problem.reason for problem in embedded.problems}
        reasons = [told.get(str(items[row].path), "") for row in piece]
        path = _write(folder, [keys[row] for row in piece], embedded.matrix, reasons)
        answer.take(path, [keys[row] for row in piece], rows)
    return answer.features(len(missing))


class _Answer:
    """Rows that are filled in as their pieces are read."""

    def __init__(self, count: int) -> None:
        self.matrix = torch.zeros(count, 0)
        self.reasons = [""] * count
        self.filled: set[int] = set()

    def take(self, path: Path, keys: Sequence[bytes], rows: Mapping[bytes, list[int]]) -> None:
        wanted = [
            (place, row)
            for place, key in enumerate(keys)
            for row in rows.get(key, ())
            if row not in self.filled
        ]
        if not wanted:
            return
        found = _read(path)
        if found is None:
            return
        matrix, reasons = found
        if not self.filled:
            self.matrix = torch.zeros(len(self.reasons), matrix.shape[1])
        places, into = map(list, zip(*wanted, strict=True))
        self.matrix[into] = torch.from_numpy(matrix[places])
        for place, row in wanted:
            self.reasons[row] = reasons.get(str(place), "")
        self.filled.update(into)

    def features(self, made: int) -> Features:
        return Features(self.matrix, tuple(self.reasons), made)


_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def _pieces(folder: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """The files of a store with the keys in them."""
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as piece:
                keys = piece["keys"]
        except _DAMAGE as error:
            _remove(path, error)
            continue
        yield path, [key.tobytes() for key in keys]


def _read(path: Path) -> tuple[np.ndarray, dict[str, str]] | None:
    """The features of a file and what was wrong with which; None where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as piece:
            return piece["matrix"], json.loads(str(piece["reasons"]))
    except _DAMAGE as error:
        _remove(path, error)
        return None


def _remove(path: Path, error: Exception) -> None:
    print(f"{path} is damaged ({error}); what was in it is made anew", flush=True)
    path.unlink(missing_ok=True)


def _write(folder: Path, keys: Sequence[bytes], matrix: Tensor, reasons: Sequence[str]) -> Path:
    path = folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npz"
    told = {str(place): reason for place, reason in enumerate(reasons) if reason}
    with written_atomically(path) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES),
            matrix=matrix.float().numpy(),
            reasons=np.array(json.dumps(told)),
        )
    return path
