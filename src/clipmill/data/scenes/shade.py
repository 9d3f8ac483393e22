"""Light on what the samples see: sun with shadows, sky, contact shade, gloss. Linear RGB.

N samples of a band, sorted by surface: floor, three walls, then each solid in turn; P those of
one surface or of all solids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.scenes.finishes import floor_tone, pattern, wall_tone
from clipmill.data.scenes.shadow import cast_shadows
from clipmill.data.scenes.solids import NORMAL, Floats
from clipmill.data.scenes.trace import Hits, Stage, rotate
from clipmill.data.scenes.world import COLOURS, FLOORS, WALLS, Placed

_SKY = np.array([[0.44], [0.50], [0.59]], np.float32)
_BOUNCE = np.array([[0.27], [0.24], [0.21]], np.float32)
_PLANES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Surfaces:
    """Samples in order of surface."""

    p: Floats
    """(3, N) metres."""
    depth: Floats
    """(N,) metres."""
    corner: Floats
    """(N,) as in Hits."""
    edges: list[int]
    """Where each surface begins, and N."""
    spread: float
    """Width (metres) of a sample at depth 1."""

    def span(self, surface: int) -> slice:
        """The samples of a surface: 0 floor, 1 to 3 walls, 4 and on solids."""
        return slice(self.edges[surface], self.edges[surface + 1])


def shade(stage: Stage, hits: Hits, jitter: tuple[Floats, Floats], spread: float) -> Floats:
    """Linear RGB (3, R, G) of a band of samples.

    ``jitter`` moves the sun for each row (R,) and column (G,), from -1 to 1: neighbouring samples
    see different parts of it, and their mean is a soft shadow. ``spread`` is the width of a sample
    at depth 1.
    """
    shape = hits.depth.shape
    # Eight bits sort fastest.
    surface = (hits.solid + np.int16(_PLANES)).astype(np.uint8)
    np.copyto(surface, hits.plane, where=hits.solid < 0)
    order = np.argsort(surface, axis=None, kind="stable")
    surface = surface.ravel()[order]
    count = _PLANES + len(stage.solids)
    surfaces = _Surfaces(
        p=_positions(stage, hits).take(order, 1),
        depth=hits.depth.ravel()[order],
        corner=hits.corner.ravel()[order],
        edges=np.searchsorted(surface, np.arange(count + 1)).tolist(),
        spread=spread,
    )
    sun, normal = _facing(stage, surfaces)
    owners = np.array([-1] * _PLANES + [item.owner for item in stage.solids], np.int16)
    looks = np.empty((2, *shape), np.float32)
    looks[0], looks[1] = jitter[1], jitter[0][:, None]
    cast_shadows(
        stage, sun, surfaces.p, owners[surface], jitter_2N=looks.reshape(2, -1), order_N=order
    )
    np.maximum(sun, 0, out=sun)

    out = np.empty_like(surfaces.p)
    _floor(stage, surfaces, sun, out)
    _walls(stage, surfaces, sun, out)
    if surfaces.edges[_PLANES] < surface.size:
        _objects(stage, surfaces, normal, sun, out)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return out.take(back, 1).reshape(3, *shape)


def _positions(stage: Stage, hits: Hits) -> Floats:
    """World position (3, N), metres."""
    r = stage.rotation
    # The camera's right is the world's, so x needs no v, and y and z need no u.
    p = np.empty((3, *hits.depth.shape), np.float32)
    np.multiply(hits.depth, hits.u, out=p[0])
    np.multiply(hits.depth, (r[1, 1] * hits.v + r[1, 2])[:, None], out=p[1])
    np.multiply(hits.depth, (r[2, 1] * hits.v + r[2, 2])[:, None], out=p[2])
    p[1] += np.float32(stage.world.camera.height)
    return p.reshape(3, -1)


def _facing(stage: Stage, surfaces: _Surfaces) -> tuple[Floats, Floats]:
    """Cosine (N,) between normal and sun, 0 or less turned away; and normals (3, P) of solids."""
    sun = stage.world.sun
    facing = np.empty_like(surfaces.depth)
    facing[surfaces.span(0)] = sun[1]
    for k, (nx, nz) in enumerate(stage.world.room.wall_normals()):
        facing[surfaces.span(1 + k)] = -(nx * sun[0] + nz * sun[2])
    first = surfaces.edges[_PLANES]
    normal = np.empty((3, surfaces.depth.size - first), np.float32)
    for k, item in enumerate(stage.solids):
        span = surfaces.span(_PLANES + k)
        if span.start < span.stop:
            local = rotate(item.turn.T, surfaces.p[:, span] - item.centre[:, None])
            outward = NORMAL[item.part.solid](local, item.part.size)
            normal[:, span.start - first : span.stop - first] = rotate(item.turn, outward)
    x, y, z = (np.float32(s) for s in sun)
    facing[first:] = x * normal[0] + y * normal[1] + z * normal[2]
    return facing, normal


def _sunlight(stage: Stage) -> Floats:
    warm = stage.world.warmth
    return np.array([[1.55], [1.53 - 0.12 * warm], [1.50 - 0.36 * warm]], np.float32)


def _floor(stage: Stage, surfaces: _Surfaces, sun: Floats, out: Floats) -> None:
    world, span = stage.world, surfaces.span(0)
    x, _, z = surfaces.p[:, span]
    depth = surfaces.depth[span]
    width = depth * depth
    width *= np.float32(surfaces.spread / world.camera.height)
    s, c = np.float32(np.sin(world.room.yaw)), np.float32(np.cos(world.room.yaw))
    tone = floor_tone(world.room.floor, c * x - s * z, s * x + c * z, width)
    # Sky is hidden near walls and under objects.
    sky = 1 - np.float32(0.4) * np.maximum(9 * surfaces.corner[span] - 8, 0)
    for placed in world.objects:
        near = np.square(x - np.float32(placed.x))
        near += np.square(z - np.float32(placed.z))
        near *= np.float32(1 / (0.9 * placed.shape.reach) ** 2)
        near *= near
        near += 1
        sky *= 1 - np.float32(0.6) / near
    base, sunlight = np.array(FLOORS[world.room.floor], np.float32), _sunlight(stage)
    for channel in range(3):
        light = _SKY[channel] * sky
        light += sunlight[channel] * sun[span]
        light *= base[channel] * tone
        out[channel, span] = light


def _walls(stage: Stage, surfaces: _Surfaces, sun: Floats, out: Floats) -> None:
    room, sunlight = stage.world.room, _sunlight(stage)
    base = np.array(WALLS[room.wall], np.float32)
    walls = slice(surfaces.edges[1], surfaces.edges[_PLANES])
    if walls.start == walls.stop:
        return
    x, y, z = surfaces.p[:, walls]
    along = np.empty_like(y)
    for k, (nx, nz) in enumerate(room.wall_normals(), start=1):
        part = slice(surfaces.edges[k] - walls.start, surfaces.edges[k + 1] - walls.start)
        along[part] = np.float32(nz) * x[part] - np.float32(nx) * z[part]
    width = surfaces.depth[walls] * np.float32(1.3 * surfaces.spread)
    tone = wall_tone(room.wall, along, y, width)
    sky = np.float32(0.62) + np.float32(0.26) * np.minimum(y * np.float32(1.2), 1)
    for channel in range(3):
        light = _SKY[channel] * sky + np.float32(0.12)
        light += np.float32(0.8) * sunlight[channel] * sun[walls]
        light *= base[channel] * tone
        out[channel, walls] = light


def _objects(stage: Stage, surfaces: _Surfaces, normal: Floats, sun: Floats, out: Floats) -> None:
    first = surfaces.edges[_PLANES]
    p, towards_sun = surfaces.p[:, first:], sun[first:]
    albedo = np.empty_like(p)
    gloss, inverse_size = np.zeros_like(towards_sun), np.empty_like(towards_sun)
    for k, item in enumerate(stage.solids):
        span = surfaces.span(_PLANES + k)
        if span.start == span.stop:
            continue
        part = slice(span.start - first, span.stop - first)
        placed = stage.world.objects[item.owner]
        inverse_size[part] = 2.5 / placed.size
        if item.part.paint is not None:
            albedo[:, part] = np.array(item.part.paint, np.float32)[:, None]
        else:
            albedo[:, part] = _albedo(placed, p[:, part])
            gloss[part] = {"glossy": 1.0, "matte": 0.0}.get(placed.material, 0.12)
    view = np.array([[0], [stage.world.camera.height], [0]], np.float32) - p
    view /= np.sqrt(view[0] * view[0] + view[1] * view[1] + view[2] * view[2])
    # Light from all around: sky above, floor below, less of both close to the floor.
    up = 0.5 * normal[1] + 0.5
    open_air = np.float32(0.45) + np.float32(0.55) * np.minimum(p[1] * inverse_size, 1)
    up *= open_air
    light = (_SKY - _BOUNCE) * up + _BOUNCE * open_air
    sunlight = _sunlight(stage)
    light += sunlight * towards_sun
    light *= albedo
    shiny = np.flatnonzero(gloss)
    if shiny.size:
        gloss = gloss[shiny]
        light[:, shiny] += gloss * _gloss(
            stage, normal.take(shiny, 1), view.take(shiny, 1), towards_sun[shiny] > 0
        )
    out[:, first:] = light


def _gloss(stage: Stage, n: Floats, view: Floats, lit: NDArray[np.bool_]) -> Floats:
    """Blinn-Phong highlight, and a plain room mirrored by Schlick's Fresnel term: (3, P)."""
    half = view + np.array(stage.world.sun, np.float32)[:, None]
    shine = n[0] * half[0] + n[1] * half[1] + n[2] * half[2]
    shine = np.maximum(shine, 0) * lit
    shine /= np.sqrt(half[0] * half[0] + half[1] * half[1] + half[2] * half[2])
    for _ in range(6):
        shine *= shine
    towards_eye = np.maximum(n[0] * view[0] + n[1] * view[1] + n[2] * view[2], 0)
    mirrored = 2 * towards_eye * n[1] - view[1]
    fresnel = np.square(np.square(1 - towards_eye))
    fresnel = np.float32(0.10) + np.float32(1.2) * fresnel
    fresnel *= np.float32(0.45) + np.float32(0.5) * np.minimum(np.maximum(2 * mirrored, -0.7), 1)
    gloss: Floats = np.float32(0.8) * _sunlight(stage) * shine + _SKY * fresnel
    return gloss


def _albedo(placed: Placed, p: Floats) -> Floats:
    """Linear RGB (3, P) of an object's surface."""
    base = np.array(COLOURS[placed.colour], np.float32)[:, None]
    s, c = np.float32(np.sin(placed.yaw)), np.float32(np.cos(placed.yaw))
    dx, dz = p[0] - np.float32(placed.x), p[2] - np.float32(placed.z)
    own = (c * dx - s * dz, p[1], s * dx + c * dz)
    second = pattern(placed.material, own, placed.size)
    if second is None:
        return base
    other = np.float32({"white": 0.22, "black": 0.30}.get(placed.colour, 0.80))
    return base + (other - base) * second
