"""What the captions of a study are like, in figures and by example."""

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import iter_samples, read_shard
from clipmill.images import decode_rgb
from clipmill.study.data import World
from clipmill.study.result import CaptionQuality, CaptionSample
from clipmill.study.scene_captions import SceneCaptions, truth_of

_NUM_SAMPLES = 8
_NUM_READ = 10_000
_NUM_SCORED = 512


def captions_by_kind(world: World) -> dict[str, list[str]]:
    """The first caption of each sample, in order, ``real`` ones and each layer's.

    Of a large dataset the first ten thousand are read.
    """
    dataset = Dataset.open(world.dataset)
    real = (shard.caption(row) for shard, row in iter_samples(dataset, cache_folder()))
    kinds: dict[str, Iterator[str]] = {"real": real}
    kinds |= {name: _captions(dataset, layer) for name, layer in world.layers.items()}
    return {name: list(itertools.islice(texts, _NUM_READ)) for name, texts in kinds.items()}


def caption_quality(
    captions: Mapping[str, list[str]],
    scenes: list[SceneCaptions],
    dataset: str,
    judge: str,
) -> dict[str, CaptionQuality]:
    """Length and diversity of each kind; truth where scenes are known, a CLIP's score by a judge.

    ``judge`` is the URI of a CLIP checkpoint, or empty.
    """
    scores = _clip_scores(captions, dataset, judge) if judge else {}
    return {
        name: CaptionQuality(
            truth=truth_of(texts, scenes) if scenes else None,
            clip_score=scores.get(name),
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


def _clip_scores(captions: Mapping[str, list[str]], dataset: str, judge: str) -> dict[str, float]:
    """Mean cosine of picture and caption, times 100, over the first pictures."""
    from clipmill.data.scoring.clip import ClipScoreConfig, ClipTowers

    towers = ClipTowers(ClipScoreConfig(model=judge))
    first = itertools.islice(iter_samples(Dataset.open(dataset), cache_folder()), _NUM_SCORED)
    images_BD = towers.encode_images([decode_rgb(shard.image(row)) for shard, row in first])
    return {
        name: 100 * float((images_BD * towers.encode_texts(texts[: len(images_BD)])).sum(1).mean())
        for name, texts in captions.items()
    }


def _captions(dataset: Dataset, layer: str) -> Iterator[str]:
    for index in range(len(dataset.shards)):
        column = read_layer(dataset, layer, index, cache_folder())["captions"]
        yield from (captions[0] for captions in column.to_pylist())
