"""Procedural scenes: pictures of which everything is known, drawn by numpy alone.

world.py says what is in a scene, shapes.py and solids.py what objects are made of, trace.py and
shade.py how they look, captions.py what is written about them, formats.py how they are stored.
"""

from clipmill.scenes.formats import (
    write_ade20k,
    write_caption_folder,
    write_class_folder,
    write_coco,
    write_nyu,
)
from clipmill.scenes.geometry import (
    CLASSES,
    COLOURS,
    MATERIALS,
    OBJECTS,
    SceneConfig,
)
from clipmill.scenes.scene import Scene, SceneObject, draw

__all__ = [
    "CLASSES",
    "COLOURS",
    "MATERIALS",
    "OBJECTS",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "draw",
    "write_ade20k",
    "write_caption_folder",
    "write_class_folder",
    "write_coco",
    "write_nyu",
]
