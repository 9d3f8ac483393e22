"""What the captions of a study are like, in figures and by example."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.reader import read_shard
from clipmill.study.encoders import World
from clipmill.study.result import CaptionQuality, CaptionSample
from clipmill.study.scene_captions import SceneCaptions, true_share

_NUM_SAMPLES = 8


def captions_by_kind(world: World, scenes: Sequence[SceneCaptions]) -> dict[str, list[str]]:
    """The first caption of each sample, in order, ``real`` ones and each layer's."""
    dataset = Dataset.open(world.dataset)
    layers = {name: _captions(dataset, layer) for name, layer in world.layers.items()}
    return {"real": [scene.alt for scene in scenes], **layers}


def caption_quality(
    captions: Mapping[str, list[str]], scenes: list[SceneCaptions]
) -> dict[str, CaptionQuality]:
    """Truth, length and diversity of each kind."""
    return {
        name: CaptionQuality(
            true_share=true_share(texts, scenes),
            num_words=sum(len(text.split()) for text in texts) / len(texts),
            num_different=len(set(texts)),
        )
        for name, texts in captions.items()
    }


def caption_samples(
    dataset: str, captions: Mapping[str, Sequence[str]]
) -> tuple[CaptionSample, ...]:
    """A few pictures of the first shard, evenly apart, with every kind of caption."""
    opened = Dataset.open(dataset)
    with read_shard(opened, 0, cache_folder()) as reader:
        rows = np.linspace(0, len(reader) - 1, min(_NUM_SAMPLES, len(reader))).astype(int).tolist()
        return tuple(
            CaptionSample(
                image_base64=base64.b64encode(reader.image(row)).decode(),
                captions={name: texts[row] for name, texts in captions.items()},
            )
            for row in rows
        )


def _captions(dataset: Dataset, layer: str) -> list[str]:
    return [
        captions[0]
        for index in range(len(dataset.shards))
        for captions in read_layer(dataset, layer, index, cache_folder())["captions"].to_pylist()
    ]
