"""Which samples the sun reaches: rays from surfaces back to the light."""

import numpy as np
from numpy.typing import NDArray

from clipmill.data.scenes.shapes import Axis
from clipmill.data.scenes.solids import INTERSECT, Floats, Triple
from clipmill.data.scenes.trace import Stage, rotate, triple

# Tangent of half the angle that the sun spans: how soft shadows are.
_SUN_SPREAD = 0.05
# Metres off the surface where a ray starts, or rounding would let it shade itself.
_OFFSET = 0.004
_CONVEX = {"ball", "box", "frustum", "pyramid", "capsule"}


def cast_shadows(
    stage: Stage,
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
    frame = _sun_frame(stage)
    sun, side, rise = frame.T
    x, y, z = position_3N
    along_side = side[0] * x + side[2] * z
    along_rise = rise[0] * x + rise[1] * y + rise[2] * z
    along_sun = sun[0] * x + sun[1] * y + sun[2] * z
    turned_to = facing_N > 0
    for owner, centre in enumerate(stage.centres):
        # Only points in the cone that the object's ball throws away from the sun can be in shade.
        reach = np.float32(stage.reaches[owner])
        items = [item for item in stage.solids if item.owner == owner]
        off_side = along_side - side @ centre
        off_rise = along_rise - rise @ centre
        behind = sun @ centre - along_sun
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
            start = inward @ (np.float32(_OFFSET) * sun - item.centre)
            t = INTERSECT[item.part.solid](triple(o + start[:, None]), d, item.part.size)
            blocked |= (t > 0) & (t < np.inf)
        facing_N[points[blocked]] = 0


def _sun_frame(stage: Stage) -> Floats:
    """Columns (3, 3): unit directions to the sun and across it, level and up its face."""
    sx, sy, sz = stage.world.sun
    flat = float(np.hypot(sx, sz))
    side = (sz / flat, 0.0, -sx / flat)
    rise = (sy * side[2], sz * side[0] - sx * side[2], -sy * side[0])
    return np.array([(sx, sy, sz), side, rise], np.float32).T


def _towards(frame: Floats, shift_2P: Floats) -> Triple:
    """Directions to points of the sun that lie off its middle by ``shift_2P``."""
    return triple(frame[:, :1] + rotate(frame[:, 1:], shift_2P))
