"""From the model archives (*.sh3f) to a list of products.

An archive is a zip with a java .properties table (one per language), a LICENSE.TXT and one folder
per model. `curation.csv`, kept next to this module, records by hand which models are left out and
which look so alike that they must fall on the same side of the train/development split.
"""

import csv
import hashlib
import random
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from visual_search.common.errors import UserError

CURATION = Path(__file__).with_name("curation.csv")
TABLE = "PluginFurnitureCatalog"
APT_PACKAGE = "sweethome3d-furniture"
LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC-BY 3.0",
    "KatorLegaz": "CC-BY 3.0 US",
    "Scopia": "CC-BY 3.0",
}
CREDITS = {
    "Kator Legaz": "Andrew Kator & Jennifer Legaz",
    "Scopia": "Scopia Visual Interfaces Systems, s.l. & Emmanuel Puybaret / eTeks",
    "Scopia & eTeks": "Scopia Visual Interfaces Systems, s.l. & Emmanuel Puybaret / eTeks",
}

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SHORT = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


@dataclass(frozen=True)
class Product:
    """One model of the catalogue; sizes in centimetres as (width, height, depth)."""

    key: str
    archive: Path
    member: str
    name_en: str
    name_ru: str
    category: str
    author: str
    licence: str
    size_cm: tuple[float, float, float]
    elevation_cm: float
    rotation: tuple[float, ...]
    mesh_bytes: int
    look_alike: str
    split: str = field(default="", compare=False)

    @property
    def longest_cm(self) -> float:
        """Longest side of the bounding box."""
        return max(self.size_cm)


def stable_seed(*parts: object) -> int:
    """A 64-bit number that depends on the parts only, not on the process or its order of work."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        token = match.group(1)
        if len(token) == 5:
            return chr(int(token[1:], 16))
        return _SHORT.get(token, token)

    return _ESCAPE.sub(replace, text)


def parse_properties(text: str) -> dict[str, str]:
    """Read a java .properties text: comments, continuation lines, \\uXXXX and short escapes."""
    result: dict[str, str] = {}
    pending = ""
    for raw in text.splitlines():
        line = pending + raw.lstrip(" \t\f")
        pending = ""
        if not line or line[0] in "#!":
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            pending = line[:-1]
            continue
        match = re.match(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", line, re.DOTALL)
        if match:
            result[_unescape(match.group(1))] = _unescape(match.group(2))
    return result


def _read_table(archive: zipfile.ZipFile, language: str = "") -> dict[str, str]:
    name = f"{TABLE}{language}.properties"
    return parse_properties(archive.read(name).decode("latin-1"))


def _curation() -> dict[str, tuple[str, str]]:
    """Model key -> (decision, look-alike group); models not named are kept, alone in a group."""
    with CURATION.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {row["model"]: (row["decision"], row["group"]) for row in rows}


def _product(
    archive: zipfile.ZipFile,
    tables: tuple[dict[str, str], dict[str, str]],
    number: str,
    curation: dict[str, tuple[str, str]],
) -> Product | None:
    english, russian = tables
    path = Path(str(archive.filename))

    def value(name: str, default: str = "") -> str:
        return english.get(f"{name}#{number}", default)

    key = f"{path.stem}/{value('id').split('#')[-1]}"
    decision, group = curation.get(key, ("keep", ""))
    if decision != "keep":
        return None
    creator = value("creator")
    member = value("model").lstrip("/")
    rotation = tuple(float(x) for x in value("modelRotation", "1 0 0 0 1 0 0 0 1").split())
    return Product(
        key=key,
        archive=path,
        member=member,
        name_en=value("name"),
        name_ru=russian.get(f"name#{number}", value("name")),
        category=value("category"),
        author=CREDITS.get(creator, creator),
        licence=LICENCES[path.stem],
        size_cm=(float(value("width")), float(value("height")), float(value("depth"))),
        elevation_cm=float(value("elevation", "0")),
        rotation=rotation,
        mesh_bytes=archive.getinfo(member).file_size,
        look_alike=group or key,
    )


def read_catalogue(source: Path) -> list[Product]:
    """All products kept from the archives in `source`, in a stable order, not yet split."""
    missing = [name for name in LICENCES if not (source / f"{name}.sh3f").is_file()]
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(name + '.sh3f' for name in missing)}: run "
            f"'apt-get install {APT_PACKAGE}' or name their folder with --source"
        )
    curation = _curation()
    products: list[Product] = []
    for name in LICENCES:
        with zipfile.ZipFile(source / f"{name}.sh3f") as archive:
            tables = _read_table(archive), _read_table(archive, "_ru")
            numbers = [key.split("#")[1] for key in tables[0] if key.startswith("id#")]
            found = (_product(archive, tables, number, curation) for number in numbers)
            products.extend(product for product in found if product is not None)
    return products


def split_products(
    look_alike: dict[str, str], categories: dict[str, str], development: int
) -> dict[str, str]:
    """Deal product keys to "train" or "development", whole look-alike groups at a time.

    Groups are shuffled by a fixed seed within their first product's category, and every category
    gives its share, so that both sides hold the same mix.
    """
    groups: dict[str, list[str]] = {}
    for key, group in look_alike.items():
        groups.setdefault(group, []).append(key)
    by_category: dict[str, list[list[str]]] = {}
    for members in groups.values():
        by_category.setdefault(categories[members[0]], []).append(members)
    share = development / max(1, len(look_alike))
    sides: dict[str, str] = {}
    for category in sorted(by_category):
        deck = sorted(by_category[category])
        random.Random(stable_seed("split", category)).shuffle(deck)
        wanted = share * sum(len(members) for members in deck)
        taken = 0
        for members in deck:
            side = "development" if taken + len(members) / 2 <= wanted else "train"
            taken += len(members) if side == "development" else 0
            sides.update(dict.fromkeys(members, side))
    return sides
