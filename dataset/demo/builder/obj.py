"""Wavefront OBJ and MTL read straight from a model archive, without unpacking it.

VTK's own reader loses faces and materials of many of these files.
"""

import io
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from visual_search.data.image_files import FORMATS

Array = np.ndarray
Colour = tuple[float, float, float]
LARGEST_TEXTURE = 1024


@dataclass
class Material:
    """Colours 0..1, shininess exponent, opacity 0..1, picture (height, width, 3 or 4) uint8."""

    colour: Colour = (0.7, 0.7, 0.7)
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
    values: dict[str, list[list[float]]] = {"v": [], "vt": [], "vn": []}
    faces: dict[str, list[list[tuple[int, ...]]]] = {}
    materials: dict[str, Material] = {}
    current = faces.setdefault("", [])
    for word, rest in _lines(archive, member):
        if word in values:
            values[word].append([float(x) for x in rest.split()[: 2 if word == "vt" else 3]])
        elif word in ("f", "fo"):
            counts = [len(found) for found in values.values()]
            corners = [_corner(text, counts) for text in rest.split()]
            if len(corners) >= 3:
                current.append(corners)
        elif word == "usemtl":
            current = faces.setdefault(rest, [])
        elif word == "mtllib":
            materials |= _read_materials(archive, posixpath.dirname(member), rest)
    arrays = [np.array(found, dtype=np.float64) for found in values.values()]
    return [
        _part(materials.get(name, Material()), chosen, arrays)
        for name, chosen in faces.items()
        if chosen
    ]


def _lines(archive: zipfile.ZipFile, member: str) -> Iterator[tuple[str, str]]:
    """First word and rest of each line."""
    for line in archive.read(member).decode("latin-1").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def _corner(text: str, counts: list[int]) -> tuple[int, ...]:
    """Zero-based numbers of point, texture coordinate and normal; -1 where there is none."""
    numbers = [int(number or 0) for number in [*text.split("/"), "", ""][:3]]
    return tuple(n - 1 if n >= 0 else count + n for n, count in zip(numbers, counts, strict=True))


def _part(material: Material, faces: list[list[tuple[int, ...]]], arrays: list[Array]) -> Part:
    flat = np.array([corner for face in faces for corner in face], dtype=np.int64)
    told = [bool(len(array)) and bool((flat[:, i] >= 0).all()) for i, array in enumerate(arrays)]
    # One number per distinct corner, so that faces share the points that are really the same.
    key = flat[:, 0]
    for i in (1, 2):
        if told[i]:
            key = key * (len(arrays[i]) + 1) + flat[:, i]
    _, first, corners = np.unique(key, return_index=True, return_inverse=True)
    _, textured, smooth = told
    return Part(
        material=material if textured else replace(material, picture=None),
        points=arrays[0][flat[first, 0]],
        coordinates=arrays[1][flat[first, 1]] if textured else None,
        normals=arrays[2][flat[first, 2]] if smooth else None,
        corners=corners,
        sizes=np.array([len(face) for face in faces]),
    )


def _read_materials(archive: zipfile.ZipFile, folder: str, name: str) -> dict[str, Material]:
    """Materials by name; what is missing from the archive is passed over."""
    materials: dict[str, Material] = {}
    member = posixpath.join(folder, name)
    material = None
    for word, rest in _lines(archive, member) if member in archive.NameToInfo else ():
        if word == "newmtl":
            material = materials[rest] = Material()
        elif material is None or not rest:
            continue
        elif word == "Kd":
            material.colour = _colour(rest)
        elif word == "Ks":
            material.specular = sum(_colour(rest)) / 3
        elif word == "Ns":
            material.shininess = float(rest.split()[-1])
        elif word == "d":
            material.opacity = float(rest.split()[-1])
        elif word == "Tr":
            material.opacity = 1.0 - float(rest.split()[-1])
        elif word == "map_Kd":
            material.picture = _read_picture(archive, posixpath.join(folder, rest))
    return materials


def _colour(text: str) -> Colour:
    values = [min(1.0, max(0.0, float(x))) for x in text.split()[:3]]
    return (values[0], values[1], values[2]) if len(values) == 3 else (values[0],) * 3


def _read_picture(archive: zipfile.ZipFile, member: str) -> Array | None:
    if member not in archive.NameToInfo:
        return None
    stored = Image.open(io.BytesIO(archive.read(member)), formats=(*FORMATS, "TGA"))
    has_alpha = stored.mode in ("RGBA", "LA", "PA") or "transparency" in stored.info
    picture = stored.convert("RGBA" if has_alpha else "RGB")
    picture.thumbnail((LARGEST_TEXTURE, LARGEST_TEXTURE))
    return np.asarray(picture)
