"""Flat things of a scene as VTK actors: floors, walls, table tops, skirting boards, skies."""

import numpy as np
import vtk

from dataset.demo.builder.meshes import image_texture, shaded
from dataset.demo.builder.textures import Surface


def _actor(source: vtk.vtkPolyDataAlgorithm, shine: float) -> vtk.vtkActor:
    source.Update()
    return shaded(source.GetOutput(), shine, 25)


def plane(
    origin: np.ndarray, along: np.ndarray, across: np.ndarray, surface: Surface
) -> vtk.vtkActor:
    """A tiled parallelogram: origin and its two edge vectors in cm."""
    source = vtk.vtkPlaneSource()
    source.SetOrigin(*origin)
    source.SetPoint1(*(origin + along))
    source.SetPoint2(*(origin + across))
    actor = _actor(source, surface.shine)
    actor.SetTexture(image_texture((surface.pixels * 255).astype(np.uint8)))
    repeats = np.array([np.linalg.norm(along), np.linalg.norm(across)]) / surface.width_cm
    mapping = vtk.vtkTransformTextureCoords()
    mapping.SetInputConnection(source.GetOutputPort())
    mapping.SetScale(repeats[0], repeats[1], 1)
    mapping.SetOrigin(0, 0, 0)
    mapping.Update()
    actor.GetMapper().SetInputData(mapping.GetOutput())
    return actor


def slab(low: np.ndarray, high: np.ndarray, colour: np.ndarray) -> vtk.vtkActor:
    """A box of one colour (0..1) between two corners in cm: table edge, skirting board, shelf."""
    source = vtk.vtkCubeSource()
    source.SetBounds(low[0], high[0], low[1], high[1], low[2], high[2])
    actor = _actor(source, 0.1)
    actor.GetProperty().SetColor(*np.clip(colour, 0, 1))
    return actor


def plain_floor(side: float) -> vtk.vtkActor:
    """A white floor of side cm round the origin, at height 0."""
    source = vtk.vtkPlaneSource()
    source.SetOrigin(-side / 2, 0, side / 2)
    source.SetPoint1(side / 2, 0, side / 2)
    source.SetPoint2(-side / 2, 0, -side / 2)
    actor = _actor(source, 0.0)
    actor.GetProperty().SetColor(1, 1, 1)
    return actor
