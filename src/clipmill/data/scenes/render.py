"""From a world to a picture: image, the surface at each pixel's centre, and its depth.

A picture is drawn in bands of rows, so that a large one needs little memory. With an even
supersample s, samples lie on a grid of s * size + 1 points a side that holds every pixel's centre
and edges; a pixel's colour is their mean by the trapezoid rule, and its labels are exactly those
of its centre.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.scenes.shade import shade
from clipmill.data.scenes.solids import Floats
from clipmill.data.scenes.trace import set_stage, trace
from clipmill.data.scenes.world import World

_BAND_SAMPLES = 40_000
_TONE_STEPS = 1 << 16
_TONE_TOP = 4.0


def _make_tone() -> NDArray[np.uint8]:
    """8-bit sRGB of linear light from 0 to _TONE_TOP, in _TONE_STEPS steps."""
    light = np.linspace(0, _TONE_TOP, _TONE_STEPS)
    # Rolls highlights off instead of clipping them.
    display = (1 - np.exp(-1.25 * light)) * 1.06
    display = np.minimum(display, 1)
    # IEC 61966-2-1, the sRGB transfer function.
    encoded = np.where(display <= 0.0031308, 12.92 * display, 1.055 * display ** (1 / 2.4) - 0.055)
    table: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
    return table


_TONE = _make_tone()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What the renderer knows of each pixel."""

    image_HW3: NDArray[np.uint8]
    """sRGB."""
    object_HW: NDArray[np.uint8]
    """0 for the room, k for the k-th object of the world (from 1)."""
    floor_HW: NDArray[np.bool_]
    """Whether the room behind the pixel is floor, not wall."""
    depth_HW: Floats
    """Metres along the optical axis."""


def render(world: World, size: int, supersample: int) -> Picture:
    """Draw ``world`` at ``size`` pixels a side; ``supersample`` is 1 or even."""
    s = supersample
    shared_edge = int(s > 1)
    first = 0.0 if shared_edge else 0.5
    stage = set_stage(world)
    tan_half = world.camera.tan_half
    ticks = (np.arange(s * size + shared_edge, dtype=np.float64) + first) * (2 / (s * size)) - 1
    u = (ticks * tan_half).astype(np.float32)
    jitter = _jitter(s, u.size)
    owners = np.array([0, *(item.owner + 1 for item in stage.solids)], np.uint8)
    picture = Picture(
        image_HW3=np.empty((size, size, 3), np.uint8),
        object_HW=np.empty((size, size), np.uint8),
        floor_HW=np.empty((size, size), np.bool_),
        depth_HW=np.empty((size, size), np.float32),
    )
    band = max(1, _BAND_SAMPLES // (s * u.size))
    centre = s // 2
    for top in range(0, size, band):
        bottom = min(top + band, size)
        rows = slice(s * top, s * bottom + shared_edge)
        hits = trace(stage, u, -u[rows])
        light = shade(stage, hits, (jitter[rows], jitter), 2 * tan_half / (s * size))
        view = np.s_[top:bottom]
        picture.image_HW3[view] = _expose(light, s)
        middles = np.s_[centre : s * (bottom - top) : s, centre : s * size : s]
        picture.object_HW[view] = owners.take(hits.solid[middles] + 1)
        picture.floor_HW[view] = hits.plane[middles] == 0
        picture.depth_HW[view] = hits.depth[middles]
    return picture


def _jitter(s: int, count: int) -> Floats:
    """Where on the sun, from -1 to 1, each row or column of samples looks."""
    if s == 1:
        return np.zeros(count, np.float32)
    places = (np.arange(s, dtype=np.float32) + 0.5) * (2 / s) - 1
    return np.resize(places, count)


def _expose(light_3RG: Floats, s: int) -> NDArray[np.uint8]:
    """8-bit image (rows, columns, 3) of linear samples."""
    light = light_3RG
    if s > 1:
        light = _pool(_pool(light, s, axis=1), s, axis=2)
    steps = np.minimum(light * np.float32((_TONE_STEPS - 1) / _TONE_TOP), _TONE_STEPS - 1)
    image: NDArray[np.uint8] = _TONE.take(steps.astype(np.uint16)).transpose(1, 2, 0)
    return image


def _pool(light: Floats, s: int, axis: int) -> Floats:
    """Trapezoid mean over each pixel's s + 1 samples along an axis."""
    light = np.moveaxis(light, axis, 0)
    total = (light[:-1:s] + light[s::s]) * np.float32(0.5)
    for k in range(1, s):
        total += light[k::s]
    return np.moveaxis(total * np.float32(1 / s), 0, axis)
