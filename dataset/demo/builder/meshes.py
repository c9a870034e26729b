"""Product meshes: load a model into VTK and lay it in a scene in centimetres."""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from dataset.demo.builder.catalogue import Product
from dataset.demo.builder.obj import Material, read_model
from visual_search.common.errors import UserError

CACHED_MODELS = 60


@dataclass
class Model:
    """Actors of one product, and the transform that centres it, upright and in cm."""

    actors: list[vtk.vtkActor]
    normalise: vtk.vtkMatrix4x4

    def place(self, x: float, y: float, z: float, yaw: float) -> None:
        """Stand the middle of the model's base on (x, y, z) cm, turned by yaw degrees about y."""
        transform = vtk.vtkTransform()
        transform.Translate(x, y, z)
        transform.RotateY(yaw)
        transform.Concatenate(self.normalise)
        for actor in self.actors:
            actor.SetUserTransform(transform)


def bounds(actors: Iterable[vtk.vtkActor]) -> np.ndarray:
    """Box round actors as ((x0, y0, z0), (x1, y1, z1)) in cm."""
    boxes = np.array([actor.GetBounds() for actor in actors]).reshape(-1, 3, 2)
    return np.stack([boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)])


def image_texture(pixels: np.ndarray) -> vtk.vtkTexture:
    """A VTK texture from (height, width, 3 or 4) uint8 pixels, first row at the top."""
    height, width, channels = pixels.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    flat = np.ascontiguousarray(pixels[::-1]).reshape(-1, channels)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    texture = vtk.vtkTexture()
    texture.SetInputData(image)
    texture.RepeatOn()
    texture.InterpolateOn()
    texture.MipmapOn()
    # Anisotropic filtering can hang Mesa's software renderer.
    texture.SetMaximumAnisotropicFiltering(1)
    return texture


def shaded(polygons: vtk.vtkPolyData, specular: float, power: float) -> vtk.vtkActor:
    """An actor with the one lighting model of all: Phong's, no ambient term."""
    mapper = vtk.vtkPolyDataMapper()
    mapper.SetInputData(polygons)
    actor = vtk.vtkActor()
    actor.SetMapper(mapper)
    prop = actor.GetProperty()
    prop.SetInterpolationToPhong()
    prop.SetAmbient(0.0)
    prop.SetDiffuse(1.0)
    prop.SetSpecular(specular)
    prop.SetSpecularPower(power)
    return actor


def _actor(material: Material, polygons: vtk.vtkPolyData) -> vtk.vtkActor:
    """One part of a model."""
    power = float(np.clip(material.shininess, 8, 80))
    actor = shaded(polygons, min(0.45, 0.6 * material.specular), power)
    prop = actor.GetProperty()
    prop.SetColor(*material.colour)
    prop.SetSpecularColor(1.0, 1.0, 1.0)
    prop.SetOpacity(float(np.clip(material.opacity, 0.15, 1.0)))
    textured = polygons.GetPointData().GetTCoords() is not None
    if textured and material.picture is not None:
        prop.SetColor(1.0, 1.0, 1.0)
        pixels = _hard_alpha(material.picture)
        actor.SetTexture(image_texture(pixels))
        if pixels is not material.picture:
            actor.ForceOpaqueOn()
    return actor


def _hard_alpha(pixels: np.ndarray) -> np.ndarray:
    """Make leaves and lace cut-outs rather than glass, so that they hide what is behind them."""
    if pixels.shape[2] < 4:
        return pixels
    alpha = pixels[..., 3]
    if np.mean((alpha > 30) & (alpha < 225)) > 0.5:
        return pixels
    return np.dstack([pixels[..., :3], np.where(alpha < 128, 0, 255).astype(np.uint8)])


def _normalising_matrix(actors: list[vtk.vtkActor], product: Product) -> vtk.vtkMatrix4x4:
    """Model units to cm: turn upright, centre the base on the origin, scale to the real size."""
    turn = vtk.vtkMatrix4x4()
    for index, value in enumerate(product.rotation):
        turn.SetElement(index // 3, index % 3, value)
    rotate = vtk.vtkTransform()
    rotate.SetMatrix(turn)
    for actor in actors:
        actor.SetUserTransform(rotate)
    low, high = bounds(actors)
    middle, extent = (low + high) / 2, np.maximum(high - low, 1e-6)
    transform = vtk.vtkTransform()
    scale = np.where(extent > 1e-5, np.array(product.size_cm) / extent, 1.0)
    transform.Scale(*scale)
    transform.Translate(-middle[0], -low[1], -middle[2])
    transform.Concatenate(turn)
    return transform.GetMatrix()


@cache
def _open_archive(path: Path) -> zipfile.ZipFile:
    """The archive, opened once a process, as reading its directory takes a while."""
    return zipfile.ZipFile(path)


@lru_cache(CACHED_MODELS)
def load(product: Product) -> Model:
    """The product's mesh and materials, placed where it was last: scenes share their clutter.

    Raises:
        UserError: for a model without a surface.
    """
    parts = read_model(_open_archive(product.archive), product.member)
    actors = [_actor(material, polygons) for material, polygons in parts]
    if not actors:
        raise UserError(f"{product.key} holds no surface: leave it out in curation.csv")
    return Model(actors, _normalising_matrix(actors, product))
