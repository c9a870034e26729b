"""Prompt ensembling: the templates that a class name is put into, and the mean of their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from visual_search.common.errors import UserError
from visual_search.common.files import read_lines, read_text
from visual_search.text.encoder import DualEncoder

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # Queries are typed, not told: the bare name comes first, and is not outvoted.
    "ru": ("{}", "{} фото", "{} купить", "фото: {}"),
    "en": ("{}", "{} photo", "buy {}", "a photo of {}"),
}


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
