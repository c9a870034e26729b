"""Which file an image's photo is in, at 25 bytes a photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset.dataset_creation_steps.image_store import CONTENT_DIGITS, EXTENSIONS, NAME_DIGITS
from dataset.image_text.query_lines import keys, places

_EXTENSIONS = sorted(set(EXTENSIONS.values()))
_NAME_BYTES = NAME_DIGITS // 2


class PhotoIndex:
    """Image ids to files of a store by content (`ab/ab12….jpg`)."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._keys = np.zeros(0, dtype=np.uint64)
        self._names = np.zeros((0, _NAME_BYTES), dtype=np.uint8)
        self._kinds = np.zeros(0, dtype=np.uint8)

    def add(self, images: Sequence[str], files: Sequence[str]) -> None:
        """Put some behind the others; :meth:`finish` comes after the last."""
        stems, extensions = zip(
            *(file[CONTENT_DIGITS + 1 :].split(".") for file in files), strict=True
        )
        names = np.frombuffer(bytes.fromhex("".join(stems)), dtype=np.uint8)
        kinds = np.array([_EXTENSIONS.index(extension) for extension in extensions], np.uint8)
        self._blocks.append((keys(images), names.reshape(-1, _NAME_BYTES), kinds))

    def finish(self) -> int:
        """Get ready to be asked; of several photos of an image the first counts.

        Returns:
            How many photos are left out for that.
        """
        if not self._blocks:
            return 0
        found, names, kinds = (np.concatenate(part) for part in zip(*self._blocks, strict=True))
        self._blocks.clear()
        self._keys, first = np.unique(found, return_index=True)
        self._names, self._kinds = names[first], kinds[first]
        return len(found) - len(first)

    def __len__(self) -> int:
        return len(self._keys)

    def contents(self) -> int:
        """Different contents among the photos."""
        return len(np.unique(self._names.view(f"V{_NAME_BYTES}")))

    def files(self, images: Sequence[str]) -> list[str | None]:
        """Of each image its file, None where there is none."""
        return [
            None if place < 0 else self._file(place)
            for place in places(keys(images), self._keys).tolist()
        ]

    def _file(self, place: int) -> str:
        stem = self._names[place].tobytes().hex()
        return f"{stem[:CONTENT_DIGITS]}/{stem}.{_EXTENSIONS[self._kinds[place]]}"
