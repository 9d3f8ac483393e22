"""Procedural scenes with complete ground truth, rendered with numpy.

``geometry`` samples rooms and objects, ``solids`` intersects rays with them, ``trace`` and
``shade`` render, ``captions`` writes captions of three quality levels, ``formats`` stores scenes
in the layouts of real datasets, and ``source`` packs them for the pipelines.
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
    COLORS,
    MATERIALS,
    OBJECTS,
    SceneConfig,
)
from clipmill.scenes.scene import Scene, SceneObject, draw

__all__ = [
    "CLASSES",
    "COLORS",
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
