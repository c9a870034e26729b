"""Wavefront OBJ and MTL read straight from a model archive into VTK's polygons.

VTK's own reader loses faces and materials of many of these files.
"""

import io
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import vtk
from PIL import Image
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

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


def read_model(archive: zipfile.ZipFile, member: str) -> list[tuple[Material, vtk.vtkPolyData]]:
    """The mesh `member` of an open archive, in model units: the faces of each material."""
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
        (materials.get(name, Material()), _polygons(chosen, arrays))
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


def _polygons(faces: list[list[tuple[int, ...]]], arrays: list[Array]) -> vtk.vtkPolyData:
    """Faces as triangles, with normals computed where the file has none.

    arrays: points (n, 3), texture coordinates (n, 2), normals (n, 3), which corners number; the
    polygons have those that all corners name.
    """
    flat = np.array([corner for face in faces for corner in face], dtype=np.int64)
    _, textured, smooth = (
        bool(len(array)) and bool((flat[:, i] >= 0).all()) for i, array in enumerate(arrays)
    )
    # One number per distinct corner, so that faces share the points that are really the same.
    key = flat[:, 0]
    if textured:
        key = key * (len(arrays[1]) + 1) + flat[:, 1]
    if smooth:
        key = key * (len(arrays[2]) + 1) + flat[:, 2]
    _, first, corners = np.unique(key, return_index=True, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum([len(face) for face in faces])])
    points, cells, data = vtk.vtkPoints(), vtk.vtkCellArray(), vtk.vtkPolyData()
    points.SetData(_array(arrays[0][flat[first, 0]], np.float64))
    cells.SetData(_array(offsets, np.int64), _array(corners, np.int64))
    data.SetPoints(points)
    data.SetPolys(cells)
    if textured:
        data.GetPointData().SetTCoords(_array(arrays[1][flat[first, 1]], np.float32))
    if smooth:
        data.GetPointData().SetNormals(_array(arrays[2][flat[first, 2]], np.float32))
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(data)
    triangles.Update()
    if smooth:
        return triangles.GetOutput()
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(triangles.GetOutputPort())
    normals.SetFeatureAngle(40.0)
    normals.Update()
    return normals.GetOutput()


def _array(values: Array, kind: type) -> vtk.vtkDataArray:
    make = numpy_to_vtkIdTypeArray if kind is np.int64 else numpy_to_vtk
    return make(np.ascontiguousarray(values, kind), deep=True)


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
