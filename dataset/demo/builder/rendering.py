"""Rendering: fill light, key light with soft shadows, ambient occlusion, and depth, as arrays.

VTK draws a scene several times (fill lights only, key light only, depths); shadows and occlusion
are worked out from the depths in numpy and the parts are added up. Off-screen, no display needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from dataset.demo.builder import shading
from dataset.demo.builder.meshes import bounds
from dataset.demo.builder.views import View

Array = np.ndarray

SHADOW_MAP = 768


@dataclass(frozen=True)
class Lights:
    """Key light direction (towards the light) and colours; fills as (direction, colour)."""

    key_direction: Array
    key_colour: Array
    fills: list[tuple[Array, Array]]
    softness: float


@dataclass(frozen=True)
class Shot:
    """A rendered photo, all at final size: colours 0..1, distance in cm (inf = nothing there).

    mask is the share of each pixel that shows the product.
    """

    colour: Array
    distance: Array
    mask: Array


@dataclass
class Scene:
    """Actors by role: the product, other objects, and surfaces that cast no shadow."""

    product: list[vtk.vtkActor]
    objects: list[vtk.vtkActor] = field(default_factory=list)
    surfaces: list[vtk.vtkActor] = field(default_factory=list)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)


def shoot(
    scene: Scene,
    view: View,
    lights: Lights,
    accept: Callable[[Array, Array], bool] = lambda mask, silhouette: True,
) -> Shot | None:
    """Render the scene; None when `accept` turns down its mask and silhouette.

    The silhouette is the mask (see Shot) with nothing in front of the product. Both come first, as
    they take a fraction of the time of the colours.
    """
    scale = 2 if view.fine else 1
    casters = [*scene.product, *scene.objects]
    stage = _Stage([*casters, *scene.surfaces], (view.width * scale, view.height * scale))
    try:
        camera = stage.look(view)
        depth, alone = stage.depths(stage.actors), stage.depths(scene.product)
        mask = _shrink(((alone < 1.0) & (alone <= depth + 1e-6)).astype(np.float32), scale)
        silhouette = _shrink((alone < 1.0).astype(np.float32), scale)
        if not accept(mask, silhouette):
            return None
        stage.renderer.SetUseFXAA(not view.fine)
        ambient = stage.lit(lights.fills)
        direct = stage.lit([(lights.key_direction, lights.key_colour)])
        stage.renderer.SetUseFXAA(False)
        world = shading.unproject(depth, _matrix(camera, view.width / view.height, -1))
        shadow = stage.shadow(casters, lights, world)
    finally:
        stage.leave()
    distance = np.linalg.norm(world - view.position, axis=2)
    distance[depth >= 1.0] = np.inf
    low, high = bounds(casters)
    occlusion = shading.occlusion(
        world[::scale, ::scale],
        distance[::scale, ::scale],
        reach=0.12 * float(np.linalg.norm(high - low)),
    )
    occlusion = np.repeat(np.repeat(occlusion, scale, axis=0), scale, axis=1)
    colour = ambient * occlusion[..., None] + direct * shadow[..., None]
    colour[depth >= 1.0] = scene.background
    return Shot(_shrink(colour, scale), distance[::scale, ::scale], mask)


@cache
def _window() -> vtk.vtkRenderWindow:
    """One off-screen window for the whole process."""
    vtk.vtkObject.GlobalWarningDisplayOff()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    return window


class _Stage:
    """The actors of a scene in the window, drawn as arrays of size (width, height)."""

    def __init__(self, actors: list[vtk.vtkActor], size: tuple[int, int]) -> None:
        self.actors, self.size, self.renderer = actors, size, vtk.vtkRenderer()
        self.renderer.AutomaticLightCreationOff()
        self.renderer.SetBackground(0, 0, 0)
        for actor in actors:
            self.renderer.AddActor(actor)
        _window().AddRenderer(self.renderer)

    def leave(self) -> None:
        """Leave the window to others."""
        _window().RemoveRenderer(self.renderer)

    def look(self, view: View) -> vtk.vtkCamera:
        """Look from the view's place; returns its camera."""
        line = view.target - view.position
        camera = self._camera(
            view.position, view.target, abs(line[1]) > 0.995 * float(np.linalg.norm(line))
        )
        camera.SetViewAngle(view.angle)
        camera.Roll(view.roll)
        self.renderer.ResetCameraClippingRange()
        near, far = camera.GetClippingRange()
        camera.SetClippingRange(max(near, far / 2000, 0.5), far)
        return camera

    def _camera(self, position: Array, target: Array, steep: bool) -> vtk.vtkCamera:
        camera = vtk.vtkCamera()
        camera.SetPosition(*position)
        camera.SetFocalPoint(*target)
        camera.SetViewUp(*((0, 0, -1) if steep else (0, 1, 0)))
        self.renderer.SetActiveCamera(camera)
        return camera

    def lit(self, lights: list[tuple[Array, Array]]) -> Array:
        """The scene (height, width, 3) under these lights only, 0..1, without shadows."""
        self.renderer.RemoveAllLights()
        for direction, colour in lights:
            self.renderer.AddLight(_direction_light(direction, colour))
        return self._draw(self.size, depth=False).astype(np.float32) / 255.0

    def depths(self, shown: list[vtk.vtkActor], size: tuple[int, int] | None = None) -> Array:
        """Depth buffer (height, width), 0..1, of some of the actors, glass as solid as the rest."""
        glass = [actor for actor in self.actors if not actor.GetForceOpaque()]
        chosen = {id(actor) for actor in shown}
        for actor in glass:
            actor.ForceOpaqueOn()
        for actor in self.actors:
            actor.SetVisibility(id(actor) in chosen)
        depth = self._draw(size or self.size, depth=True).astype(np.float64)
        for actor in glass:
            actor.ForceOpaqueOff()
        for actor in self.actors:
            actor.SetVisibility(True)
        return depth

    def shadow(self, casters: list[vtk.vtkActor], lights: Lights, world: Array) -> Array:
        """Share of the key light that reaches each pixel, 0..1; glass casts no shadow."""
        solid = [actor for actor in casters if actor.GetProperty().GetOpacity() > 0.7]
        low, high = bounds(casters)
        centre, radius = (low + high) / 2, float(np.linalg.norm(high - low) / 2)
        direction = lights.key_direction / np.linalg.norm(lights.key_direction)
        camera = self._camera(centre + direction * radius * 3, centre, abs(direction[1]) > 0.9)
        camera.ParallelProjectionOn()
        camera.SetParallelScale(radius * 1.05)
        camera.SetClippingRange(radius * 1.5, radius * 4.5)
        near = self.depths(solid or casters, (SHADOW_MAP, SHADOW_MAP))
        return shading.soft_shadow(world, near, _matrix(camera, 1.0, 0), lights.softness)

    def _draw(self, size: tuple[int, int], *, depth: bool) -> Array:
        """Colours (height, width, 3) or depths (height, width), first row at the top."""
        window = _window()
        if window.GetSize() != size:
            window.SetSize(*size)
        window.Render()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(window)
        reader.SetShouldRerender(False)
        reader.ReadFrontBufferOff()
        if depth:
            reader.SetInputBufferTypeToZBuffer()
        else:
            reader.SetInputBufferTypeToRGB()
        reader.Update()
        values = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
        shape = (size[1], size[0]) if depth else (size[1], size[0], 3)
        return values.reshape(shape)[::-1].copy()


def _direction_light(direction: Array, colour: Array) -> vtk.vtkLight:
    light = vtk.vtkLight()
    light.SetLightTypeToSceneLight()
    light.SetPositional(False)
    light.SetFocalPoint(0, 0, 0)
    light.SetPosition(*(direction / np.linalg.norm(direction)))
    peak = float(max(colour.max(), 1e-6))
    light.SetColor(*(colour / peak))
    light.SetIntensity(peak)
    return light


def _matrix(camera: vtk.vtkCamera, aspect: float, near: float) -> Array:
    """World coordinates to the camera's cube (4, 4), depths from `near` to 1."""
    matrix = camera.GetCompositeProjectionTransformMatrix(aspect, near, 1)
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def _shrink(picture: Array, scale: int) -> Array:
    """Average blocks of scale x scale pixels."""
    height, width = picture.shape[0] // scale, picture.shape[1] // scale
    blocks = picture.reshape(height, scale, width, scale, *picture.shape[2:])
    return blocks.mean(axis=(1, 3))
