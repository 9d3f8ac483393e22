"""Captions that only a world that draws itself can give: true, wrong by a dose, or reworded.

Each becomes a layer beside the dataset's shards, so that all conditions see the same pictures.
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
from clipmill.scenes.geometry import COLOURS, OBJECTS
from clipmill.scenes.scene import draw
from clipmill.scenes.source import ScenesSourceConfig
from clipmill.stage_records import ProgressCallback

DOSES = (25, 50, 75, 100)
"""Shares of wrong captions, percent."""
_TOLD = re.compile(rf"\b({'|'.join((*COLOURS, *OBJECTS))})\b")
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
    """What is said of one scene."""

    alt: str
    """The web's alt-text, often beside the point."""
    terse: str
    """True, the main objects."""
    rich: str
    """True, all objects and how they stand."""
    shown: frozenset[str]
    """Colours and objects that the picture shows."""


def _rewritten(scenes: list[SceneCaptions], index: int) -> str:
    """Alt-text in other words, by somebody who never saw the picture, as an LLM rewrites it."""
    text = scenes[index].alt
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix)
    return _FRAMES[_draw(index, "frame") % len(_FRAMES)].format(text)


def _dosed(percent: int, scenes: list[SceneCaptions], index: int) -> str:
    """The terse caption, or with this probability another scene's; doses are nested."""
    is_wrong = _draw(index, "dose") % 100 < percent
    other = _draw(index, "other") % (len(scenes) - 1) + 1
    return scenes[(index + other) % len(scenes) if is_wrong else index].terse


def _draw(index: int, purpose: str) -> int:
    return int(digest_json([purpose, index])[:12], 16)


SCENE_CAPTIONS: dict[str, Callable[[list[SceneCaptions], int], str]] = {
    "terse": lambda scenes, index: scenes[index].terse,
    "rich": lambda scenes, index: scenes[index].rich,
    "rewrite": _rewritten,
    **{f"wrong-{percent}": partial(_dosed, percent) for percent in DOSES},
}
"""What a layer of each name says of a scene."""


def draw_captions(config: ScenesSourceConfig) -> list[SceneCaptions]:
    """What is said of each scene that is pretrained on, in order."""
    with process_pool() as pool:
        return list(pool.map(partial(_said, config.scene), range(config.num_pairs), chunksize=64))


def _said(config: SceneConfig, index: int) -> SceneCaptions:
    captions = draw(config, index).captions
    # Whatever is in the picture, the rich caption says.
    shown = frozenset(_TOLD.findall(captions["rich"]))
    return SceneCaptions(captions["alt"], captions["terse"], captions["rich"], shown)


def add_scene_layers(
    dataset: str, scenes: list[SceneCaptions], names: list[str], *, report: ProgressCallback
) -> dict[str, str]:
    """Add the layers of these names to the dataset of the scenes; the layers' full names.

    Raises:
        ArtifactError: the dataset isn't that of these scenes.
    """
    opened = Dataset.open(dataset)
    told = [
        (shard.uid(row), shard.caption(row)) for shard, row in iter_samples(opened, cache_folder())
    ]
    layers = {name: f"captions/scenes-{name}" for name in names}
    if [caption for _, caption in told] != [scene.alt for scene in scenes]:
        raise ArtifactError(
            f"{dataset} doesn't hold the {len(scenes)} scenes in their order",
            expected="the dataset sharded from the study's own source, no scene left out",
            action="leave the study's store to the study",
        )
    with TemporaryDirectory() as folder:
        for name, layer in layers.items():
            if layer in Dataset.open(dataset).layers:
                continue
            path = Path(folder) / f"{name}.csv"
            with path.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["uid", "caption"])
                say = SCENE_CAPTIONS[name]
                table.writerows([uid, say(scenes, i)] for i, (uid, _) in enumerate(told))
            columns = {"captions": "caption"}
            import_layer(ImportConfig(columns=columns), dataset, layer, [str(path)], report=report)
    return layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """How much of what captions tell is so, by the words for colours and objects; percent."""

    pictures: float
    """Of all, those whose caption names something and nothing that isn't there."""
    words: float
    """Of what is named, what is there; 0 where nothing is named."""
    named: float
    """Of what is there, what is named."""


def truth_of(captions: list[str], scenes: list[SceneCaptions]) -> Truth:
    """Of a caption of each scene; a word that it repeats counts once."""
    told = [set(_TOLD.findall(caption)) for caption in captions]
    pairs = list(zip(told, scenes, strict=True))
    right = sum(len(words & scene.shown) for words, scene in pairs)
    return Truth(
        pictures=100
        * sum(bool(words) and words <= scene.shown for words, scene in pairs)
        / len(told),
        words=100 * right / max(1, sum(map(len, told))),
        named=100 * right / max(1, sum(len(scene.shown) for scene in scenes)),
    )
