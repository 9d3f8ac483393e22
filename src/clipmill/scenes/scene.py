"""Captions of scenes in three qualities: alt-text as on the web, terse, and rich.

Terse and rich captions say only what the picture shows. Alt-text carries a true word about an
object in 45% of pictures (30% wholly true, 15% with the wrong color); the rest are file names,
advertisements, and objects that aren't there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import ConfigError
from clipmill.scenes.geometry import (
    CLASSES,
    COLORS,
    OBJECTS,
    SceneConfig,
    SceneGeometry,
    sample_geometry,
)
from clipmill.scenes.shade import shade
from clipmill.scenes.solids import Floats
from clipmill.scenes.trace import prepare_render, trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An object that a caption may speak of."""

    name: str
    """Its class."""
    color: str
    """One of COLORS."""
    material: str
    """One of MATERIALS."""
    distance: float
    """Meters along the optical axis."""
    left: float
    """Left edge of its box, as a share of the picture's width."""
    right: float
    """Right edge of its box, likewise."""

    @property
    def middle(self) -> float:
        """Middle of its box, as a share of the picture's width."""
        return (self.left + self.right) / 2


# Shares of alt-text by kind; what is left over is a true remark.
_FILE_NAME, _ADVERTISEMENT, _ABSENT, _MISCOLORED = 0.20, 0.20, 0.15, 0.15

_FILE_NAMES = ("IMG_{}.JPG", "DSC0{}", "image{}.png", "screenshot {}", "untitled-{}-final", "P10{}")
_ADVERTISEMENTS = (
    "free shipping on all orders over ${}",
    "best deals of the week, up to {}% off",
    "click here to enlarge image",
    "sign up for our newsletter",
    "item no. {} in stock, order now",
    "official online shop since 19{}",
    "home decor ideas you will love",
    "advertisement",
)
_REMARKS = (
    "{color} {name}",
    "{name}",
    "photo of {name}",
    "my {color} {name}",
    "{name} stock photo",
    "buy {color} {name} online",
)


# What a viewer sees at a glance: a difference in depth, and one in place as a share of the width.
_PLAIN_METERS, _PLAIN_SHIFT = 0.6, 0.08


def alt_text(subjects: list[Subject], u: list[float]) -> str:
    """Alt-text that is often beside the point; ``u`` are four numbers in [0, 1)."""
    kind, form, pick, number = u
    digits = 1000 + int(number * 9000)
    if not subjects or kind < _FILE_NAME:
        return _choose(_FILE_NAMES, form).format(digits)
    kind -= _FILE_NAME
    if kind < _ADVERTISEMENT:
        return _choose(_ADVERTISEMENTS, form).format(digits % 90 + 10)
    kind -= _ADVERTISEMENT
    remark = _choose(_REMARKS, form)
    if kind < _ABSENT:
        present = {subject.name for subject in subjects}
        absent = _choose(tuple(name for name in OBJECTS if name not in present), pick)
        return remark.format(color=_choose(tuple(COLORS), number), name=absent)
    kind -= _ABSENT
    subject = subjects[int(pick * len(subjects))]
    if kind < _MISCOLORED:
        wrong = _choose(tuple(c for c in COLORS if c != subject.color), number)
        return f"{wrong} {subject.name}"
    return remark.format(color=subject.color, name=subject.name)


def terse_caption(subjects: list[Subject]) -> str:
    """The one or two largest objects, by color and class."""
    if not subjects:
        return "an empty room"
    return " and ".join(_with_article(f"{s.color} {s.name}") for s in subjects[:2])


def rich_caption(subjects: list[Subject], *, wall: str, floor: str, u: list[float]) -> str:
    """Every object with color, material, distance and its relation to another, and the room.

    ``u`` are eight numbers in [0, 1), which choose the wording.
    """
    if not subjects:
        return f"an empty room with a {floor} floor and a {wall} wall"
    main = subjects[0]
    opening = (
        "{it} stands {far} on a {floor} floor, in front of a {wall} wall",
        "on a {floor} floor in front of a {wall} wall, {it} stands {far}",
        "a room with a {floor} floor and a {wall} wall, where {it} stands {far}",
    )
    clauses = [
        _choose(opening, u[0]).format(it=_describe(main), far=_far(main), floor=floor, wall=wall)
    ]
    for k, subject in enumerate(subjects[1:], start=1):
        other = subjects[int(u[k] * k)]
        relation = " and ".join(spatial_relations(subject, other))
        clauses.append(
            f"{_describe(subject)} stands {relation} the {other.color} {other.name}, "
            f"{_far(subject)}"
        )
    return "; ".join(clauses)


def spatial_relations(subject: Subject, other: Subject) -> list[str]:
    """Return the visible relations of ``subject`` to ``other``, at least one.

    Left and right compare the middles of boxes; in front and behind need boxes one above the
    other; nearer and farther compare depths of objects that stand apart.
    """
    relations = []
    shift = subject.middle - other.middle
    if abs(shift) > _PLAIN_SHIFT:
        relations.append("left of" if shift < 0 else "right of")
    gap = subject.distance - other.distance
    overlap = subject.left < other.right and other.left < subject.right
    if abs(gap) > _PLAIN_METERS:
        if overlap:
            relations.append("in front of" if gap < 0 else "behind")
        else:
            relations.append("nearer than" if gap < 0 else "farther away than")
    return relations or ["next to"]


def _choose(options: tuple[str, ...], u: float) -> str:
    return options[int(u * len(options))]


def _describe(subject: Subject) -> str:
    return _with_article(f"{subject.material} {subject.color} {subject.name}")


def _far(subject: Subject) -> str:
    meters = round(subject.distance)
    return f"about {meters} metre{'s' if meters != 1 else ''} away"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


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
class SceneObject:
    """An object with at least one visible pixel."""

    name: str
    """Its class: one of OBJECTS."""
    color: str
    """One of COLORS."""
    material: str
    """One of MATERIALS."""
    distance_meters: float
    """Depth of its middle along the optical axis, as in ``Scene.depth_HW``."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels round its visible part; x1 and y1 are past the last pixel."""
    visible_pixels: int
    """Number of pixels that show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """An image with its ground truth; H = W = ``SceneConfig.size``."""

    image_HW3: NDArray[np.uint8]
    """sRGB."""
    classes_HW: NDArray[np.uint8]
    """0 unlabeled (never rendered), k for ``CLASSES[k - 1]``."""
    instances_HW: NDArray[np.uint8]
    """0 background, k for ``objects[k - 1]``."""
    depth_HW: NDArray[np.float32]
    """Meters along the optical axis (not along the ray), between 0.5 and 10 everywhere."""
    objects: tuple[SceneObject, ...]
    """Visible objects."""
    captions: dict[str, str]
    """``alt`` (noise: half says nothing true), ``terse`` and ``rich``, by quality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedImage:
    """A rendered image, with object, floor and depth of each pixel."""

    image_HW3: NDArray[np.uint8]
    """sRGB."""
    object_HW: NDArray[np.uint8]
    """0 for the room, k for the k-th object of the scene (from 1)."""
    floor_HW: NDArray[np.bool_]
    """Mask of the room's floor behind each pixel; the rest is wall."""
    depth_HW: Floats
    """Meters along the optical axis."""


def draw(config: SceneConfig, index: int) -> Scene:
    """Render scene ``index`` (from 0) of a family, independently of other scenes, byte for byte.

    That holds for one version of numpy on one kind of processor; elsewhere last bits may differ.
    Another size shows the same scene at another resolution; captions mention objects that fill
    enough of the image, so a very small one may be mentioned at one size only. Raises
    ConfigError for a negative index.
    """
    if index < 0:
        raise ConfigError(f"scene index {index}", expected="0 or more", action="count from 0")
    geometry = sample_geometry(config, index)
    rendered = render(geometry, config.size, config.supersample)
    room = np.where(rendered.floor_HW, np.uint8(1), np.uint8(2))
    ids = np.zeros(len(geometry.objects) + 1, np.uint8)
    instance_of, objects = ids.copy(), []
    for k, placed in enumerate(geometry.objects, start=1):
        ids[k] = CLASSES.index(placed.name) + 1
        visible = _visible_object(geometry, rendered, k)
        if visible is not None:
            objects.append(visible)
            instance_of[k] = len(objects)
    classes = np.where(rendered.object_HW > 0, ids.take(rendered.object_HW), room)
    subjects = _subjects(tuple(objects), config.size)
    rng = np.random.default_rng([config.seed, index, 1])
    return Scene(
        image_HW3=rendered.image_HW3,
        classes_HW=classes,
        instances_HW=instance_of.take(rendered.object_HW),
        depth_HW=rendered.depth_HW,
        objects=tuple(objects),
        captions={
            "alt": alt_text(subjects, rng.random(4).tolist()),
            "terse": terse_caption(subjects),
            "rich": rich_caption(
                subjects,
                wall=geometry.room.wall,
                floor=geometry.room.floor,
                u=rng.random(8).tolist(),
            ),
        },
    )


def _visible_object(geometry: SceneGeometry, rendered: RenderedImage, k: int) -> SceneObject | None:
    mask = rendered.object_HW == k
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    placed = geometry.objects[k - 1]
    return SceneObject(
        name=placed.name,
        color=placed.color,
        material=placed.material,
        distance_meters=geometry.camera.depth(placed.shape.height / 2, placed.z),
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        visible_pixels=int(np.count_nonzero(mask)),
    )


def _subjects(objects: tuple[SceneObject, ...], size: int) -> list[Subject]:
    """Return objects that fill at least 1/500 of the image, largest first."""
    return [
        Subject(
            name=obj.name,
            color=obj.color,
            material=obj.material,
            distance=obj.distance_meters,
            left=obj.box[0] / size,
            right=obj.box[2] / size,
        )
        for obj in sorted(objects, key=lambda obj: -obj.visible_pixels)
        if obj.visible_pixels * 500 >= size * size
    ]


def render(geometry: SceneGeometry, size: int, supersample: int) -> RenderedImage:
    """Render a scene at ``size`` pixels per side; ``supersample`` is 1 or even."""
    s = supersample
    shared_edge = int(s > 1)
    first = 0.0 if shared_edge else 0.5
    render_scene = prepare_render(geometry)
    tan_half = geometry.camera.tan_half
    ticks = (np.arange(s * size + shared_edge, dtype=np.float64) + first) * (2 / (s * size)) - 1
    u = (ticks * tan_half).astype(np.float32)
    jitter = _jitter(s, u.size)
    owners = np.array([0, *(item.owner + 1 for item in render_scene.solids)], np.uint8)
    rendered = RenderedImage(
        image_HW3=np.empty((size, size, 3), np.uint8),
        object_HW=np.empty((size, size), np.uint8),
        floor_HW=np.empty((size, size), np.bool_),
        depth_HW=np.empty((size, size), np.float32),
    )
    band = max(1, _BAND_SAMPLES // (s * u.size))
    center = s // 2
    for top in range(0, size, band):
        bottom = min(top + band, size)
        rows = slice(s * top, s * bottom + shared_edge)
        hits = trace(render_scene, u, -u[rows])
        light = shade(render_scene, hits, (jitter[rows], jitter), 2 * tan_half / (s * size))
        view = np.s_[top:bottom]
        rendered.image_HW3[view] = _expose(light, s)
        middles = np.s_[center : s * (bottom - top) : s, center : s * size : s]
        rendered.object_HW[view] = owners.take(hits.solid[middles] + 1)
        rendered.floor_HW[view] = hits.plane[middles] == 0
        rendered.depth_HW[view] = hits.depth[middles]
    return rendered


def _jitter(s: int, count: int) -> Floats:
    """Position on the sun, from -1 to 1, of each row or column of samples."""
    if s == 1:
        return np.zeros(count, np.float32)
    positions = (np.arange(s, dtype=np.float32) + 0.5) * (2 / s) - 1
    return np.resize(positions, count)


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
