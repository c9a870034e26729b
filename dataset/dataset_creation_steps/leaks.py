"""Photos that also stand in an evaluation set: what is judged must not be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from visual_search.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp"}


def evaluation_photos(folders: Sequence[Path]) -> list[Path]:
    """All photos below some folders, sorted.

    Raises:
        UserError: when a folder is missing or has none.
    """
    found = []
    for folder in folders:
        photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not photos:
            raise UserError(f"--evaluation {folder}: there is no photo")
        found += photos
    return found


def find_leaks(
    root: Path, photos: pd.DataFrame, folders: Sequence[Path], distance: int
) -> pd.DataFrame:
    """The training photos that are, or look like, one of the evaluation photos.

    Args:
        root: folder of the training photos.
        photos: their `image_path` and `sha256`.
        folders: of the evaluation photos.
        distance: bits of the perceptual hash.

    Returns:
        image_path, evaluation_photo.
    """
    digests = {}
    for path in evaluation_photos(folders):
        with path.open("rb") as handle:
            digests[hashlib.file_digest(handle, "sha256").hexdigest()] = str(path)
    same = photos[photos["sha256"].isin(digests)]
    return pd.DataFrame(
        {"image_path": same["image_path"], "evaluation_photo": same["sha256"].map(digests)}
    )
