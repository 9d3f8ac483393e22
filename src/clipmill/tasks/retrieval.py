"""Image-text retrieval with a CLIP, on a clipmill dataset or any source of captioned images."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.data.captioned_images import iter_captioned_images, open_captioned_images
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import in_subset
from clipmill.data.scoring.clip import ClipTowers, scoring_clip_parent
from clipmill.errors import ConfigError, SourceError
from clipmill.lineage import Parent
from clipmill.models.retrieval import ranks, recall_of_ranks
from clipmill.stage_records import ProgressCallback
from clipmill.storage import join, read_json, write_json
from clipmill.tasks.zero_shot import ClipEvaluationConfig, result_location

_BATCH = 64
_RANKS = "ranks.json"

Pair = tuple[Image.Image, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(ClipEvaluationConfig):
    """Configuration of image-text retrieval."""

    captions_per_image: int = 5
    """Maximum captions of an image (5: Karpathy and Fei-Fei's COCO split)."""
    num_images: int = 0
    """Number of images, from the first; 0 for all."""
    outside_fraction: float = 0.0
    """Use only samples outside this fraction of a dataset, as ``view.subset_fraction`` cuts it:
    those that an encoder trained on the fraction hasn't seen. 0 for all."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 0 <= self.outside_fraction < 1:
            raise ConfigError(
                f"outside_fraction was {self.outside_fraction}",
                expected="0 to below 1",
                action="set it to the view.subset_fraction that the encoder was trained on",
            )


def retrieve(config: RetrievalConfig, data: str, store: str, *, report: ProgressCallback) -> str:
    """Evaluate a CLIP on captioned images; return the URI of the evaluation, under ``store``.

    ``data`` is a dataset's URI, or a source as ``clipmill data shard`` takes it; a COCO captions
    file provides all captions of an image. Metrics: R@1, R@5 and R@10 both ways, percent
    (``image_to_text_r1`` ...), the counts of both, and ``skipped.REASON``; :func:`read_ranks` has
    each query's. An existing result is returned at once.

    Raises:
        SourceError: no pair is usable.
        ConfigError: there is no such model, or ``outside_fraction`` is set without a dataset.
    """
    import torch

    opened = open_captioned_images(data)
    if config.outside_fraction and not isinstance(opened, Dataset):
        raise ConfigError(
            f"outside_fraction was {config.outside_fraction}, but {data} is no dataset",
            expected="the URI of a dataset: a fraction is cut by its samples' ids",
            action="shard the data first, or leave outside_fraction out",
        )
    digest = opened.digest if isinstance(opened, Dataset) else opened.digest("metadata")
    parents = (
        scoring_clip_parent(config.clip, "model"),
        Parent(role="data", uri=opened.uri, digest=digest),
    )
    location = result_location(store, "retrieval", config, parents)
    if location.result_exists:
        return location.uri
    towers = ClipTowers(config.clip)
    skipped: Counter[str] = Counter()
    fraction = config.outside_fraction
    captioned = iter_captioned_images(
        opened, skipped, lambda uid: not (fraction and in_subset(uid, fraction))
    )
    pairs = (
        (image, captions[: config.captions_per_image])
        for image, captions in itertools.islice(captioned, config.num_images or None)
    )
    images, texts, owners = _embed(towers, pairs, report)
    if not images:
        raise SourceError(
            f"{data} has no pair that can be used",
            expected="images with captions",
            action=f"fix the data; skipped were {dict(skipped)}",
        )
    rank_by_direction = ranks(
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(np.concatenate(texts)),
        torch.tensor(owners),
    )
    metrics = {k: 100 * v for k, v in recall_of_ranks(rank_by_direction).items()}
    metrics |= {"num_images": float(owners[-1] + 1), "num_captions": float(len(owners))}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    summary = {
        "image to text": f"R@1 {metrics['image_to_text_r1']:.2f} %",
        "text to image": f"R@1 {metrics['text_to_image_r1']:.2f} %",
    }
    write_json(
        join(location.uri, _RANKS), {way: r.tolist() for way, r in rank_by_direction.items()}
    )
    return location.write_result(metrics, summary)


def read_ranks(uri: str) -> dict[str, list[int]]:
    """Read each query's rank, 0 the best, by direction; queries are in the data's order.

    Raises:
        NotFoundError: the evaluation was written before ranks were kept.
    """
    return {way: list(ranks) for way, ranks in read_json(join(uri, _RANKS)).items()}


def _embed(
    towers: ClipTowers, pairs: Iterator[Pair], report: ProgressCallback
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[int]]:
    """Embed images and captions; return both, with the image's index of each caption."""
    images: list[NDArray[np.float32]] = []
    texts: list[NDArray[np.float32]] = []
    owners: list[int] = []
    batch: list[Pair] = []

    def embed() -> None:
        first = owners[-1] + 1 if owners else 0
        images.append(towers.encode_images([image for image, _ in batch]))
        sentences = [text for _, captions in batch for text in captions]
        texts.append(towers.encode_texts(sentences))
        owners.extend(i for i, (_, captions) in enumerate(batch, first) for _ in captions)
        batch.clear()
        report(owners[-1] + 1, owners[-1] + 1, "embedded")

    for pair in pairs:
        batch.append(pair)
        if len(batch) == _BATCH:
            embed()
    if batch:
        embed()
    return images, texts, owners
