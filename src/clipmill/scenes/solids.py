"""Where rays meet solids, and which way the surface faces there.

Each solid is centered at its own origin with its axis along y. A ray is ``origin + t * direction``;
both are triples whose entries are scalars or arrays that broadcast together, so one call serves
the eye (one origin, many directions) and the light (many origins). Intersections give the t at
which a ray enters the solid from outside, infinity where it misses. Normals take points on the
surface (3, P) and give outward unit vectors (3, P).

Sizes (meters): ball (rx, ry, rz); box (hx, hy, hz) half edges; frustum (bottom radius, top radius,
half height); pyramid (half base edge, half height); capsule (radius, half length between the
caps' centers); torus (ring radius, tube radius).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Triple = tuple[Floats, Floats, Floats]
Doubles = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
Sizes = tuple[float, ...]

_FAR = np.float32(np.inf)


def _ball(o: Triple, d: Triple, size: Sizes) -> Floats:
    ox, oy, oz = (o[i] / np.float32(size[i]) for i in range(3))
    dx, dy, dz = (d[i] / np.float32(size[i]) for i in range(3))
    a = dx * dx + dy * dy + dz * dz
    closest = -(ox * dx + oy * dy + oz * dz) / a
    # The distance to the ray measured at its closest point keeps float32 exact enough far away.
    px, py, pz = ox + closest * dx, oy + closest * dy, oz + closest * dz
    room = (1 - (px * px + py * py + pz * pz)) / a
    return np.where(room > 0, closest - np.sqrt(np.maximum(room, 0)), _FAR)


def _slab(o: Floats, d: Floats, half: float | np.float32) -> tuple[Floats, Floats]:
    inverse = 1 / (d + np.float32(1e-12))
    middle, reach = -o * inverse, np.abs(np.float32(half) * inverse)
    return middle - reach, middle + reach


def _box(o: Triple, d: Triple, size: Sizes) -> Floats:
    x_in, x_out = _slab(o[0], d[0], size[0])
    y_in, y_out = _slab(o[1], d[1], size[1])
    z_in, z_out = _slab(o[2], d[2], size[2])
    t_in = np.maximum(np.maximum(x_in, y_in), z_in)
    t_out = np.minimum(np.minimum(x_out, y_out), z_out)
    return np.where(t_in < t_out, t_in, _FAR)


def _frustum(o: Triple, d: Triple, size: Sizes) -> Floats:
    bottom, top, half = (np.float32(s) for s in size)
    slope, middle = (top - bottom) / (2 * half), (top + bottom) / 2
    ox, oy, oz = o
    dx, dy, dz = d
    if slope == 0:
        return _cylinder(o, d, middle, half)
    radius_o, radius_d = slope * oy + middle, slope * dy
    # x^2 + z^2 = radius(y)^2 along the ray: a t^2 + 2 b t + c = 0
    a = dx * dx + dz * dz - radius_d * radius_d
    inverse = 1 / np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    b = ox * dx + oz * dz - radius_o * radius_d
    room = b * b - a * (ox * ox + oz * oz - radius_o * radius_o)
    root = np.sqrt(np.maximum(room, 0))
    # Only the cap that faces the ray can be entered.
    cap = np.copysign(half, -dy)
    t = (cap - oy) / (dy + np.float32(1e-12))
    x, z, reach = ox + t * dx, oz + t * dz, slope * cap + middle
    best = np.where((x * x + z * z <= reach * reach) & (t > 0), t, _FAR)
    real = room > 0
    for t in (-(b + root) * inverse, (root - b) * inverse):
        # Between the caps the radius is positive, so the cone's other half is left out.
        inside = real & (np.abs(oy + t * dy) <= half) & (t > 0) & (t < best)
        np.copyto(best, t, where=inside)
    return best


def _cylinder(o: Triple, d: Triple, radius: np.float32, half: np.float32) -> Floats:
    ox, oy, oz = o
    dx, dy, dz = d
    inverse = 1 / (dx * dx + dz * dz + np.float32(1e-12))
    b = (ox * dx + oz * dz) * inverse
    room = b * b - (ox * ox + oz * oz - radius * radius) * inverse
    root = np.sqrt(np.maximum(room, 0))
    t_in, t_out = _slab(oy, dy, half)
    t_in = np.maximum(t_in, -b - root)
    t_out = np.minimum(t_out, root - b)
    return np.where((t_in < t_out) & (room > 0), t_in, _FAR)


def _pyramid(o: Triple, d: Triple, size: Sizes) -> Floats:
    base, half = (np.float32(s) for s in size)
    slope = base / (2 * half)
    # Four sides |x|, |z| <= slope * (half - y), and the base y >= -half.
    planes = [
        (sign * o[axis] + slope * o[1] - slope * half, sign * d[axis] + slope * d[1])
        for axis in (0, 2)
        for sign in (np.float32(-1), np.float32(1))
    ]
    planes.append((-o[1] - half, -d[1]))
    t_in: Floats = np.float32(-np.inf)  # type: ignore[assignment]
    t_out: Floats = _FAR  # type: ignore[assignment]
    for outside, rate in planes:
        t = -outside / (rate + np.float32(1e-12))
        entering = rate < 0
        t_in = np.maximum(t_in, np.where(entering, t, -_FAR))
        t_out = np.minimum(t_out, np.where(entering, _FAR, t))
    return np.where(t_in < t_out, t_in, _FAR)


def _capsule(o: Triple, d: Triple, size: Sizes) -> Floats:
    radius, half = (np.float32(s) for s in size)
    ox, oy, oz = o
    dx, dy, dz = d
    a = dx * dx + dz * dz + np.float32(1e-12)
    b = ox * dx + oz * dz
    room = b * b - a * (ox * ox + oz * oz - radius * radius)
    t = (-b - np.sqrt(np.maximum(room, 0))) / a
    y = oy + t * dy
    # A ray into the endless cylinder that passes over its side enters by the nearer cap, if at all.
    center = np.clip(y, -half, half)
    capped = _ball((ox, oy - center, oz), d, (float(radius),) * 3)
    return np.where(room > 0, np.where(np.abs(y) <= half, t, capped), _FAR)


def _torus(o: Triple, d: Triple, size: Sizes) -> Floats:
    ring, tube = size
    ox, oy, oz = o
    dx, dy, dz = d
    speed2 = dx * dx + dy * dy + dz * dz
    closest = -(ox * dx + oy * dy + oz * dz) / speed2
    px, py, pz = ox + closest * dx, oy + closest * dy, oz + closest * dz
    # Only rays through the ball round the torus are worth a quartic, and only in float64.
    near = np.flatnonzero(px * px + py * py + pz * pz < np.float32((ring + tube) ** 2))
    t = np.full(speed2.size, _FAR)
    if near.size:
        x, y, z, ex, ey, ez = (
            np.asarray(part, np.float64)
            if np.ndim(part) == 0
            else part.ravel()[near].astype(np.float64)
            for part in (*o, *d)
        )
        t[near] = _torus_enter((x, y, z), (ex, ey, ez), ring, tube)
    return t.reshape(speed2.shape)


def _torus_enter(o: Doubles, d: Doubles, R: float, r: float) -> NDArray[np.float64]:
    """Smallest t > 0 on the torus, or infinity.

    From the ray's point closest to the center, with |d| = 1, (|p|^2 + R^2 - r^2)^2
    = 4 R^2 (x^2 + z^2) has no cubic term: tau^4 + p tau^2 + q tau + s = 0, which Ferrari's formula
    solves.
    """
    dx, dy, dz = d
    inverse = 1 / np.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx * inverse, dy * inverse, dz * inverse
    closest = -(o[0] * dx + o[1] * dy + o[2] * dz)
    x, y, z = o[0] + closest * dx, o[1] + closest * dy, o[2] + closest * dz
    level, squared = x * x + z * z, 4 * R * R
    k = level + y * y + (R * R - r * r)
    p = 2 * k - squared * (dx * dx + dz * dz)
    q = -2 * squared * (x * dx + z * dz)
    q += 1e-7 * (np.abs(q) < 1e-7)  # Ferrari divides by what q = 0 makes zero
    s = k * k - squared * level
    edge = np.sqrt(2 * _resolvent(p, q, s))
    best = np.full(p.shape, np.inf)
    middle, rest = -(p + edge * edge / 2) / 2, q / (2 * edge)
    for half, inner in ((-edge / 2, middle + rest), (edge / 2, middle - rest)):
        root = np.sqrt(np.maximum(inner, 0))
        for tau in (half - root, half + root):
            np.copyto(best, tau, where=(inner >= 0) & (tau > -closest) & (tau < best))
    # One Newton step mends what cancellation cost.
    near = np.where(np.isfinite(best), best, 0)
    rate = (4 * near * near + 2 * p) * near + q
    step = (((near * near + p) * near + q) * near + s) / np.where(rate == 0, 1, rate)
    t: NDArray[np.float64] = closest + best - np.minimum(np.maximum(step, -r / 8), r / 8)
    return t * inverse


def _resolvent(
    p: NDArray[np.float64], q: NDArray[np.float64], s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Largest root of Ferrari's resolvent m^3 + p m^2 + (p^2/4 - s) m - q^2/8 = 0: positive.

    Freed of its square term by m = w - p/3: by cosines if all roots are real, else by Cardano.
    """
    third = -(p * p / 12 + s) / 3
    half = -(p * (p * p / 108 - s / 3) + q * q / 8) / 2
    room = half * half + third * third * third
    root = np.sqrt(np.maximum(room, 0))
    one = np.cbrt(root - half) - np.cbrt(root + half)
    span = np.sqrt(np.maximum(-third, 1e-30))
    cosine = np.minimum(np.maximum(-half / (span * span * span), -1), 1)
    three = 2 * span * np.cos(np.arccos(cosine) / 3)
    return np.maximum(np.where(room > 0, one, three) - p / 3, 1e-12)


def _ball_normal(p: Floats, size: Sizes) -> Floats:
    return _unit(p / np.square(np.asarray(size, np.float32))[:, None])


def _box_normal(p: Floats, size: Sizes) -> Floats:
    face = p / np.asarray(size, np.float32)[:, None]
    axis = np.abs(face).argmax(0)
    columns = np.arange(p.shape[1])
    normal = np.zeros_like(p)
    normal[axis, columns] = np.sign(face[axis, columns])
    return normal


def _frustum_normal(p: Floats, size: Sizes) -> Floats:
    bottom, top, half = size
    slope = (top - bottom) / (2 * half)
    radius = np.sqrt(p[0] * p[0] + p[2] * p[2])
    # On a cap a point is nearer to the cap's plane than to the side.
    capped = half - np.abs(p[1]) < np.abs(slope * p[1] + (top + bottom) / 2 - radius)
    side = _unit(np.stack([p[0], -np.float32(slope) * radius, p[2]]))
    cap = np.zeros_like(p)
    cap[1] = np.sign(p[1])
    return np.where(capped, cap, side)


def _pyramid_normal(p: Floats, size: Sizes) -> Floats:
    base, half = size
    slope = np.float32(base / (2 * half))
    along_x = np.abs(p[0]) > np.abs(p[2])
    zero = np.zeros_like(p[0])
    side = np.stack(
        [
            np.where(along_x, np.sign(p[0]), zero),
            zero + slope,
            np.where(along_x, zero, np.sign(p[2])),
        ]
    ) / np.sqrt(1 + slope * slope)
    below = p[1] < -half * (1 - 1e-3)
    return np.where(below, np.asarray([[0], [-1], [0]], np.float32), side)


def _capsule_normal(p: Floats, size: Sizes) -> Floats:
    away = p.copy()
    away[1] -= np.clip(p[1], -size[1], size[1])
    return _unit(away)


def _torus_normal(p: Floats, size: Sizes) -> Floats:
    away = p.copy()
    shrink = 1 - np.float32(size[0]) / np.sqrt(p[0] * p[0] + p[2] * p[2])
    away[0] *= shrink
    away[2] *= shrink
    return _unit(away)


def _unit(v: Floats) -> Floats:
    unit: Floats = v / np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    return unit


INTERSECT: dict[str, Callable[[Triple, Triple, Sizes], Floats]] = {
    "ball": _ball,
    "box": _box,
    "frustum": _frustum,
    "pyramid": _pyramid,
    "capsule": _capsule,
    "torus": _torus,
}
NORMAL: dict[str, Callable[[Floats, Sizes], Floats]] = {
    "ball": _ball_normal,
    "box": _box_normal,
    "frustum": _frustum_normal,
    "pyramid": _pyramid_normal,
    "capsule": _capsule_normal,
    "torus": _torus_normal,
}


def half_extents(solid: str, size: Sizes) -> tuple[float, float, float]:
    """Half edges (meters) of the solid's bounding box in its own frame."""
    match solid:
        case "ball" | "box":
            return size[0], size[1], size[2]
        case "frustum":
            widest = max(size[0], size[1])
            return widest, size[2], widest
        case "pyramid":
            return size[0], size[1], size[0]
        case "capsule":
            return size[0], size[0] + size[1], size[0]
        case _:
            return size[0] + size[1], size[1], size[0] + size[1]
