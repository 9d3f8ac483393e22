"""Ray tracing: the nearest surface at each sample, and its depth.

R, G rows and columns of samples; S solids. A ray's direction has length 1 along the optical axis,
so its parameter t is depth in meters. u runs right and v up over the image plane at depth 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.scenes.geometry import Axis, Part, SceneGeometry
from clipmill.scenes.solids import INTERSECT, Floats, Triple, half_extents

# Columns: where the solid's own x, y, z axes point in the object's frame.
_TURN: dict[Axis, NDArray[np.float64]] = {
    "x": np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "y": np.eye(3),
    "z": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Solid:
    """A part of an object, in the world."""

    part: Part
    """Shape, size and place on the object."""
    owner: int
    """Index of its object."""
    center: Floats
    """(3,) in the world, meters."""
    turn: Floats
    """(3, 3) world from solid."""
    eye: Floats
    """(3,) the camera in the solid's frame."""
    rays: Floats
    """(3, 3) solid from camera."""
    window: tuple[float, float, float, float]
    """Bounds of its image: u from, to; v from, to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderScene:
    """Scene geometry prepared for tracing."""

    geometry: SceneGeometry
    """Its source."""
    rotation: Floats
    """(3, 3) world from camera."""
    planes: Floats
    """(4, 3) inverse depth of floor, back, right, left wall: a u + b v + c."""
    solids: tuple[Solid, ...]
    """Every part of every object."""
    centers: Floats
    """(objects, 3) middle of each object, meters."""
    reaches: tuple[float, ...]
    """Radius (meters) of the ball about that middle that holds the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """The nearest surface at each sample."""

    u: Floats
    """(G,) columns."""
    v: Floats
    """(R,) rows."""
    depth: Floats
    """(R, G) meters."""
    solid: NDArray[np.int16]
    """(R, G) index of the solid, -1 for the room."""
    plane: NDArray[np.uint8]
    """(R, G) the room's plane behind: 0 floor, 1 to 3 walls."""
    corner: Floats
    """(R, G) inverse depth of the nearer wall over that of the room: 1 on walls and at corners."""


def prepare_render(geometry: SceneGeometry) -> RenderScene:
    """Compute transforms and image bounds of everything in a scene."""
    rotation = geometry.camera.rotation()
    height = geometry.camera.height
    walls = [
        [nx * rotation[0, i] + nz * rotation[2, i] for i in range(3)]
        for nx, nz in geometry.room.wall_normals()
    ]
    distances = np.array([height, *geometry.room.distances])
    planes = np.array([(-rotation[1]).tolist(), *walls]) / distances[:, None]
    parts, owners, turns, centers = [], [], [], []
    for owner, placed in enumerate(geometry.objects):
        s, c = float(np.sin(placed.yaw)), float(np.cos(placed.yaw))
        spin = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
        for part in placed.shape.parts:
            parts.append(part)
            owners.append(owner)
            turns.append(spin @ _TURN[part.axis])
            centers.append(spin @ np.array(part.center) + (placed.x, 0.0, placed.z))
    turn, center = np.array(turns), np.array(centers)
    eye = np.einsum("sji,sj->si", turn, np.array([0.0, height, 0.0]) - center)
    rays = np.einsum("sji,jk->sik", turn, rotation)
    windows = _windows(parts, eye, rays)
    turn_32, center_32, eye_32, rays_32 = (a.astype(np.float32) for a in (turn, center, eye, rays))
    middles = np.array([[o.x, o.shape.height / 2, o.z] for o in geometry.objects], np.float32)
    return RenderScene(
        geometry=geometry,
        rotation=rotation.astype(np.float32),
        planes=planes.astype(np.float32),
        solids=tuple(
            Solid(
                part=parts[i],
                owner=owners[i],
                center=center_32[i],
                turn=turn_32[i],
                eye=eye_32[i],
                rays=rays_32[i],
                window=windows[i],
            )
            for i in range(len(parts))
        ),
        centers=middles,
        reaches=tuple(float(np.hypot(o.shape.reach, o.shape.height / 2)) for o in geometry.objects),
    )


def _windows(
    parts: list[Part], eye: NDArray[np.float64], rays: NDArray[np.float64]
) -> list[tuple[float, float, float, float]]:
    """Bounds of each solid's bounding box in the image."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    halves = np.array([half_extents(part.solid, part.size) for part in parts])
    corners = signs[None] * halves[:, None] - eye[:, None]
    corners_camera = np.einsum("sji,scj->sci", rays, corners)
    image = corners_camera[..., :2] / corners_camera[..., 2:]
    low, high = image.min(1).tolist(), image.max(1).tolist()
    return [(low[i][0], high[i][0], low[i][1], high[i][1]) for i in range(len(parts))]


def trace(render_scene: RenderScene, u: Floats, v: Floats) -> Hits:
    """The nearest surface at columns ``u`` (G,) and rows ``v`` (R,), which falls."""
    floor, back, right, left = (
        p[0] * u[None, :] + (p[1] * v[:, None] + p[2]) for p in render_scene.planes
    )
    nearest = np.maximum(back, right)
    plane = (right > back).view(np.uint8) + np.uint8(1)
    np.maximum(plane, (left > nearest).view(np.uint8) * np.uint8(3), out=plane)
    np.maximum(nearest, left, out=nearest)
    plane *= (floor <= nearest).view(np.uint8)
    room = np.maximum(nearest, floor)
    depth = 1 / room
    solid = np.full(depth.shape, -1, np.int16)
    for k, item in enumerate(render_scene.solids):
        view = _covered(item.window, u, v)
        if view is None:
            continue
        rows, columns = view
        t = INTERSECT[item.part.solid](
            triple(item.eye), _directions(item.rays, u[columns], v[rows]), item.part.size
        )
        nearer = t < depth[view]
        np.copyto(depth[view], t, where=nearer)
        np.copyto(solid[view], np.int16(k), where=nearer)
    return Hits(u=u, v=v, depth=depth, solid=solid, plane=plane, corner=nearest / room)


def _covered(
    window: tuple[float, float, float, float], u: Floats, v: Floats
) -> tuple[slice, slice] | None:
    """Rows and columns that a window touches, or None if it lies outside."""
    step = float(u[-1] - u[0]) / (u.size - 1)
    left = max(0, math.floor((window[0] - float(u[0])) / step))
    right = min(u.size, math.ceil((window[1] - float(u[0])) / step) + 1)
    top = max(0, math.floor((float(v[0]) - window[3]) / step))
    bottom = min(v.size, math.ceil((float(v[0]) - window[2]) / step) + 1)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def rotate(matrix: Floats, vectors_3P: Floats) -> Floats:
    """``matrix @ vectors`` without BLAS, whose last bits may differ with the number of threads."""
    rotated: Floats = np.einsum("ij,jp->ip", matrix, vectors_3P)
    return rotated


def triple(vectors: Floats) -> Triple:
    """The three components of vectors (3, ...)."""
    return vectors[0], vectors[1], vectors[2]


def _directions(matrix: Floats, u: Floats, v: Floats) -> Triple:
    """``matrix @ (u, v, 1)`` over a grid."""
    by_row = matrix[:, 1:2] * v + matrix[:, 2:3]
    by_column = matrix[:, 0:1] * u
    return triple(by_row[:, :, None] + by_column[:, None, :])
