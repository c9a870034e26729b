"""What a run is trained on and judged by: `data.json` in its folder, compared when it goes on.

Settings name tables, but not what is in them. What is kept of the data is small and cheap to take
again: a digest of each table, of the order of the classes, and the sizes of some image files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.common.errors import UserError
from visual_search.common.files import read_json, write_json
from visual_search.data.datasets import LabelledImages
from visual_search.data.leak_record import Side, warning
from visual_search.model.checkpoint import (
    FIRST_RU_CLIP,
    find_checkpoint,
    fingerprint,
    read_description,
)

DATA_FILE, CLASSES_FILE = "data.json", "classes.json"
DATA_FORMAT = 1
"""Raised when an older reader would misread the file."""
SPREAD = 64
"""Image files whose sizes are kept, spread over the training images."""
OTHER_CLASSES = "the classes are others, or in another order"


@dataclass(frozen=True)
class Origin:
    """A model that a run starts or learns from, or that such a model started from."""

    source: str
    weights: str
    """SHA-256 of its file; empty of one that is further back."""
    training: tuple[Side, ...] | None
    """What it was trained on; None where that is not known."""


@dataclass(frozen=True)
class Identity:
    """The data of a run."""

    training: tuple[Side, ...]
    development: tuple[Side, ...]
    images: int
    classes: int
    class_names: str
    """:func:`digest_of_names` of them, in their order."""
    origins: tuple[Origin, ...] = ()
    image_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of :data:`SPREAD` image files, by path; -1 of one that is missing."""

    def as_json(self) -> dict[str, Any]:
        """The content of `data.json`."""
        return {"format": DATA_FORMAT, **asdict(self)}

    def of_a_model(self) -> dict[str, Any]:
        """The same without single images, for the `model.json` of a checkpoint."""
        return replace(self, image_bytes={}).as_json()

    def now(self) -> Identity:
        """The same data as they are now."""
        origins = [one for one in self.origins if one.weights]
        return replace(
            self,
            training=tuple(side.now() for side in self.training),
            development=tuple(side.now() for side in self.development),
            origins=tuple(replace(o, weights=fingerprint(Path(o.source))) for o in origins),
            image_bytes={name: _size(Path(name)) for name in self.image_bytes},
        )

    def seen_before(self, unseen: np.ndarray) -> str:
        """In how far the classes `unseen`, not trained on here, are those of models further back.

        Returns:
            What to add to a sentence about them; empty where there is nothing to say.
        """
        names = {one.source: class_names_of(Path(one.source)) for one in self.origins}
        seen = {source: len(np.intersect1d(unseen, known or ())) for source, known in names.items()}
        words = [f"{count} of them in that of {source}" for source, count in seen.items() if count]
        unknown = [source for source, known in names.items() if known is None]
        if unknown:
            words.append(f"the classes of {', '.join(unknown)} are not known")
        return f" ({'; '.join(words)})" if words else ""

    def leak_words(self) -> str:
        """Sentences where training and evaluation share images, or nobody looked; else empty.

        Models that the phase starts or learns from count as training too.
        """
        sides, unknown = [side.now() for side in self.training], []
        for origin in self.origins:
            then = origin.training or ()
            now = [side.now() for side in then]
            sides += now
            if not now or now != list(then):
                unknown.append(origin.source)
        words = [warning(list(dict.fromkeys(sides)), self.development)]
        if unknown:
            words.append(
                f"whether {', '.join(unknown)} trained on images of the development set is not "
                "known: its tables were not recorded, or have changed since"
            )
        return "; ".join(filter(None, words))


def identity_of(
    images: LabelledImages,
    training: Sequence[Side],
    development: Sequence[Side],
    sources: Sequence[str | None],
) -> Identity:
    """The data of a phase as they are now.

    Args:
        images: the training images.
        training: the tables that they are from.
        development: the tables that the phase is judged on.
        sources: runs or model files that it starts or learns from; empty ones are passed over.
    """
    paths = images.paths[:: max(len(images) // SPREAD, 1)][:SPREAD]
    return Identity(
        tuple(side.now() for side in training),
        tuple(side.now() for side in development),
        len(images),
        images.classes,
        digest_of_names(images.class_names),
        tuple(origin for source in sources if source for origin in _origins_of(source)),
        {str(path): _size(path) for path in paths},
    )


def digest_of_names(names: Sequence[str]) -> str:
    """SHA-256 of the names of the classes in their order; empty where there are none."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest() if names else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _origins_of(source: str) -> list[Origin]:
    """A model, and those that it started from."""
    found = model_identity(Path(source))
    own = Origin(source, fingerprint(Path(source)), None if found is None else found.training)
    further = () if found is None else found.origins
    return [own, *(replace(origin, weights="") for origin in further)]


def model_identity(source: Path) -> Identity | None:
    """What a run, checkpoint or export was trained on; None of one of an earlier version.

    Raises:
        UserError: when there is no such model, or its description is damaged.
    """
    if (source / FIRST_RU_CLIP).is_file():
        return None
    description = find_checkpoint(source).with_name("model.json")
    values = read_description(description)[1].get("data")
    return None if values is None else _parsed(values, description)


def read_identity(run: Path) -> Identity | None:
    """What stands in a run's `data.json`; None where there is none, of an earlier version.

    Raises:
        UserError: when it is damaged.
    """
    path = run / DATA_FILE
    try:
        return _parsed(read_json(path), path)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {_WITHOUT}") from error


_WITHOUT = "delete it to go on without a comparison of the data"


def _parsed(values: Any, path: Path) -> Identity:
    def tables(of: Mapping[str, Any], side: str = "training") -> tuple[Side, ...]:
        return tuple(Side(**one) for one in of[side])

    try:
        if values["format"] > DATA_FORMAT:
            raise UserError(f"{path} is of a newer kit; update")
        origins = [
            Origin(one["source"], one["weights"], one["training"] and tables(one))
            for one in values["origins"]
        ]
        return Identity(
            tables(values),
            tables(values, "development"),
            int(values["images"]),
            int(values["classes"]),
            str(values["class_names"]),
            tuple(origins),
            dict(values["image_bytes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not say what data are meant ({error!r}); {_WITHOUT}"
        ) from error


def averaged(sources: Sequence[Path]) -> Identity | None:
    """Of the average of models: the first one's data, and the others' as what it learnt from.

    None where the first one's are not known.
    """
    first = model_identity(sources[0])
    if first is None:
        return None
    others = [replace(one, weights="") for path in sources[1:] for one in _origins_of(str(path))]
    return replace(first, origins=tuple(dict.fromkeys((*first.origins, *others))))


def differences(saved: Identity, now: Identity) -> list[str]:
    """What changed between two identities of one run, in words; empty where nothing did."""
    tables = ((*one.training, *one.development) for one in (saved, now))
    found = [
        f"{before.file} {'has changed' if after.sha256 else 'is gone'}"
        for before, after in zip(*tables, strict=False)
        if before.sha256 != after.sha256
    ]
    for what in ("images", "classes"):
        old, new = getattr(saved, what), getattr(now, what)
        if old != new:
            found.append(f"{old} -> {new} {what}")
    if saved.class_names != now.class_names and saved.classes == now.classes:
        found.append(OTHER_CLASSES)
    weights = {origin.source: origin.weights for origin in now.origins if origin.weights}
    found += [
        f"the weights of {one.source}: {one.weights[:12]} -> {weights[one.source][:12]}"
        for one in saved.origins
        if one.weights and weights.get(one.source, one.weights) != one.weights
    ]
    sizes = now.image_bytes
    other = [name for name, size in saved.image_bytes.items() if sizes.get(name, size) != size]
    if other:
        found.append(
            f"{len(other)} of {len(sizes)} image files looked at have other sizes, such as "
            f"{other[0]}"
        )
    return found


def changed_data(run: Path) -> list[str]:
    """What changed since a run was trained, as far as its `data.json` tells; see `differences`.

    Of a run that has learnt nothing yet, and of one of an earlier version, nothing.
    """
    saved = read_identity(run)
    learnt = (run / "result.json").is_file() or _has_state(run)
    return differences(saved, saved.now()) if saved is not None and learnt else []


def _has_state(run: Path) -> bool:
    return any((run / "state").glob("step-*/complete.json"))


def keep_identity(run: Path, now: Identity, class_names: Sequence[str]) -> None:
    """Write down what a run is trained on; before that, compare it where the run has learnt.

    Raises:
        UserError: when a killed run would go on with other data; nothing is written then.
    """
    if _has_state(run):
        saved, changes = read_identity(run), []
        if saved is not None:
            changes = differences(saved, now)
        elif (_names_in(run) or class_names) != list(class_names):
            changes = [OTHER_CLASSES]
        else:
            print(f"{run} has no {DATA_FILE}: whether its data are the same is not known")
        if changes:
            raise UserError(
                f"{run} was started with other data ({'; '.join(changes[:5])}): bring them back, "
                "choose another --name, or replace it with --overwrite true"
            )
    write_json(run / CLASSES_FILE, list(class_names))
    write_json(run / DATA_FILE, now.as_json())


def class_names_of(source: Path) -> list[str] | None:
    """The classes that a run or a checkpoint in it was trained on; None where that is not known."""
    try:
        folder = find_checkpoint(source).parent
    except UserError:  # a run further back may be gone
        return None
    return _names_in(folder.parent if folder.name in ("best", "last") else folder)


def _names_in(folder: Path) -> list[str] | None:
    try:
        names = read_json(folder / CLASSES_FILE)
    except (OSError, ValueError, RecursionError):
        return None
    return list(map(str, names)) if isinstance(names, list) and names else None


def same_classes(source: Path, class_names: Sequence[str]) -> bool | None:
    """Whether a model's classes are these, in this order; None where its own are not known."""
    found = model_identity(source)
    if found is not None and found.class_names:
        return found.class_names == digest_of_names(class_names)
    names = class_names_of(source)
    return None if names is None else names == list(class_names)
