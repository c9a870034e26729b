"""From the model archives (*.sh3f) to a list of products.

An archive is a zip with a java .properties table (one per language), a LICENSE.TXT and one folder
per model. `curation.csv`, kept next to this module, records by hand which models are left out and
which look so alike that they must fall on the same side of the train/development split.
"""

import csv
import hashlib
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

_ENTRY = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")

TABLE_LIMIT = 56.0
HANGING = 8.0


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

    @property
    def setting(self) -> str:
        """Where such a product is met: "table", "floor", "outdoor" or "wall"."""
        width, height, depth = self.size_cm
        if self.elevation_cm > HANGING and self.longest_cm < 260:
            return "wall"
        if self.longest_cm <= TABLE_LIMIT or (height < 6 and max(width, depth) < 130):
            return "table"
        return "outdoor" if self.category in ("Exterior", "Vehicles") else "floor"


def stable_seed(*parts: object) -> int:
    """A 64-bit number that depends on the parts only, not on the process or its order of work."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def parse_properties(text: str) -> dict[str, str]:
    """Read a java .properties text: comments, continued lines, \\uXXXX, escaped characters."""

    def plain(escaped: str) -> str:
        return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2], escaped)

    result: dict[str, str] = {}
    pending = ""
    for raw in text.splitlines():
        line, pending = pending + raw.lstrip(" \t\f"), ""
        if line.startswith(("#", "!")):
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = line[:-1]
        elif line and (entry := _ENTRY.match(line)):
            result[plain(entry[1])] = plain(entry[2])
    return result


def read_catalogue(source: Path) -> list[Product]:
    """All products kept from the archives in `source`, in a stable order, not yet split.

    Raises:
        UserError: naming the archives that are missing, and the package that brings them.
    """
    missing = [f"{name}.sh3f" for name in LICENCES if not (source / f"{name}.sh3f").is_file()]
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(missing)}: run 'apt-get install {APT_PACKAGE}' or name "
            "their folder with --source"
        )
    with CURATION.open(encoding="utf-8", newline="") as handle:
        curated = {row["model"]: row for row in csv.DictReader(handle)}
    products: list[Product] = []
    for name in LICENCES:
        with zipfile.ZipFile(source / f"{name}.sh3f") as archive:
            english, russian = (
                parse_properties(archive.read(f"{TABLE}{language}.properties").decode("latin-1"))
                for language in ("", "_ru")
            )
            for number in [key.split("#")[1] for key in english if key.startswith("id#")]:
                key = f"{name}/{english[f'id#{number}'].split('#')[-1]}"
                row = curated.get(key, {"decision": "keep", "group": key})
                if row["decision"] == "keep":
                    products.append(_product(archive, key, number, english, russian, row["group"]))
    return products


def _product(
    archive: zipfile.ZipFile,
    key: str,
    number: str,
    english: dict[str, str],
    russian: dict[str, str],
    look_alike: str,
) -> Product:
    def value(name: str, default: str = "") -> str:
        return english.get(f"{name}#{number}", default)

    path, member = Path(str(archive.filename)), value("model").lstrip("/")
    return Product(
        key=key,
        archive=path,
        member=member,
        name_en=value("name"),
        name_ru=russian.get(f"name#{number}", value("name")),
        category=value("category"),
        author=CREDITS.get(value("creator"), value("creator")),
        licence=LICENCES[path.stem],
        size_cm=(float(value("width")), float(value("height")), float(value("depth"))),
        elevation_cm=float(value("elevation", "0")),
        rotation=tuple(map(float, value("modelRotation", "1 0 0 0 1 0 0 0 1").split())),
        mesh_bytes=archive.getinfo(member).file_size,
        look_alike=look_alike,
    )
