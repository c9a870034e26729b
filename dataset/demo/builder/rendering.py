"""Rendering: fill light, key light with soft shadows, ambient occlusion, and depth, as arrays.

VTK draws a scene several times (fill lights only, key light only, depths); shadows and occlusion
are worked out from the depths in numpy and the parts are added up. Off-screen, no display needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    softness: float = 0.02


@dataclass(frozen=True)
class Shot:
    """A rendered photo, all at final size: colours 0..1, distance in cm (inf = nothing there).

    mask is the share of each pixel that shows the product, silhouette the same with nothing in
    front of it.
    """

    colour: Array
    distance: Array
    mask: Array
    silhouette: Array


@dataclass
class Scene:
    """Actors by role: the product, other objects, and surfaces that cast no shadow."""

    product: list[vtk.vtkActor]
    objects: list[vtk.vtkActor] = field(default_factory=list)
    surfaces: list[vtk.vtkActor] = field(default_factory=list)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)


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


def _matrix(matrix: vtk.vtkMatrix4x4) -> Array:
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


class Stage:
    """One off-screen window for a whole process."""

    def __init__(self) -> None:
        vtk.vtkObject.GlobalWarningDisplayOff()
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)

    def _render(self, renderer: vtk.vtkRenderer, size: tuple[int, int]) -> None:
        if self._window.GetSize() != size:
            self._window.SetSize(*size)
        self._window.Render()

    def _read(self, size: tuple[int, int], *, depth: bool) -> Array:
        """What the window shows, first row at the top: (height, width, 3) or (height, width)."""
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(self._window)
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

    def shoot(
        self,
        scene: Scene,
        view: View,
        lights: Lights,
        accept: Callable[[Array, Array], bool] = lambda mask, silhouette: True,
    ) -> Shot | None:
        """Render the scene; None when `accept` turns down its mask and silhouette (see Shot).

        The masks come first, as they take a fraction of the time of the colours.
        """
        scale = 2 if view.fine else 1
        size = (view.width * scale, view.height * scale)
        everything = [*scene.product, *scene.objects, *scene.surfaces]
        renderer = vtk.vtkRenderer()
        renderer.AutomaticLightCreationOff()
        renderer.SetBackground(0, 0, 0)
        for actor in everything:
            renderer.AddActor(actor)
        self._window.AddRenderer(renderer)
        try:
            camera = _camera(view, renderer)
            with _solid(everything):
                depth = self._depth_of(renderer, size, everything, everything)
                alone = self._depth_of(renderer, size, everything, scene.product)
            mask = _shrink(((alone < 1.0) & (alone <= depth + 1e-6)).astype(np.float32), scale)
            silhouette = _shrink((alone < 1.0).astype(np.float32), scale)
            if not accept(mask, silhouette):
                return None
            renderer.SetUseFXAA(not view.fine)
            ambient = self._lit(renderer, size, lights.fills)
            direct = self._lit(renderer, size, [(lights.key_direction, lights.key_colour)])
            renderer.SetUseFXAA(False)
            casters = [*scene.product, *scene.objects]
            matrix = camera.GetCompositeProjectionTransformMatrix(size[0] / size[1], -1, 1)
            world = shading.unproject(depth, _matrix(matrix))
            shadow = self._shadow(renderer, everything, casters, lights, world)
        finally:
            self._window.RemoveRenderer(renderer)
        distance = np.linalg.norm(world - view.position, axis=2)
        distance[depth >= 1.0] = np.inf
        occlusion = shading.occlusion(
            world[::scale, ::scale], distance[::scale, ::scale], _reach(casters)
        )
        occlusion = np.repeat(np.repeat(occlusion, scale, axis=0), scale, axis=1)
        colour = ambient * occlusion[..., None] + direct * shadow[..., None]
        colour[depth >= 1.0] = scene.background
        return Shot(_shrink(colour, scale), distance[::scale, ::scale], mask, silhouette)

    def _lit(
        self, renderer: vtk.vtkRenderer, size: tuple[int, int], lights: list[tuple[Array, Array]]
    ) -> Array:
        """The scene (height, width, 3) under these lights only, without shadows."""
        renderer.RemoveAllLights()
        for direction, colour in lights:
            renderer.AddLight(_direction_light(direction, colour))
        self._render(renderer, size)
        return self._read(size, depth=False).astype(np.float32) / 255.0

    def _depth_of(
        self,
        renderer: vtk.vtkRenderer,
        size: tuple[int, int],
        everything: list[vtk.vtkActor],
        shown: list[vtk.vtkActor],
    ) -> Array:
        """Depth buffer (height, width) in 0..1 with only some of the actors shown."""
        chosen = {id(actor) for actor in shown}
        for actor in everything:
            actor.SetVisibility(id(actor) in chosen)
        self._render(renderer, size)
        depth = self._read(size, depth=True).astype(np.float64)
        for actor in everything:
            actor.SetVisibility(True)
        return depth

    def _shadow(
        self,
        renderer: vtk.vtkRenderer,
        everything: list[vtk.vtkActor],
        casters: list[vtk.vtkActor],
        lights: Lights,
        world: Array,
    ) -> Array:
        """Share of the key light that reaches each pixel, 0..1; glass casts no shadow."""
        solid = [actor for actor in casters if actor.GetProperty().GetOpacity() > 0.7]
        low, high = bounds(casters)
        centre, radius = (low + high) / 2, float(np.linalg.norm(high - low) / 2)
        direction = lights.key_direction / np.linalg.norm(lights.key_direction)
        camera = vtk.vtkCamera()
        camera.ParallelProjectionOn()
        camera.SetParallelScale(radius * 1.05)
        camera.SetPosition(*(centre + direction * radius * 3))
        camera.SetFocalPoint(*centre)
        up = (0, 0, -1) if abs(direction[1]) > 0.9 else (0, 1, 0)
        camera.SetViewUp(*up)
        camera.SetClippingRange(radius * 1.5, radius * 4.5)
        renderer.SetActiveCamera(camera)
        size = (SHADOW_MAP, SHADOW_MAP)
        with _solid(everything):
            near = self._depth_of(renderer, size, everything, solid or casters)
        matrix = _matrix(camera.GetCompositeProjectionTransformMatrix(1.0, 0, 1))
        return shading.soft_shadow(world, near, matrix, lights.softness)


@contextmanager
def _solid(actors: list[vtk.vtkActor]) -> Iterator[None]:
    """Draw glass as solid while depths are taken."""
    glass = [actor for actor in actors if not actor.GetForceOpaque()]
    for actor in glass:
        actor.ForceOpaqueOn()
    try:
        yield
    finally:
        for actor in glass:
            actor.ForceOpaqueOff()


def _camera(view: View, renderer: vtk.vtkRenderer) -> vtk.vtkCamera:
    camera = vtk.vtkCamera()
    camera.SetPosition(*view.position)
    camera.SetFocalPoint(*view.target)
    line = view.target - view.position
    steep = abs(line[1]) > 0.995 * float(np.linalg.norm(line))
    camera.SetViewUp(*((0, 0, -1) if steep else (0, 1, 0)))
    camera.SetViewAngle(view.angle)
    camera.Roll(view.roll)
    renderer.SetActiveCamera(camera)
    renderer.ResetCameraClippingRange()
    near, far = camera.GetClippingRange()
    camera.SetClippingRange(max(near, far / 2000, 0.5), far)
    return camera


def _reach(actors: list[vtk.vtkActor]) -> float:
    """How far (cm) things darken each other: a fraction of the objects' size."""
    low, high = bounds(actors)
    return 0.12 * float(np.linalg.norm(high - low))


def _shrink(picture: Array, scale: int) -> Array:
    """Average blocks of scale x scale pixels."""
    height, width = picture.shape[0] // scale, picture.shape[1] // scale
    blocks = picture.reshape(height, scale, width, scale, *picture.shape[2:])
    return blocks.mean(axis=(1, 3))
