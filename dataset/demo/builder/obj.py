"""Wavefront OBJ and MTL read straight from a model archive, without unpacking it.

VTK's own reader loses faces and materials of many of these files.
"""

import io
import posixpath
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from visual_search.data.image_files import FORMATS

Array = np.ndarray
GREY = (0.7, 0.7, 0.7)
LARGEST_TEXTURE = 1024


@dataclass(frozen=True)
class Material:
    """Colours 0..1, shininess exponent, opacity 0..1, picture (height, width, 3 or 4) uint8."""

    colour: tuple[float, float, float] = GREY
    specular: float = 0.0
    shininess: float = 20.0
    opacity: float = 1.0
    picture: Array | None = None


@dataclass(frozen=True)
class Part:
    """Faces of one material.

    points (n, 3), texture coordinates (n, 2) or None, normals (n, 3) or None; corners holds the
    point numbers of all faces one after the other, sizes the number of corners of each face.
    """

    material: Material
    points: Array
    coordinates: Array | None
    normals: Array | None
    corners: Array
    sizes: Array


def read_model(archive: zipfile.ZipFile, member: str) -> list[Part]:
    """All parts of the mesh `member` of an open archive, in model units."""
    folder = posixpath.dirname(member)
    values: dict[str, list[list[float]]] = {"v": [], "vt": [], "vn": []}
    faces: dict[str, list[list[tuple[int, int, int]]]] = {}
    materials: dict[str, Material] = {}
    current = faces.setdefault("", [])
    known: dict[str, tuple[int, int, int]] = {}
    for line in archive.read(member).decode("latin-1").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word in values:
            values[word].append([float(x) for x in rest.split()[: 2 if word == "vt" else 3]])
        elif word in ("f", "fo"):
            counts = (len(values["v"]), len(values["vt"]), len(values["vn"]))
            corners = [known.get(text) or _corner(text, counts, known) for text in rest.split()]
            if len(corners) >= 3:
                current.append(corners)
        elif word == "usemtl":
            current = faces.setdefault(rest.strip(), [])
        elif word == "mtllib":
            materials |= _read_materials(archive, folder, rest.strip())
    arrays = [np.array(values[kind], dtype=np.float64) for kind in ("v", "vt", "vn")]
    return [
        _part(materials.get(name, Material()), chosen, arrays)
        for name, chosen in faces.items()
        if chosen
    ]


def _corner(
    text: str, counts: tuple[int, int, int], known: dict[str, tuple[int, int, int]]
) -> tuple[int, int, int]:
    """Zero-based numbers of point, texture coordinate and normal; -1 where there is none.

    Corners with absolute numbers are remembered in `known`, as most of them come back.
    """
    fields = [*text.split("/"), "", ""][:3]
    numbers = [int(field) if field else 0 for field in fields]
    a, b, c = (
        n - 1 if n > 0 else (count + n if n < 0 else -1)
        for n, count in zip(numbers, counts, strict=True)
    )
    if min(numbers) >= 0:
        known[text] = (a, b, c)
    return a, b, c


def _part(material: Material, faces: list[list[tuple[int, int, int]]], arrays: list[Array]) -> Part:
    sizes = np.array([len(face) for face in faces])
    flat = np.array([corner for face in faces for corner in face], dtype=np.int64)
    textured = bool(len(arrays[1])) and bool((flat[:, 1] >= 0).all())
    smooth = bool(len(arrays[2])) and bool((flat[:, 2] >= 0).all())
    # One number per distinct corner, so that faces share the points that are really the same.
    key = flat[:, 0]
    if textured:
        key = key * (len(arrays[1]) + 1) + flat[:, 1]
    if smooth:
        key = key * (len(arrays[2]) + 1) + flat[:, 2]
    _, first, corners = np.unique(key, return_index=True, return_inverse=True)
    chosen = flat[first]
    return Part(
        material=material if textured else replace(material, picture=None),
        points=arrays[0][chosen[:, 0]],
        coordinates=arrays[1][chosen[:, 1]] if textured else None,
        normals=arrays[2][chosen[:, 2]] if smooth else None,
        corners=corners,
        sizes=sizes,
    )


def _read_materials(archive: zipfile.ZipFile, folder: str, name: str) -> dict[str, Material]:
    """Materials by name; what is missing from the archive is passed over."""
    member = posixpath.join(folder, name)
    if member not in archive.NameToInfo:
        return {}
    materials: dict[str, Material] = {}
    current = ""
    for line in archive.read(member).decode("latin-1").splitlines():
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word == "newmtl":
            current = rest
            materials[current] = Material()
        elif current and rest:
            if word in _CHANGES:
                materials[current] = _CHANGES[word](materials[current], rest)
            elif word == "map_Kd":
                picture = _read_picture(archive, posixpath.join(folder, rest))
                materials[current] = replace(materials[current], picture=picture)
    return materials


def _numbers(text: str) -> tuple[float, float, float]:
    values = [min(1.0, max(0.0, float(x))) for x in text.split()[:3]]
    return (values[0], values[1], values[2]) if len(values) == 3 else (values[0],) * 3


def _last(text: str) -> float:
    return float(text.split()[-1])


_CHANGES: dict[str, Callable[[Material, str], Material]] = {
    "Kd": lambda material, text: replace(material, colour=_numbers(text)),
    "Ks": lambda material, text: replace(material, specular=sum(_numbers(text)) / 3),
    "Ns": lambda material, text: replace(material, shininess=_last(text)),
    "d": lambda material, text: replace(material, opacity=_last(text)),
    "Tr": lambda material, text: replace(material, opacity=1.0 - _last(text)),
}


def _read_picture(archive: zipfile.ZipFile, member: str) -> Array | None:
    if member not in archive.NameToInfo:
        return None
    stored = Image.open(io.BytesIO(archive.read(member)), formats=(*FORMATS, "TGA"))
    has_alpha = stored.mode in ("RGBA", "LA", "PA") or "transparency" in stored.info
    picture = stored.convert("RGBA" if has_alpha else "RGB")
    picture.thumbnail((LARGEST_TEXTURE, LARGEST_TEXTURE))
    return np.asarray(picture)
