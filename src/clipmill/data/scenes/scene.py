"""A scene: the picture, all that is known of it, and what three kinds of people write under it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.data.scenes.captions import Subject, alt_text, rich_caption, terse_caption
from clipmill.data.scenes.render import Picture, render
from clipmill.data.scenes.world import CLASSES, SceneConfig, World, sample_world
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """An object of which at least one pixel is seen."""

    name: str
    """Its class: one of OBJECTS."""
    colour: str
    """One of COLOURS."""
    material: str
    """One of MATERIALS."""
    distance_metres: float
    """Depth of its middle along the optical axis, as in ``Scene.depth_HW``."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels round its visible part; x1 and y1 are past the last pixel."""
    visible_pixels: int
    """How many pixels show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture with its ground truth; H = W = ``SceneConfig.size``."""

    image_HW3: NDArray[np.uint8]
    """sRGB."""
    classes_HW: NDArray[np.uint8]
    """0 unlabelled (never drawn), k for ``CLASSES[k - 1]``."""
    instances_HW: NDArray[np.uint8]
    """0 background, k for ``objects[k - 1]``."""
    depth_HW: NDArray[np.float32]
    """Metres along the optical axis (not along the ray), between 0.5 and 10 everywhere."""
    objects: tuple[SceneObject, ...]
    """Those that can be seen."""
    captions: dict[str, str]
    """``alt`` (noise: half says nothing true), ``terse`` and ``rich``, by quality."""


def draw(config: SceneConfig, index: int) -> Scene:
    """Scene ``index`` (from 0) of a family: the same whichever others are drawn, byte for byte.

    That holds for one version of numpy on one kind of processor; elsewhere last bits may differ.
    Another size shows the same world, sampled finer or coarser; captions speak of objects that
    fill enough of the picture, so one at the edge of that may be told at one size only. Raises
    ConfigError for a negative index.
    """
    if index < 0:
        raise ConfigError(f"scene index {index}", expected="0 or more", action="count from 0")
    world = sample_world(config, index)
    picture = render(world, config.size, config.supersample)
    room = np.where(picture.floor_HW, np.uint8(1), np.uint8(2))
    ids = np.zeros(len(world.objects) + 1, np.uint8)
    instance_of, objects = ids.copy(), []
    for k, placed in enumerate(world.objects, start=1):
        ids[k] = CLASSES.index(placed.name) + 1
        seen = _see(world, picture, k)
        if seen is not None:
            objects.append(seen)
            instance_of[k] = len(objects)
    classes = np.where(picture.object_HW > 0, ids.take(picture.object_HW), room)
    subjects = _subjects(tuple(objects), config.size)
    rng = np.random.default_rng([config.seed, index, 1])
    return Scene(
        image_HW3=picture.image_HW3,
        classes_HW=classes,
        instances_HW=instance_of.take(picture.object_HW),
        depth_HW=picture.depth_HW,
        objects=tuple(objects),
        captions={
            "alt": alt_text(subjects, rng.random(4).tolist()),
            "terse": terse_caption(subjects),
            "rich": rich_caption(
                subjects, wall=world.room.wall, floor=world.room.floor, u=rng.random(8).tolist()
            ),
        },
    )


def _see(world: World, picture: Picture, k: int) -> SceneObject | None:
    mask = picture.object_HW == k
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    placed = world.objects[k - 1]
    return SceneObject(
        name=placed.name,
        colour=placed.colour,
        material=placed.material,
        distance_metres=world.camera.depth(placed.shape.height / 2, placed.z),
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        visible_pixels=int(np.count_nonzero(mask)),
    )


def _subjects(objects: tuple[SceneObject, ...], size: int) -> list[Subject]:
    """What a caption may speak of: objects that fill 1/500 of the picture, largest first."""
    return [
        Subject(
            name=seen.name,
            colour=seen.colour,
            material=seen.material,
            distance=seen.distance_metres,
            left=seen.box[0] / size,
            right=seen.box[2] / size,
        )
        for seen in sorted(objects, key=lambda seen: -seen.visible_pixels)
        if seen.visible_pixels * 500 >= size * size
    ]
