"""Embeddings kept on disk image by image: a list that grows or shrinks costs what is new.

A store is a folder named by a fingerprint of the model and of :data:`PIXELS_VERSION`; each file in
it holds the embeddings of some images and a key of each: path, box, file size, time of change. A
killed job has kept every file it finished. What failed for a cause outside its image, such as a
drive that was gone, is not kept. Files hold plain arrays.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visual_search.common.files import written_atomically
from visual_search.common.model_config import EmbedSettings
from visual_search.data.image_files import HANGS, NOT_READ
from visual_search.data.images import PIXELS_VERSION, ImageItem, ImageProblem
from visual_search.model.embedder import Architecture, Embedder
from visual_search.ranking.embed import FAILED, Embeddings, embed_images

# Images a file: what a killed job loses at the most, some minutes on a CPU.
PIECE = 4096
_KEY_BYTES = 16
# Settings that change no number here: another runtime is never taken, and an image's place among
# the threads does not matter.
_WITHOUT_EFFECT = ("backend", "min_cosine", "workers")
_PASSING = (NOT_READ, HANGS, FAILED)
"""How a reason begins that may be gone the next time, although the file stays as it is."""

Make = Callable[[Sequence[ImageItem], str], Embeddings]
"""Embeds images; the text says which part of the whole they are."""


@dataclass(frozen=True)
class Features:
    """Features of a list of images."""

    matrix: Tensor
    """`(n, width)`, float32, on the CPU."""
    reasons: tuple[str, ...]
    """`(n,)`: what was wrong with each image; empty where nothing was."""
    made: int
    """How many were not in the store."""

    def problems(self, items: Sequence[ImageItem]) -> tuple[ImageProblem, ...]:
        """What was wrong with which of `items`, whose features they are."""
        told = zip(items, self.reasons, strict=True)
        return tuple(ImageProblem(str(item.path), reason) for item, reason in told if reason)


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
    facts = json.dumps([PIXELS_VERSION, weights, settings], sort_keys=True)
    return root / hashlib.sha256(facts.encode()).hexdigest()[:32]


def stored_features(folder: Path, items: Sequence[ImageItem], make: Make) -> Features:
    """The features of `items`, from the store where it has them; the others are made and kept.

    Args:
        folder: from :func:`model_folder`; it is created.
        items: the images; one that is listed twice is made once.
        make: embeds those that are missing, at most :data:`PIECE` at a time.
    """
    missing: dict[bytes, list[int]] = {}
    for row, item in enumerate(items):
        key = hashlib.sha256(_item_state(item)).digest()[:_KEY_BYTES]
        missing.setdefault(key, []).append(row)
    matrix, reasons = np.zeros((len(items), 0), np.float32), [""] * len(items)

    def fill(found: Mapping[bytes, tuple[np.ndarray, str]]) -> None:
        nonlocal matrix
        for key, (vector, reason) in found.items():
            if not matrix.shape[1]:
                matrix = np.zeros((len(items), len(vector)), np.float32)
            for row in missing.pop(key):
                matrix[row], reasons[row] = vector, reason

    for path in sorted(folder.glob("*.npz")):
        fill(_read(path, missing.keys()))
    made = [(key, items[rows[0]]) for key, rows in missing.items()]
    for start in range(0, len(made), PIECE):
        keys, images = zip(*made[start : start + PIECE], strict=True)
        part = "" if len(made) <= PIECE else f" {start + 1}..{start + len(images)}"
        embedded = make(images, part)
        problems = zip(embedded.problem_rows, embedded.problems, strict=True)
        reason_of = {row: problem.reason for row, problem in problems}
        told = [reason_of.get(row, "") for row in range(len(images))]
        kept = [row for row, reason in enumerate(told) if not reason.startswith(_PASSING)]
        if kept:
            _write(folder, [keys[k] for k in kept], embedded.matrix[kept], [told[k] for k in kept])
        rows = zip(embedded.matrix.float().numpy(), told, strict=True)
        fill(dict(zip(keys, rows, strict=True)))
    return Features(torch.from_numpy(matrix), tuple(reasons), len(made))


def _item_state(item: ImageItem) -> bytes:
    """What the pixels of one image depend on: path, box, trimming, file size, time of change."""
    try:
        status = item.path.stat()
        state = [status.st_size, status.st_mtime_ns]
    except OSError:
        state = []
    return json.dumps([str(item.path.absolute()), item.box, item.trim, state]).encode()


def _read(path: Path, wanted: Collection[bytes]) -> dict[bytes, tuple[np.ndarray, str]]:
    """Of the images of a file that are wanted, their features and what was wrong with them."""
    try:
        with np.load(path, allow_pickle=False) as piece:
            keys = [key.tobytes() for key in piece["keys"]]
            places = {key: place for place, key in enumerate(keys) if key in wanted}
            if not places:
                return {}
            matrix, reasons = piece["matrix"], json.loads(str(piece["reasons"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}); what was in it is made anew", flush=True)
        path.unlink(missing_ok=True)
        return {}
    return {key: (matrix[place], reasons.get(str(place), "")) for key, place in places.items()}


def _write(folder: Path, keys: Sequence[bytes], matrix: Tensor, reasons: Sequence[str]) -> None:
    path = folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npz"
    told = {str(place): reason for place, reason in enumerate(reasons) if reason}
    with written_atomically(path) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES),
            matrix=matrix.float().numpy(),
            reasons=np.array(json.dumps(told)),
        )


class Backbone(Embedder):
    """An embedder whose answer is the features in front of its neck, at their own length."""

    def __init__(self, embedder: Embedder) -> None:
        nn.Module.__init__(self)
        self.backbone, self.neck = embedder.backbone, nn.Identity()
        self.register_buffer("mean", embedder.mean)
        self.register_buffer("std", embedder.std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features `(N, width)`, float32, of pixels `(N, 3, H, W)`, 0..255."""
        return self.features(pixels).float()


class FeatureSource:
    """A model, ready to embed whatever the store does not have."""

    def __init__(
        self,
        model: Embedder,
        architecture: Architecture,
        settings: EmbedSettings,
        cache: Path,
        device: torch.device,
        progress: bool = True,
    ) -> None:
        """
        Args:
            model: an embedder, or the :class:`Backbone` of one; it goes to `device`.
            architecture: of the embedder.
            settings: of the embedding; nothing in them is measured, so that the same images give
                the same numbers.
            cache: folder of all stores.
            device: where the model runs.
            progress: whether there are progress bars and lines.
        """
        self.model, self.device, self.progress = model.to(device).eval(), device, progress
        self.size = architecture.input_size
        self.settings = settings.unmeasured(device.type == "cuda")
        part: nn.Module = model
        if isinstance(model, Backbone):  # the neck has no part in its features
            part, architecture = model.backbone, replace(architecture, neck="none", dimension=0)
        embedding = asdict(self.settings)
        for name in _WITHOUT_EFFECT:
            del embedding[name]
        facts = {
            "architecture": asdict(architecture),
            "device": device.type,
            "embedding": embedding,
            "kind": type(model).__name__,
        }
        self.folder = model_folder(cache, weights_fingerprint(part.state_dict()), facts)

    def features(self, items: Sequence[ImageItem], label: str) -> Features:
        """Of each image, in their order; `label` is what the images are called."""
        found = stored_features(self.folder, items, self._embed_as(label))
        if self.progress:
            counts = f"{len(items) - found.made} at hand, {found.made} embedded"
            if bad := found.problems(items):
                counts += f", {len(bad)} damaged, for example {bad[0].path}: {bad[0].reason}"
            print(f"{len(items)} {label}: {counts}", flush=True)
        return found

    def _embed_as(self, label: str) -> Make:
        def embed(images: Sequence[ImageItem], part: str) -> Embeddings:
            return embed_images(
                self.model,
                images,
                self.size,
                device=self.device,
                settings=self.settings,
                label=label + part,
                progress=self.progress,
            )

        return embed
