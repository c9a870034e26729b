"""Images to names that were never trained on: of a list, or in the challenge's format.

    name_images(load_text_model(run), [ImageItem(Path("a.jpg"))], ["стул", "стол"], 2)

A data set of the challenge is a folder with `classes.json`, a list of names, and `img/`; a class of
many kinds of things may be a list of names itself, and has the images that are nearest to any of
them. Where `labels.json` says which class each image is of (`{"<image>": <index>}`), or one file
does so for all sets (`{"<set>": {"<image>": <index>}}`), the answers are scored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.files import read_lines, read_text, write_figure
from visual_search.data.images import ImageItem
from visual_search.data.tables import tell
from visual_search.data.values import fault_of, id_of, value_of
from visual_search.text.encoder import DualEncoder
from visual_search.text.search import Hit, TextSearchModel, images_in, nearest, unread

MOST_CLASSES_DRAWN = 40
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # Queries are typed, not told: the bare name comes first, and is not outvoted.
    "ru": ("{}", "{} фото", "{} купить", "фото: {}"),
    "en": ("{}", "{} photo", "buy {}", "a photo of {}"),
}


@dataclass(frozen=True)
class ZeroShotSet:
    """A data set in the challenge's layout."""

    name: str
    classes: list[list[str]]
    """Of each, its names: one, or several that images of it may be nearest to."""
    images: list[Path]
    labels: np.ndarray | None
    """`(n,)`, int64; None where nobody says."""


@dataclass(frozen=True)
class ZeroShotAnswer:
    """What a model says of a data set."""

    data: ZeroShotSet
    predictions: np.ndarray
    """`(n,)`, int64: the class of each image."""
    damaged: int
    """Images that could not be read; each has an answer."""

    @property
    def accuracy(self) -> float | None:
        """Share of the images with the right class, 0..1; None without labels."""
        if self.data.labels is None:
            return None
        return float((self.predictions == self.data.labels).mean())

    def as_dict(self) -> dict[str, int]:
        """Class index by image, its file's name without the ending: the challenge's format."""
        ids = [path.stem for path in self.data.images]
        return dict(zip(ids, self.predictions.tolist(), strict=True))


def read_zero_shot_sets(folders: Sequence[Path], truth: Path | None = None) -> list[ZeroShotSet]:
    """The data sets in some folders, each a set itself or holding sets in folders of its own.

    `truth` is a file with the classes of the images of all sets, in place of their labels.json.

    Raises:
        UserError: naming the file and what is wrong in it, and for two sets of one name.
    """
    places: list[Path] = []
    for folder in folders:
        inner = [path.parent for path in sorted(folder.glob("*/classes.json"))]
        places += [folder] if (folder / "classes.json").is_file() or not inner else inner
    names = [place.resolve().name for place in places]
    if len(set(names)) < len(names):
        raise UserError(f"two of the data sets have the same name: {', '.join(names)}")
    known = _read(truth, dict, "an object: data set to its images") if truth else {}
    of_sets = [known.get(value_of(name), {}) for name in names]
    return [read_zero_shot_set(place, truth, of) for place, of in zip(places, of_sets, strict=True)]


def read_zero_shot_set(
    folder: Path, truth: Path | None = None, labels: object = None
) -> ZeroShotSet:
    """A folder with `classes.json`, `img/` and perhaps `labels.json`.

    Args:
        folder: the data set.
        truth: the file that `labels` come from, in place of labels.json.
        labels: class by image; empty where `truth` does not know the set.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    classes, place = _classes(folder / "classes.json"), folder / "img"
    if not place.is_dir():
        raise UserError(f"{folder} has no folder img/: put the images there")
    images = images_in(place)
    ids: dict[str, Path] = {}
    for path in images:
        if (first := ids.setdefault(value_of(path.stem), path)) != path:
            raise UserError(f"{place}: {first.name} and {path.name} have the same id")
    own = folder / "labels.json"
    if truth is None and own.is_file():
        truth, labels = own, _read(own, dict, "an object: image to class index")
    found = _labels(truth, labels, images, len(classes)) if truth and labels else None
    return ZeroShotSet(folder.resolve().name, classes, images, found)


def _classes(path: Path) -> list[list[str]]:
    """The names of each class. An image is never given the second of two classes of one name."""
    classes = _read(path, list, "a list of names, one or more")
    found: list[list[str]] = []
    first: dict[str, int] = {}
    for number, entry in enumerate(classes):
        entries = entry if isinstance(entry, list) else [entry]
        names = [value_of(name) for name in entries if isinstance(name, str) and not fault_of(name)]
        if not names or len(names) < len(entries):
            raise UserError(
                f"{path}: class {number} is {entry!r}; write a name, or a list of names"
            )
        for name in names:
            if (other := first.setdefault(name, number)) != number:
                tell(f"{path}: classes {other} and {number} are both called {name!r}")
        found.append(names)
    return found


def _read(path: Path, kind: type, words: str) -> Any:
    """What a JSON file says, the names in it by their value."""

    def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [value_of(name) for name, _ in pairs]
        if again := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{again[0]!r} stands there twice")
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        values = json.loads(read_text(path), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, kind) or values == []:
        raise UserError(f"{path} must be {words}")
    return values


def _labels(path: Path, values: object, images: Sequence[Path], classes: int) -> np.ndarray:
    if not isinstance(values, dict):
        raise UserError(f"{path}: each data set has an object: image to class index")
    rows = []
    for image in images:
        label = values.get(value_of(image.stem), values.get(value_of(image.name)))
        with suppress(ValueError):
            label = int(id_of(label))
        if type(label) is not int or not 0 <= label < classes:
            raise UserError(
                f"{path}: the image {image.name} has class {label!r}, not a number from 0 to "
                f"{classes - 1}"
            )
        rows.append(label)
    return np.array(rows, dtype=np.int64)


def templates_for(names: Sequence[str], file: Path | None = None) -> tuple[str, ...]:
    """Templates of the names' language, or one a line from a file.

    Raises:
        UserError: for a line without `{}`, and a file without lines.
    """
    if file is None:
        return TEMPLATES[language_of_names(names)]
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip() and line.count("{}") != 1:
            raise UserError(f"{file} line {number}: {line!r} needs one {{}} for the name")
    if not (templates := tuple(read_lines(file))):
        raise UserError(f"{file} has no template: write some, one a line")
    return templates


def embed_names(encoder: DualEncoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The mean of a name's unit vectors over the templates, as unit vectors `(n, d)`.

    Prompt ensembling in the space of embeddings (Radford et al. 2021, section 3.1.4).
    """
    texts = [template.replace("{}", name) for name in names for template in templates]
    vectors = encoder.embed_texts(texts).unflatten(0, (len(names), len(templates)))
    return F.normalize(vectors.mean(dim=1), dim=1)


def language_of_names(names: Sequence[str]) -> str:
    """ru where most letters are Cyrillic, else en."""
    letters = [letter for name in names for letter in name.lower() if letter.isalpha()]
    cyrillic = sum("\u0400" <= letter <= "\u04ff" for letter in letters)
    return "ru" if cyrillic * 2 > len(letters) else "en"


def name_images(
    model: TextSearchModel, images: Sequence[ImageItem], names: Sequence[str], count: int = 5
) -> list[list[Hit]]:
    """The `count` names nearest to each image, best first; the names are in one language.

    Raises:
        UserError: for an image that cannot be read.
    """
    embedded = model.embed_images(images)
    for path, reason in unread(embedded.problems).items():
        raise UserError(f"the image {path} cannot be named: {reason}")
    vectors = embedded.matrix
    named = embed_names(model.encoder, names, templates_for(names))
    return nearest(vectors, named, names, count)


def classify(
    model: TextSearchModel, data: ZeroShotSet, templates: Path | None = None
) -> ZeroShotAnswer:
    """Give each image the class that has the nearest name.

    `templates` is a file in place of the templates of the names' language.
    """
    names = [name for several in data.classes for name in several]
    class_of = np.repeat(np.arange(len(data.classes)), [len(several) for several in data.classes])
    vectors = embed_names(model.encoder, names, templates_for(names, templates))
    embedded = model.embed_images([ImageItem(path) for path in data.images])
    best = (embedded.matrix @ vectors.T).argmax(dim=1).numpy()
    return ZeroShotAnswer(data, class_of[best], len(embedded.problems))


def mean_accuracy(answers: Sequence[ZeroShotAnswer]) -> float | None:
    """The challenge's score: the mean of the data sets' accuracies, 0..100; None without labels."""
    known = [answer.accuracy for answer in answers if answer.accuracy is not None]
    return 100 * sum(known) / len(known) if known else None


def draw_confusion(path: Path, answer: ZeroShotAnswer) -> None:
    """A picture (.png) of the confusions: shares of each row; where many, those that err most.

    The answer has labels.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    classes = answer.data.classes
    counts = confusion_matrix(answer.data.labels, answer.predictions, labels=range(len(classes)))
    errors = counts.sum(axis=1) + counts.sum(axis=0) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES_DRAWN])
    sizes = np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    names = [classes[k][0][:24] + ", …" * (len(classes[k]) > 1) for k in shown]
    side = 2.6 + 0.32 * len(shown)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(counts[np.ix_(shown, shown)] / sizes, display_labels=names).plot(
        include_values=len(shown) <= 15,
        values_format=".0%",
        cmap="Blues",
        xticks_rotation="vertical",
        ax=axes,
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 7},
    )
    part = "" if len(shown) == len(counts) else f", the {len(shown)} classes that err most"
    title = f"{answer.data.name}: accuracy {answer.accuracy:.3f}{part}"
    axes.set(xlabel="said", ylabel="is", title=title)
    write_figure(path, figure)
