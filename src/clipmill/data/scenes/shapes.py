"""The object classes: which solids each is made of.

An object's frame has its origin on the ground below its middle, y up, metres. A shape builder
takes the object's size (metres: its largest extent, roughly) and a number in [0, 1) that picks
among its poses and proportions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clipmill.data.scenes.solids import Sizes

Axis = Literal["x", "y", "z"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One solid of an object, placed in the object's frame."""

    solid: str
    """Key of ``solids.INTERSECT``."""
    size: Sizes
    """Sizes of the solid, metres; see solids.py."""
    centre: tuple[float, float, float]
    """Of the solid, metres, in the object's frame."""
    axis: Axis = "y"
    """Direction, in the object's frame, of the solid's own y axis."""
    paint: tuple[float, float, float] | None = None
    """Linear RGB that replaces the object's colour and material."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """An object without its place."""

    parts: tuple[Part, ...]
    """Drawn in any order: the nearest surface wins."""
    height: float
    """Metres."""
    reach: float
    """Metres: radius of the vertical cylinder about the origin that holds every part."""


_METAL = (0.17, 0.17, 0.18)
_CREAM = (0.76, 0.70, 0.58)
_COFFEE = (0.055, 0.025, 0.012)


def _sphere(size: float, _: float) -> Shape:
    r = size / 2
    part = Part(solid="ball", size=(r, r, r), centre=(0, r, 0))
    return Shape(parts=(part,), height=size, reach=r)


def _cube(size: float, _: float) -> Shape:
    h = 0.42 * size
    part = Part(solid="box", size=(h, h, h), centre=(0, h, 0))
    return Shape(parts=(part,), height=2 * h, reach=1.42 * h)


def _cylinder(size: float, pick: float) -> Shape:
    r, half = size * (0.26 + 0.08 * pick), size / 2
    if pick < 0.7:
        part = Part(solid="frustum", size=(r, r, half), centre=(0, half, 0))
        return Shape(parts=(part,), height=size, reach=r)
    part = Part(solid="frustum", size=(r, r, half), centre=(0, r, 0), axis="x")
    return Shape(parts=(part,), height=2 * r, reach=float((r * r + half * half) ** 0.5))


def _cone(size: float, pick: float) -> Shape:
    r, half = size * (0.32 + 0.1 * pick), size / 2
    part = Part(solid="frustum", size=(r, 0.0, half), centre=(0, half, 0))
    return Shape(parts=(part,), height=size, reach=r)


def _pyramid(size: float, pick: float) -> Shape:
    base, half = 0.46 * size, size * (0.36 + 0.1 * pick)
    part = Part(solid="pyramid", size=(base, half), centre=(0, half, 0))
    return Shape(parts=(part,), height=2 * half, reach=1.42 * base)


def _torus(size: float, pick: float) -> Shape:
    tube = size * (0.12 + 0.04 * pick)
    ring = size / 2 - tube
    if pick < 0.5:
        part = Part(solid="torus", size=(ring, tube), centre=(0, tube, 0))
        return Shape(parts=(part,), height=2 * tube, reach=size / 2)
    part = Part(solid="torus", size=(ring, tube), centre=(0, size / 2, 0), axis="z")
    return Shape(parts=(part,), height=size, reach=size / 2)


def _capsule(size: float, pick: float) -> Shape:
    r = size * (0.2 + 0.05 * pick)
    half = size / 2 - r
    if pick < 0.5:
        part = Part(solid="capsule", size=(r, half), centre=(0, size / 2, 0))
        return Shape(parts=(part,), height=size, reach=r)
    part = Part(solid="capsule", size=(r, half), centre=(0, r, 0), axis="x")
    return Shape(parts=(part,), height=2 * r, reach=size / 2)


def _legs(x: float, z: float, thick: float, height: float) -> list[Part]:
    return [
        Part(solid="box", size=(thick, height / 2, thick), centre=(sx * x, height / 2, sz * z))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]


def _table(size: float, pick: float) -> Shape:
    x, z, height = 0.6 * size, size * (0.36 + 0.18 * pick), 0.72 * size
    board, thick = 0.045 * size, 0.045 * size
    top = Part(solid="box", size=(x, board, z), centre=(0, height - board, 0))
    legs = _legs(x - thick, z - thick, thick, height - 2 * board)
    return Shape(parts=(top, *legs), height=height, reach=float((x * x + z * z) ** 0.5))


def _chair(size: float, pick: float) -> Shape:
    x, seat, thick = 0.26 * size, size * (0.42 + 0.06 * pick), 0.035 * size
    board = Part(solid="box", size=(x, 0.04 * size, x), centre=(0, seat, 0))
    back = Part(
        solid="box",
        size=(x, (size - seat) / 2, thick),
        centre=(0, (size + seat) / 2, thick - x),
    )
    legs = _legs(x - thick, x - thick, thick, seat)
    return Shape(parts=(board, back, *legs), height=size, reach=1.42 * x)


def _mug(size: float, pick: float) -> Shape:
    r, half = size * (0.32 + 0.06 * pick), 0.42 * size
    ring, tube = 0.24 * size, 0.065 * size
    body = Part(solid="frustum", size=(r, r, half), centre=(0, half, 0))
    handle = Part(solid="torus", size=(ring, tube), centre=(r, half, 0), axis="z")
    drink = Part(
        solid="frustum",
        size=(0.84 * r, 0.84 * r, 0.01 * size),
        centre=(0, 2 * half, 0),
        paint=_COFFEE,
    )
    return Shape(parts=(body, handle, drink), height=2 * half, reach=r + ring + tube)


def _lamp(size: float, pick: float) -> Shape:
    r, shade = size * (0.27 + 0.06 * pick), 0.2 * size
    base = Part(
        solid="frustum",
        size=(0.2 * size, 0.17 * size, 0.025 * size),
        centre=(0, 0.025 * size, 0),
        paint=_METAL,
    )
    pole = Part(
        solid="frustum",
        size=(0.035 * size, 0.035 * size, 0.34 * size),
        centre=(0, 0.35 * size, 0),
        paint=_METAL,
    )
    top = Part(solid="frustum", size=(r, 0.5 * r, shade), centre=(0, size - shade, 0))
    return Shape(parts=(top, pole, base), height=size, reach=r)


def _mushroom(size: float, pick: float) -> Shape:
    r, stem = size * (0.4 + 0.06 * pick), size * (0.11 + 0.04 * pick)
    cap = Part(solid="ball", size=(r, 0.3 * size, r), centre=(0, 0.7 * size, 0))
    foot = Part(
        solid="frustum",
        size=(1.25 * stem, stem, 0.3 * size),
        centre=(0, 0.3 * size, 0),
        paint=_CREAM,
    )
    return Shape(parts=(cap, foot), height=size, reach=r)


SHAPES: dict[str, Callable[[float, float], Shape]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "pyramid": _pyramid,
    "torus": _torus,
    "capsule": _capsule,
    "table": _table,
    "chair": _chair,
    "mug": _mug,
    "lamp": _lamp,
    "mushroom": _mushroom,
}
"""Builder by class name: ``SHAPES[name](size_metres, pick)``."""
