"""Scene geometry: a room, a camera, a sun, and objects made of solids.

World frame: meters, x right, y up, z ahead; the camera is above the origin, looks along +z and
down. Everything is a function of (seed, index), so a scene's geometry is the same at any image
size, whichever other scenes are rendered.

An object's frame has its origin on the ground below its center, y up, meters. A shape builder
takes the object's size (meters: its largest extent, roughly) and a number in [0, 1) that selects
among its poses and proportions.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.scenes.solids import Sizes

RGB = tuple[float, float, float]

Axis = Literal["x", "y", "z"]

COLORS: dict[str, RGB] = {
    "red": (0.66, 0.035, 0.03),
    "orange": (0.86, 0.25, 0.015),
    "yellow": (0.87, 0.66, 0.03),
    "green": (0.05, 0.37, 0.06),
    "blue": (0.03, 0.10, 0.60),
    "purple": (0.27, 0.05, 0.42),
    "white": (0.80, 0.80, 0.80),
    "black": (0.022, 0.022, 0.024),
}
"""Linear RGB of each named color an object can have."""

MATERIALS = ("matte", "glossy", "striped", "checkered")

WALLS: dict[str, RGB] = {
    "grey": (0.42, 0.43, 0.45),
    "beige": (0.64, 0.54, 0.40),
    "teal": (0.16, 0.40, 0.40),
    "pink": (0.66, 0.40, 0.40),
    "brick": (0.42, 0.20, 0.14),
}
"""Linear RGB of each wall finish; none shares a name with an object's color."""

FLOORS: dict[str, RGB] = {
    "wooden": (0.42, 0.26, 0.14),
    "tiled": (0.36, 0.37, 0.36),
    "carpeted": (0.30, 0.27, 0.33),
    "concrete": (0.36, 0.36, 0.35),
}
"""Linear RGB of each floor finish."""

MAX_OBJECTS = 8

_LARGEST_METERS = 1.25

_ATTEMPTS = 30

# Smaller than this no object is made to fit: a room that is so full stays without it.
_SMALLEST_SHRINK = 0.1

_METAL = (0.17, 0.17, 0.18)

_CREAM = (0.76, 0.70, 0.58)

_COFFEE = (0.055, 0.025, 0.012)


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig(Config):
    """A family of scenes; with an index it determines one scene."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "farthest_metres": "max_distance_m",
        "smallest_metres": "min_object_size_m",
    }

    size: int = 64
    """Image height and width, pixels: 32 to 1024."""
    seed: int = 0
    """Family of scenes: indices of different seeds share nothing."""
    min_objects: int = 1
    """Fewest objects placed in a room that has space for them (one may be hidden from sight)."""
    max_objects: int = 4
    """Most objects placed in a room, 8 at most; a room without space for them gets fewer."""
    max_distance_m: float = 5.8
    """Farthest that an object stands from the camera: 2.5 to 5.8."""
    min_object_size_m: float = 0.55
    """Smallest size of an object: 0.3 to 1.25. One that is far is never too small to be seen."""
    supersample: int = 2
    """Samples a pixel along each side: 1 (fastest, jagged), or an even number to 8."""

    def __post_init__(self) -> None:
        """Refuse what can't be drawn."""
        _check("size", self.size, 32 <= self.size <= 1024, "a whole number from 32 to 1024")
        _check("seed", self.seed, self.seed >= 0, "a whole number from 0")
        _check(
            "max_objects",
            self.max_objects,
            1 <= self.max_objects <= MAX_OBJECTS,
            f"a whole number from 1 to {MAX_OBJECTS}",
        )
        _check(
            "min_objects",
            self.min_objects,
            1 <= self.min_objects <= self.max_objects,
            "a whole number from 1 to max_objects",
        )
        _check(
            "max_distance_m",
            self.max_distance_m,
            2.5 <= self.max_distance_m <= 5.8,
            "2.5 to 5.8",
        )
        _check(
            "min_object_size_m",
            self.min_object_size_m,
            0.3 <= self.min_object_size_m <= _LARGEST_METERS,
            f"0.3 to {_LARGEST_METERS}",
        )
        _check(
            "supersample", self.supersample, self.supersample in {1, 2, 4, 6, 8}, "1, 2, 4, 6, 8"
        )


def _check(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise ConfigError(f"SceneConfig.{name} = {value}", expected=expected, action=f"set {name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A pinhole camera above the origin."""

    height: float
    """Meters above the floor."""
    pitch: float
    """Radians below the horizon."""
    tan_half: float
    """Tangent of half the field of view, which is square."""

    def rotation(self) -> NDArray[np.float64]:
        """SceneGeometry from camera (3, 3): columns are its right, up and forward directions."""
        s, c = math.sin(self.pitch), math.cos(self.pitch)
        return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])

    def depth(self, y: float, z: float) -> float:
        """Distance (meters) along the optical axis of any point (x, y, z)."""
        return (self.height - y) * math.sin(self.pitch) + z * math.cos(self.pitch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """A floor and three walls: the camera never sees the fourth, nor the ceiling."""

    yaw: float
    """Radians by which the room is turned about the vertical against the camera."""
    distances: tuple[float, float, float]
    """Meters from the origin to the back, right and left wall."""
    wall: str
    """Key of WALLS."""
    floor: str
    """Key of FLOORS."""

    def wall_normals(self) -> tuple[tuple[float, float], ...]:
        """Outward (x, z) directions of the back, right and left wall."""
        s, c = math.sin(self.yaw), math.cos(self.yaw)
        return (s, c), (c, -s), (-c, s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One solid of an object, placed in the object's frame."""

    solid: str
    """Key of ``solids.INTERSECT``."""
    size: Sizes
    """Sizes of the solid, meters; see solids.py."""
    center: tuple[float, float, float]
    """Of the solid, meters, in the object's frame."""
    axis: Axis = "y"
    """Direction, in the object's frame, of the solid's own y axis."""
    paint: tuple[float, float, float] | None = None
    """Linear RGB that replaces the object's color and material."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """An object without its place."""

    parts: tuple[Part, ...]
    """Drawn in any order: the nearest surface wins."""
    height: float
    """Meters."""
    reach: float
    """Meters: radius of the vertical cylinder about the origin that holds every part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedObject:
    """An object in its place."""

    name: str
    """Key of SHAPES."""
    color: str
    """Key of COLORS."""
    material: str
    """One of MATERIALS."""
    shape: Shape
    """Its solids."""
    size: float
    """Meters, as the shape's builder took it."""
    x: float
    """Meters to the right."""
    z: float
    """Meters ahead."""
    yaw: float
    """Radians about the vertical."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneGeometry:
    """Everything in a scene."""

    camera: Camera
    """Viewpoint."""
    room: Room
    """Floor and walls around the objects."""
    sun: tuple[float, float, float]
    """Unit direction towards the light."""
    warmth: float
    """0 for neutral light to 1 for warm light."""
    objects: tuple[PlacedObject, ...]
    """In order of placement."""


def sample_geometry(config: SceneConfig, index: int) -> SceneGeometry:
    """SceneGeometry of scene ``index`` (from 0)."""
    rng = np.random.default_rng([config.seed, index])
    u = rng.random(16).tolist()
    camera = Camera(
        height=_between(1.05, 1.7, u[0]),
        pitch=math.radians(_between(11, 21, u[1])),
        tan_half=math.tan(math.radians(_between(25, 29, u[2]))),
    )
    room = Room(
        yaw=math.radians(_between(-24, 24, u[3])),
        distances=(_between(4.6, 7.4, u[4]), _between(1.9, 3.4, u[5]), _between(1.9, 3.4, u[6])),
        wall=_choose(tuple(WALLS), u[7]),
        floor=_choose(tuple(FLOORS), u[8]),
    )
    side, rise = _between(-1.9, 1.9, u[9]), math.radians(_between(35, 62, u[10]))
    sun = (
        math.sin(side) * math.cos(rise),
        math.sin(rise),
        -math.cos(side) * math.cos(rise),
    )
    wanted = config.min_objects + int(u[11] * (config.max_objects - config.min_objects + 1))
    objects: list[PlacedObject] = []
    for slot in range(wanted):
        needed = slot < config.min_objects
        placed = _find_place(rng, config, camera, room, objects, needed=needed)
        if placed is not None:
            objects.append(placed)
    return SceneGeometry(camera=camera, room=room, sun=sun, warmth=u[12], objects=tuple(objects))


def _between(low: float, high: float, u: float) -> float:
    return low + (high - low) * u


def _choose(options: tuple[str, ...], u: float) -> str:
    return options[int(u * len(options))]


def _find_place(
    rng: np.random.Generator,
    config: SceneConfig,
    camera: Camera,
    room: Room,
    others: list[PlacedObject],
    *,
    needed: bool,
) -> PlacedObject | None:
    """An object where it fits, or None; one that is needed shrinks before it is given up."""
    kind, hue, finish = rng.random(3).tolist()
    # One class for all attempts, or wide classes, which fit in fewer places, would be rarer.
    name = _choose(OBJECTS, kind)
    # Two objects of one class differ in color, so that a caption can tell them apart.
    taken = {other.color for other in others if other.name == name}
    color = _choose(tuple(c for c in COLORS if c not in taken), hue)
    for attempt in itertools.count():
        if attempt >= _ATTEMPTS and not needed:
            return None
        shrink = 0.93 ** max(0, attempt - _ATTEMPTS)
        if shrink < _SMALLEST_SHRINK:
            return None
        u = rng.random(5).tolist()
        z = _between(1.9, min(config.max_distance_m, room.distances[0] - 0.7), u[0])
        # Not so small that far objects vanish from a 64-pixel image.
        drawn = _between(config.min_object_size_m, _LARGEST_METERS, u[1])
        size = max(drawn, 0.38 * z * camera.tan_half) * shrink
        placed = PlacedObject(
            name=name,
            color=color,
            material=_choose(MATERIALS, finish),
            shape=SHAPES[name](size, u[2]),
            size=size,
            x=_between(-0.82, 0.82, u[3]) * z * camera.tan_half,
            z=z,
            yaw=2 * math.pi * u[4],
        )
        if _fits(placed, camera, room, others, shrink):
            return placed
    raise AssertionError("itertools.count ended")


def _fits(
    new: PlacedObject, camera: Camera, room: Room, others: list[PlacedObject], shrink: float
) -> bool:
    reach = new.shape.reach
    for (nx, nz), distance in zip(room.wall_normals(), room.distances, strict=True):
        if nx * new.x + nz * new.z + reach > distance - 0.08:
            return False
    # The whole height must lie in the frame, and the nearest side beyond half a meter.
    top = new.shape.height
    depth = camera.depth(top, new.z)
    sine, cosine = math.sin(camera.pitch), math.cos(camera.pitch)
    above = (top - camera.height) * cosine + new.z * sine
    below = -camera.height * cosine + (new.z - reach) * sine
    near = camera.depth(0.0, new.z - reach)
    if above > 0.97 * depth * camera.tan_half or below < -1.05 * near * camera.tan_half:
        return False
    return all(_apart(new, other, shrink) for other in others)


def _apart(a: PlacedObject, b: PlacedObject, shrink: float) -> bool:
    """Neither touch nor hide one another for the most part."""
    if math.hypot(a.x - b.x, a.z - b.z) < a.shape.reach + b.shape.reach + 0.05 * shrink:
        return False
    near, far = (a, b) if a.z < b.z else (b, a)
    gap = abs(math.atan2(a.x, a.z) - math.atan2(b.x, b.z))
    wide_near, wide_far = near.shape.reach / near.z, far.shape.reach / far.z
    return gap > wide_near - 0.3 * wide_far


def _sphere(size: float, _: float) -> Shape:
    r = size / 2
    part = Part(solid="ball", size=(r, r, r), center=(0, r, 0))
    return Shape(parts=(part,), height=size, reach=r)


def _cube(size: float, _: float) -> Shape:
    h = 0.42 * size
    part = Part(solid="box", size=(h, h, h), center=(0, h, 0))
    return Shape(parts=(part,), height=2 * h, reach=1.42 * h)


def _cylinder(size: float, pick: float) -> Shape:
    r, half = size * (0.26 + 0.08 * pick), size / 2
    if pick < 0.7:
        part = Part(solid="frustum", size=(r, r, half), center=(0, half, 0))
        return Shape(parts=(part,), height=size, reach=r)
    part = Part(solid="frustum", size=(r, r, half), center=(0, r, 0), axis="x")
    return Shape(parts=(part,), height=2 * r, reach=float((r * r + half * half) ** 0.5))


def _cone(size: float, pick: float) -> Shape:
    r, half = size * (0.32 + 0.1 * pick), size / 2
    part = Part(solid="frustum", size=(r, 0.0, half), center=(0, half, 0))
    return Shape(parts=(part,), height=size, reach=r)


def _pyramid(size: float, pick: float) -> Shape:
    base, half = 0.46 * size, size * (0.36 + 0.1 * pick)
    part = Part(solid="pyramid", size=(base, half), center=(0, half, 0))
    return Shape(parts=(part,), height=2 * half, reach=1.42 * base)


def _torus(size: float, pick: float) -> Shape:
    tube = size * (0.12 + 0.04 * pick)
    ring = size / 2 - tube
    if pick < 0.5:
        part = Part(solid="torus", size=(ring, tube), center=(0, tube, 0))
        return Shape(parts=(part,), height=2 * tube, reach=size / 2)
    part = Part(solid="torus", size=(ring, tube), center=(0, size / 2, 0), axis="z")
    return Shape(parts=(part,), height=size, reach=size / 2)


def _capsule(size: float, pick: float) -> Shape:
    r = size * (0.2 + 0.05 * pick)
    half = size / 2 - r
    if pick < 0.5:
        part = Part(solid="capsule", size=(r, half), center=(0, size / 2, 0))
        return Shape(parts=(part,), height=size, reach=r)
    part = Part(solid="capsule", size=(r, half), center=(0, r, 0), axis="x")
    return Shape(parts=(part,), height=2 * r, reach=size / 2)


def _legs(x: float, z: float, thick: float, height: float) -> list[Part]:
    return [
        Part(solid="box", size=(thick, height / 2, thick), center=(sx * x, height / 2, sz * z))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]


def _table(size: float, pick: float) -> Shape:
    x, z, height = 0.6 * size, size * (0.36 + 0.18 * pick), 0.72 * size
    board, thick = 0.045 * size, 0.045 * size
    top = Part(solid="box", size=(x, board, z), center=(0, height - board, 0))
    legs = _legs(x - thick, z - thick, thick, height - 2 * board)
    return Shape(parts=(top, *legs), height=height, reach=float((x * x + z * z) ** 0.5))


def _chair(size: float, pick: float) -> Shape:
    x, seat, thick = 0.26 * size, size * (0.42 + 0.06 * pick), 0.035 * size
    board = Part(solid="box", size=(x, 0.04 * size, x), center=(0, seat, 0))
    back = Part(
        solid="box",
        size=(x, (size - seat) / 2, thick),
        center=(0, (size + seat) / 2, thick - x),
    )
    legs = _legs(x - thick, x - thick, thick, seat)
    return Shape(parts=(board, back, *legs), height=size, reach=1.42 * x)


def _mug(size: float, pick: float) -> Shape:
    r, half = size * (0.32 + 0.06 * pick), 0.42 * size
    ring, tube = 0.24 * size, 0.065 * size
    body = Part(solid="frustum", size=(r, r, half), center=(0, half, 0))
    handle = Part(solid="torus", size=(ring, tube), center=(r, half, 0), axis="z")
    drink = Part(
        solid="frustum",
        size=(0.84 * r, 0.84 * r, 0.01 * size),
        center=(0, 2 * half, 0),
        paint=_COFFEE,
    )
    return Shape(parts=(body, handle, drink), height=2 * half, reach=r + ring + tube)


def _lamp(size: float, pick: float) -> Shape:
    r, shade = size * (0.27 + 0.06 * pick), 0.2 * size
    base = Part(
        solid="frustum",
        size=(0.2 * size, 0.17 * size, 0.025 * size),
        center=(0, 0.025 * size, 0),
        paint=_METAL,
    )
    pole = Part(
        solid="frustum",
        size=(0.035 * size, 0.035 * size, 0.34 * size),
        center=(0, 0.35 * size, 0),
        paint=_METAL,
    )
    top = Part(solid="frustum", size=(r, 0.5 * r, shade), center=(0, size - shade, 0))
    return Shape(parts=(top, pole, base), height=size, reach=r)


def _mushroom(size: float, pick: float) -> Shape:
    r, stem = size * (0.4 + 0.06 * pick), size * (0.11 + 0.04 * pick)
    cap = Part(solid="ball", size=(r, 0.3 * size, r), center=(0, 0.7 * size, 0))
    foot = Part(
        solid="frustum",
        size=(1.25 * stem, stem, 0.3 * size),
        center=(0, 0.3 * size, 0),
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
"""Builder by class name: ``SHAPES[name](size_meters, pick)``."""

OBJECTS = tuple(SHAPES)

CLASSES = ("floor", "wall", *OBJECTS)
"""Semantic classes: value k of a class mask is ``CLASSES[k - 1]``, 0 is unlabeled (unused)."""
