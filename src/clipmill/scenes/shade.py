"""Shading of samples: surface patterns, sun with soft shadows, sky, contact shade, gloss.

Colors are linear RGB. Patterns are functions of meters on the surface, so an image of another size
samples the same paint; detail fades where a sample covers too much of it to avoid flicker.

N samples of a band, sorted by surface: floor, three walls, then each solid in turn; P those of
one surface or of all solids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.scenes.geometry import COLORS, FLOORS, WALLS, Axis, PlacedObject
from clipmill.scenes.solids import INTERSECT, NORMAL, Floats, Triple
from clipmill.scenes.trace import Hits, RenderScene, rotate, triple

_SKY = np.array([[0.44], [0.50], [0.59]], np.float32)

_BOUNCE = np.array([[0.27], [0.24], [0.21]], np.float32)

_PLANES = 4

# Tangent of half the angle that the sun spans: how soft shadows are.
_SUN_SPREAD = 0.05

# Meters off the surface where a ray starts, or rounding would let it shade itself.
_OFFSET = 0.004

_CONVEX = {"ball", "box", "frustum", "pyramid", "capsule"}

_GRAIN_CELLS = 128


def _make_grain() -> Floats:
    """Smooth, tileable noise (cells, cells) about 0, of standard deviation about 1."""
    rng = np.random.default_rng(20240917)
    spectrum = np.fft.rfft2(rng.standard_normal((_GRAIN_CELLS, _GRAIN_CELLS)))
    fy = np.fft.fftfreq(_GRAIN_CELLS)[:, None]
    fx = np.fft.rfftfreq(_GRAIN_CELLS)[None, :]
    spectrum *= 1 / (0.02 + np.hypot(fx, fy))
    spectrum[0, 0] = 0
    grain = np.fft.irfft2(spectrum, s=(_GRAIN_CELLS, _GRAIN_CELLS))
    even: Floats = (grain / grain.std()).astype(np.float32)
    return even


_GRAIN = _make_grain().ravel()

_TONES = np.random.default_rng(7).uniform(-1, 1, 64).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Surfaces:
    """Samples in order of surface."""

    p: Floats
    """(3, N) meters."""
    depth: Floats
    """(N,) meters."""
    corner: Floats
    """(N,) as in Hits."""
    edges: list[int]
    """Index of each surface's first sample, then N."""
    spread: float
    """Width (meters) of a sample at depth 1."""

    def span(self, surface: int) -> slice:
        """The samples of a surface: 0 floor, 1 to 3 walls, 4 and on solids."""
        return slice(self.edges[surface], self.edges[surface + 1])


def shade(
    render_scene: RenderScene, hits: Hits, jitter: tuple[Floats, Floats], spread: float
) -> Floats:
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
    count = _PLANES + len(render_scene.solids)
    surfaces = _Surfaces(
        p=_positions(render_scene, hits).take(order, 1),
        depth=hits.depth.ravel()[order],
        corner=hits.corner.ravel()[order],
        edges=np.searchsorted(surface, np.arange(count + 1)).tolist(),
        spread=spread,
    )
    sun, normal = _facing(render_scene, surfaces)
    owners = np.array([-1] * _PLANES + [item.owner for item in render_scene.solids], np.int16)
    looks = np.empty((2, *shape), np.float32)
    looks[0], looks[1] = jitter[1], jitter[0][:, None]
    cast_shadows(
        render_scene,
        sun,
        surfaces.p,
        owners[surface],
        jitter_2N=looks.reshape(2, -1),
        order_N=order,
    )
    np.maximum(sun, 0, out=sun)

    out = np.empty_like(surfaces.p)
    _floor(render_scene, surfaces, sun, out)
    _walls(render_scene, surfaces, sun, out)
    if surfaces.edges[_PLANES] < surface.size:
        _objects(render_scene, surfaces, normal, sun, out)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return out.take(back, 1).reshape(3, *shape)


def _positions(render_scene: RenderScene, hits: Hits) -> Floats:
    """SceneGeometry position (3, N), meters."""
    r = render_scene.rotation
    # The camera's right is the world's, so x needs no v, and y and z need no u.
    p = np.empty((3, *hits.depth.shape), np.float32)
    np.multiply(hits.depth, hits.u, out=p[0])
    np.multiply(hits.depth, (r[1, 1] * hits.v + r[1, 2])[:, None], out=p[1])
    np.multiply(hits.depth, (r[2, 1] * hits.v + r[2, 2])[:, None], out=p[2])
    p[1] += np.float32(render_scene.geometry.camera.height)
    return p.reshape(3, -1)


def _facing(render_scene: RenderScene, surfaces: _Surfaces) -> tuple[Floats, Floats]:
    """Cosine (N,) between normal and sun, 0 or less turned away; and normals (3, P) of solids."""
    sun = render_scene.geometry.sun
    facing = np.empty_like(surfaces.depth)
    facing[surfaces.span(0)] = sun[1]
    for k, (nx, nz) in enumerate(render_scene.geometry.room.wall_normals()):
        facing[surfaces.span(1 + k)] = -(nx * sun[0] + nz * sun[2])
    first = surfaces.edges[_PLANES]
    normal = np.empty((3, surfaces.depth.size - first), np.float32)
    for k, item in enumerate(render_scene.solids):
        span = surfaces.span(_PLANES + k)
        if span.start < span.stop:
            local = rotate(item.turn.T, surfaces.p[:, span] - item.center[:, None])
            outward = NORMAL[item.part.solid](local, item.part.size)
            normal[:, span.start - first : span.stop - first] = rotate(item.turn, outward)
    x, y, z = (np.float32(s) for s in sun)
    facing[first:] = x * normal[0] + y * normal[1] + z * normal[2]
    return facing, normal


def _sunlight(render_scene: RenderScene) -> Floats:
    warm = render_scene.geometry.warmth
    return np.array([[1.55], [1.53 - 0.12 * warm], [1.50 - 0.36 * warm]], np.float32)


def _floor(render_scene: RenderScene, surfaces: _Surfaces, sun: Floats, out: Floats) -> None:
    geometry, span = render_scene.geometry, surfaces.span(0)
    x, _, z = surfaces.p[:, span]
    depth = surfaces.depth[span]
    width = depth * depth
    width *= np.float32(surfaces.spread / geometry.camera.height)
    s, c = np.float32(np.sin(geometry.room.yaw)), np.float32(np.cos(geometry.room.yaw))
    tone = floor_tone(geometry.room.floor, c * x - s * z, s * x + c * z, width)
    # Sky is hidden near walls and under objects.
    sky = 1 - np.float32(0.4) * np.maximum(9 * surfaces.corner[span] - 8, 0)
    for placed in geometry.objects:
        near = np.square(x - np.float32(placed.x))
        near += np.square(z - np.float32(placed.z))
        near *= np.float32(1 / (0.9 * placed.shape.reach) ** 2)
        near *= near
        near += 1
        sky *= 1 - np.float32(0.6) / near
    base, sunlight = np.array(FLOORS[geometry.room.floor], np.float32), _sunlight(render_scene)
    for channel in range(3):
        light = _SKY[channel] * sky
        light += sunlight[channel] * sun[span]
        light *= base[channel] * tone
        out[channel, span] = light


def _walls(render_scene: RenderScene, surfaces: _Surfaces, sun: Floats, out: Floats) -> None:
    room, sunlight = render_scene.geometry.room, _sunlight(render_scene)
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


def _objects(
    render_scene: RenderScene, surfaces: _Surfaces, normal: Floats, sun: Floats, out: Floats
) -> None:
    first = surfaces.edges[_PLANES]
    p, towards_sun = surfaces.p[:, first:], sun[first:]
    albedo = np.empty_like(p)
    gloss, inverse_size = np.zeros_like(towards_sun), np.empty_like(towards_sun)
    for k, item in enumerate(render_scene.solids):
        span = surfaces.span(_PLANES + k)
        if span.start == span.stop:
            continue
        part = slice(span.start - first, span.stop - first)
        placed = render_scene.geometry.objects[item.owner]
        inverse_size[part] = 2.5 / placed.size
        if item.part.paint is not None:
            albedo[:, part] = np.array(item.part.paint, np.float32)[:, None]
        else:
            albedo[:, part] = _albedo(placed, p[:, part])
            gloss[part] = {"glossy": 1.0, "matte": 0.0}.get(placed.material, 0.12)
    view = np.array([[0], [render_scene.geometry.camera.height], [0]], np.float32) - p
    view /= np.sqrt(view[0] * view[0] + view[1] * view[1] + view[2] * view[2])
    # Light from all around: sky above, floor below, less of both close to the floor.
    up = 0.5 * normal[1] + 0.5
    open_air = np.float32(0.45) + np.float32(0.55) * np.minimum(p[1] * inverse_size, 1)
    up *= open_air
    light = (_SKY - _BOUNCE) * up + _BOUNCE * open_air
    sunlight = _sunlight(render_scene)
    light += sunlight * towards_sun
    light *= albedo
    shiny = np.flatnonzero(gloss)
    if shiny.size:
        gloss = gloss[shiny]
        light[:, shiny] += gloss * _gloss(
            render_scene, normal.take(shiny, 1), view.take(shiny, 1), towards_sun[shiny] > 0
        )
    out[:, first:] = light


def _gloss(render_scene: RenderScene, n: Floats, view: Floats, lit: NDArray[np.bool_]) -> Floats:
    """Blinn-Phong highlight, and a plain room mirrored by Schlick's Fresnel term: (3, P)."""
    half = view + np.array(render_scene.geometry.sun, np.float32)[:, None]
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
    gloss: Floats = np.float32(0.8) * _sunlight(render_scene) * shine + _SKY * fresnel
    return gloss


def _albedo(placed: PlacedObject, p: Floats) -> Floats:
    """Linear RGB (3, P) of an object's surface."""
    base = np.array(COLORS[placed.color], np.float32)[:, None]
    s, c = np.float32(np.sin(placed.yaw)), np.float32(np.cos(placed.yaw))
    dx, dz = p[0] - np.float32(placed.x), p[2] - np.float32(placed.z)
    own = (c * dx - s * dz, p[1], s * dx + c * dz)
    second = pattern(placed.material, own, placed.size)
    if second is None:
        return base
    other = np.float32({"white": 0.22, "black": 0.30}.get(placed.color, 0.80))
    return base + (other - base) * second


def cast_shadows(
    render_scene: RenderScene,
    facing_N: Floats,
    position_3N: Floats,
    owner_N: NDArray[np.int16],
    *,
    jitter_2N: Floats,
    order_N: NDArray[np.intp],
) -> None:
    """Set to 0, in place, the sun that a surface faces where an object blocks it.

    ``facing_N`` is the cosine between a surface's normal and the sun, 0 or less turned away.
    ``owner_N`` is the index of the object that a sample lies on, -1 for the room. ``jitter_2N``,
    from -1 to 1, says at which part of the sun sample ``order_N[k]`` of it looks.
    """
    frame = _sun_frame(render_scene)
    sun, side, rise = frame.T
    x, y, z = position_3N
    along_side = side[0] * x + side[2] * z
    along_rise = rise[0] * x + rise[1] * y + rise[2] * z
    along_sun = sun[0] * x + sun[1] * y + sun[2] * z
    turned_to = facing_N > 0
    for owner, center in enumerate(render_scene.centers):
        # Only points in the cone that the object's ball throws away from the sun can be in shade.
        reach = np.float32(render_scene.reaches[owner])
        items = [item for item in render_scene.solids if item.owner == owner]
        off_side = along_side - side @ center
        off_rise = along_rise - rise @ center
        behind = sun @ center - along_sun
        radius = np.float32(1.5 * _SUN_SPREAD) * behind
        radius += np.float32(1.1) * reach
        off_side *= off_side
        off_rise *= off_rise
        off_side += off_rise
        radius *= radius
        near = (off_side < radius) & (behind > -reach)
        near &= turned_to
        if len(items) == 1 and items[0].part.solid in _CONVEX:
            near &= owner_N != owner
        points = np.flatnonzero(near)
        if not points.size:
            continue
        shift_2P = np.float32(_SUN_SPREAD) * jitter_2N.take(order_N[points], 1)
        p = position_3N.take(points, 1)
        blocked = np.zeros(points.size, np.bool_)
        rays: dict[Axis, tuple[Floats, Triple]] = {}
        for item in items:
            inward = item.turn.T
            if item.part.axis not in rays:
                rays[item.part.axis] = rotate(inward, p), _towards(inward @ frame, shift_2P)
            o, d = rays[item.part.axis]
            start = inward @ (np.float32(_OFFSET) * sun - item.center)
            t = INTERSECT[item.part.solid](triple(o + start[:, None]), d, item.part.size)
            blocked |= (t > 0) & (t < np.inf)
        facing_N[points[blocked]] = 0


def _sun_frame(render_scene: RenderScene) -> Floats:
    """Columns (3, 3): unit directions to the sun and across it, level and up its face."""
    sx, sy, sz = render_scene.geometry.sun
    flat = float(np.hypot(sx, sz))
    side = (sz / flat, 0.0, -sx / flat)
    rise = (sy * side[2], sz * side[0] - sx * side[2], -sy * side[0])
    return np.array([(sx, sy, sz), side, rise], np.float32).T


def _towards(frame: Floats, shift_2P: Floats) -> Triple:
    """Directions to points of the sun that lie off its middle by ``shift_2P``."""
    return triple(frame[:, :1] + rotate(frame[:, 1:], shift_2P))


def _grain(x: Floats, y: Floats) -> Floats:
    """Noise with one cell a unit of x and y."""
    column = x.astype(np.int32) & (_GRAIN_CELLS - 1)
    row = y.astype(np.int32) & (_GRAIN_CELLS - 1)
    return _GRAIN.take(row * _GRAIN_CELLS + column)


def _seam(x: Floats, width: float, spread: Floats) -> Floats:
    """1 on whole numbers of x, falling to 0 within ``width``; widened and thinned by ``spread``."""
    blur = width + spread
    off = np.abs(x - np.rint(x))
    seam: Floats = np.maximum(1 - off / blur, 0) * (width / blur)
    return seam


def floor_tone(kind: str, x: Floats, z: Floats, spread: Floats) -> Floats:
    """Gray factor of the floor at (x, z) meters; ``kind`` is a key of FLOORS."""
    tone: Floats
    match kind:
        case "wooden":
            across = x * np.float32(1 / 0.21)
            plank = np.floor(across)
            row = plank.astype(np.int32)
            along = z * np.float32(1 / 1.6) + _TONES.take(row & 63)
            board = row * 7 + np.floor(along).astype(np.int32) * 13
            seam = _seam(across, 0.045, spread * np.float32(1 / 0.21))
            fade = 1 / (1 + 12 * spread)
            grain = _grain(x * 110 + 4096, z * 9 + 4096)
            tone = 1 + 0.17 * _TONES.take(board & 63) + 0.07 * fade * grain
            tone *= 1 - 0.55 * seam
        case "tiled":
            u, v = x * np.float32(1 / 0.55), z * np.float32(1 / 0.55)
            # A square wave whose edges are as soft as a sample is wide.
            blur = spread * np.float32(1 / 0.55) + 0.004
            wave = _square(u, blur) * _square(v, blur)
            grout: Floats = np.maximum(_seam(u, 0.03, blur), _seam(v, 0.03, blur))
            tone = 1 + 0.26 * wave
            tone *= 1 - 0.3 * grout
        case "carpeted":
            fine = _grain(x * 75 + 4096, z * 75 + 4096)
            tone = 1 + 0.16 / (1 + 20 * spread) * fine
        case _:
            coarse = _grain(x * 22 + 4096, z * 22 + 4096)
            tone = 1 + 0.10 / (1 + 5 * spread) * coarse
    return tone


def _square(x: Floats, blur: Floats) -> Floats:
    """Square wave of period 2 between -1 and 1, its edges ``blur`` wide."""
    ramp = (0.5 - np.abs(x - 2 * np.floor(x * 0.5) - 1)) / blur
    wave: Floats = np.minimum(np.maximum(ramp, -1), 1)
    return wave


def wall_tone(kind: str, along: Floats, y: Floats, spread: Floats) -> Floats:
    """Gray factor of a wall, meters along it and above the floor; ``kind`` is a key of WALLS."""
    tone: Floats
    if kind == "brick":
        course = y * np.float32(1 / 0.13)
        row = np.floor(course)
        shifted = along * np.float32(1 / 0.34) + 0.5 * row
        brick = np.floor(shifted).astype(np.int32) * 11 + row.astype(np.int32) * 29
        joint = np.maximum(
            _seam(course, 0.1, spread * np.float32(1 / 0.13)),
            _seam(shifted, 0.04, spread * np.float32(1 / 0.34)),
        )
        tone = 1 + 0.22 * _TONES.take(brick & 63) + 0.75 * joint
        return tone
    tone = 1 + 0.012 * _grain(along * 30 + 4096, y * 30 + 4096)
    # A skirting board, pale with a dark upper edge.
    board = np.clip((0.17 - y) / (spread + 0.004) + 0.5, 0, 1)
    tone += board * (0.35 - 0.9 * _seam((y - 0.17) * 0.5, 0.008, spread))
    return tone


def pattern(material: str, p: Triple, size: float) -> Floats | None:
    """Share (P,) of an object's second color at points of its frame, or None without one."""
    share: Floats
    if material == "striped":
        wave = p[1] * np.float32(5.0 / size) + p[0] * np.float32(1.7 / size)
        share = (wave - np.floor(wave) > 0.6).astype(np.float32)
        return share
    if material == "checkered":
        # Off the whole numbers, where flat faces would lie on a cell's border.
        scale, shift = np.float32(3.6 / size), np.float32(0.37)
        cells = np.floor(p[0] * scale + shift)
        cells += np.floor(p[1] * scale + shift)
        cells += np.floor(p[2] * scale + shift)
        share = (cells.astype(np.int32) & 1).astype(np.float32)
        return share
    return None
