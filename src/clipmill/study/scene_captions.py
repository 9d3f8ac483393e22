"""Captions of generated scenes with known accuracy: true, partly wrong, or reworded.

Each kind is a layer of the dataset, so that all conditions see the same images.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.import_layer import ImportConfig, import_layer
from clipmill.data.shards.read import iter_samples
from clipmill.errors import ArtifactError
from clipmill.processes import process_pool
from clipmill.scenes import SceneConfig
from clipmill.scenes.geometry import COLORS, OBJECTS
from clipmill.scenes.scene import draw
from clipmill.scenes.source import ScenesSourceConfig
from clipmill.stage_records import ProgressCallback

NOISE_LEVELS = (25, 50, 75, 100)
"""Shares of wrong captions, percent."""
_CONTENT_WORDS = re.compile(rf"\b({'|'.join((*COLORS, *OBJECTS))})\b")
_FRAMES = (
    "an image showing {}",
    "here one can see {}",
    "this is {}",
    "{}, as seen in a picture",
    "a view of {}",
)
_PREFIXES = ("photo of ", "my ", "buy ")
_SUFFIXES = (" stock photo", " online")


@dataclass(frozen=True, slots=True)
class SceneCaptions:
    """Captions of a scene, and its content."""

    alt: str
    """Alt-text as on the web, often irrelevant."""
    terse: str
    """Accurate, the main objects."""
    rich: str
    """Accurate, all objects and their positions."""
    shown: frozenset[str]
    """Colors and objects in the image."""


def _rewritten(scenes: list[SceneCaptions], index: int) -> str:
    """Rephrase the alt-text without the image, as an LLM rewrites it."""
    text = scenes[index].alt
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix)
    return _FRAMES[_hash(index, "frame") % len(_FRAMES)].format(text)


def _corrupt_captions(percent: int, scenes: list[SceneCaptions], index: int) -> str:
    """Return the terse caption, or with this probability another scene's; levels are nested."""
    is_wrong = _hash(index, "dose") % 100 < percent
    other = _hash(index, "other") % (len(scenes) - 1) + 1
    return scenes[(index + other) % len(scenes) if is_wrong else index].terse


def _hash(index: int, purpose: str) -> int:
    return int(digest_json([purpose, index])[:12], 16)


SCENE_CAPTIONS: dict[str, Callable[[list[SceneCaptions], int], str]] = {
    "terse": lambda scenes, index: scenes[index].terse,
    "rich": lambda scenes, index: scenes[index].rich,
    "rewrite": _rewritten,
    **{f"wrong-{percent}": partial(_corrupt_captions, percent) for percent in NOISE_LEVELS},
}
"""Caption of a scene by the name of the layer."""


def draw_captions(config: ScenesSourceConfig) -> list[SceneCaptions]:
    """Return the captions and content of each scene of the pairs, in order."""
    with process_pool() as pool:
        return list(
            pool.map(partial(_scene_captions, config.scene), range(config.num_pairs), chunksize=64)
        )


def _scene_captions(config: SceneConfig, index: int) -> SceneCaptions:
    captions = draw(config, index).captions
    # The rich caption names everything in the image.
    shown = frozenset(_CONTENT_WORDS.findall(captions["rich"]))
    return SceneCaptions(captions["alt"], captions["terse"], captions["rich"], shown)


def add_scene_layers(
    dataset: str, scenes: list[SceneCaptions], names: list[str], *, report: ProgressCallback
) -> dict[str, str]:
    """Add layers of these names to the scenes' dataset; return their full names by name.

    Raises:
        ArtifactError: the dataset doesn't hold these scenes.
    """
    opened = Dataset.open(dataset)
    samples = [
        (shard.uid(row), shard.caption(row)) for shard, row in iter_samples(opened, cache_folder())
    ]
    layers = {name: f"captions/scenes-{name}" for name in names}
    if [caption for _, caption in samples] != [scene.alt for scene in scenes]:
        raise ArtifactError(
            f"{dataset} doesn't hold the {len(scenes)} scenes in their order",
            expected="the dataset sharded from the study's own source, no scene left out",
            action="use a store of its own for the study",
        )
    with TemporaryDirectory() as folder:
        for name, layer in layers.items():
            if layer in Dataset.open(dataset).layers:
                continue
            path = Path(folder) / f"{name}.csv"
            with path.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["uid", "caption"])
                caption_of = SCENE_CAPTIONS[name]
                table.writerows([uid, caption_of(scenes, i)] for i, (uid, _) in enumerate(samples))
            columns = {"captions": "caption"}
            import_layer(ImportConfig(columns=columns), dataset, layer, [str(path)], report=report)
    return layers


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionAccuracy:
    """Precision and recall of the colors and objects that captions name, percent."""

    pictures: float
    """Share of images whose caption names something and nothing that isn't there."""
    words: float
    """Precision: share of named content that is there; 0 where nothing is named."""
    named: float
    """Recall: share of the content that is named."""


def caption_accuracy(captions: list[str], scenes: list[SceneCaptions]) -> CaptionAccuracy:
    """Measure a caption of each scene; a repeated word counts once."""
    named = [set(_CONTENT_WORDS.findall(caption)) for caption in captions]
    pairs = list(zip(named, scenes, strict=True))
    num_right = sum(len(words & scene.shown) for words, scene in pairs)
    return CaptionAccuracy(
        pictures=100
        * sum(bool(words) and words <= scene.shown for words, scene in pairs)
        / len(named),
        words=100 * num_right / max(1, sum(map(len, named))),
        named=100 * num_right / max(1, sum(len(scene.shown) for scene in scenes)),
    )
