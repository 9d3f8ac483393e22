"""Quality metrics and samples of a study's captions."""

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import iter_samples, read_shard
from clipmill.images import decode_rgb
from clipmill.study.data import StudyData
from clipmill.study.result import CaptionQuality, CaptionSample
from clipmill.study.scene_captions import SceneCaptions, caption_accuracy

_NUM_SAMPLES = 8
_MAX_CAPTIONS = 10_000
_NUM_SCORED = 512


def captions_by_kind(data: StudyData) -> dict[str, list[str]]:
    """Return the first caption of each sample, in order, of ``real`` ones and of each layer.

    Only the first 10,000 samples are read.
    """
    dataset = Dataset.open(data.dataset)
    real = (shard.caption(row) for shard, row in iter_samples(dataset, cache_folder()))
    kinds: dict[str, Iterator[str]] = {"real": real}
    kinds |= {name: _captions(dataset, layer) for name, layer in data.layers.items()}
    return {name: list(itertools.islice(texts, _MAX_CAPTIONS)) for name, texts in kinds.items()}


def caption_quality(
    captions: Mapping[str, list[str]],
    scenes: list[SceneCaptions],
    dataset: str,
    scoring_clip: str,
) -> dict[str, CaptionQuality]:
    """Measure each kind of caption: length, diversity, accuracy, CLIP score.

    Accuracy needs ``scenes``; the CLIP score ``scoring_clip``, the URI of a CLIP checkpoint.
    """
    scores = _clip_scores(captions, dataset, scoring_clip) if scoring_clip else {}
    return {
        name: CaptionQuality(
            truth=caption_accuracy(texts, scenes) if scenes else None,
            clip_score=scores.get(name),
            num_words=sum(len(text.split()) for text in texts) / len(texts),
            num_different=len(set(texts)),
        )
        for name, texts in captions.items()
    }


def caption_samples(
    dataset: str, captions: Mapping[str, Sequence[str]]
) -> tuple[CaptionSample, ...]:
    """Return a few images of the first shard, evenly spaced, with every kind of caption."""
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


def _clip_scores(
    captions: Mapping[str, list[str]], dataset: str, scoring_clip: str
) -> dict[str, float]:
    """Return the mean cosine of image and caption, times 100, over the first images."""
    from clipmill.data.scoring.clip import ClipScoreConfig, ClipTowers

    towers = ClipTowers(ClipScoreConfig(model=scoring_clip))
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
