"""Image-text retrieval by a CLIP, on a dataset of ours or any source of captioned pictures."""

import itertools
from collections import Counter
from collections.abc import Iterator
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from clipmill.data.captioned_images import captioned_pictures, open_pictures
from clipmill.data.dataset import Dataset
from clipmill.data.scoring.clip import ClipTowers, judge_parent
from clipmill.data.loading.view import in_fraction
from clipmill.errors import ConfigError, SourceError
from clipmill.models.retrieval import ranks, recall_of_ranks
from clipmill.stage_records import Report
from clipmill.storage import join, read_json, write_json
from clipmill.lineage import Parent
from clipmill.tasks.zero_shot import RetrievalConfig
from clipmill.tasks.zero_shot import is_judged, result_place, write_result

_BATCH = 64
_RANKS = "ranks.json"

Pair = tuple[Image.Image, list[str]]


def retrieve(config: RetrievalConfig, data: str, store: str, *, report: Report) -> str:
    """Judge a CLIP on captioned pictures; the URI of the evaluation, under ``store``.

    ``data`` is a dataset's URI, or a source as ``clipmill data shard`` takes it; a COCO captions
    file brings all captions of an image. Metrics: R@1, R@5 and R@10 both ways, percent
    (``image_to_text_r1`` ...), the counts of both, and ``skipped.REASON``; :func:`read_ranks` has
    each query's. A result that is there already is returned at once.

    Raises:
        SourceError: no pair can be used.
        ConfigError: there is no such model, or ``outside_fraction`` of what is no dataset.
    """
    import torch

    opened = open_pictures(data)
    if config.outside_fraction and not isinstance(opened, Dataset):
        raise ConfigError(
            f"outside_fraction was {config.outside_fraction}, but {data} is no dataset",
            expected="the URI of a dataset: a fraction is cut by its samples' ids",
            action="shard the data first, or leave outside_fraction out",
        )
    digest = opened.digest if isinstance(opened, Dataset) else opened.digest("listing")
    parents = (
        judge_parent(config.clip, "model"),
        Parent(role="data", uri=opened.uri, digest=digest),
    )
    place = result_place(store, "retrieval", config, parents)
    if is_judged(place):
        return place.uri
    towers = ClipTowers(config.clip)
    skipped: Counter[str] = Counter()
    fraction = config.outside_fraction
    found = captioned_pictures(
        opened, skipped, lambda uid: not (fraction and in_fraction(uid, fraction))
    )
    pairs = (
        (image, captions[: config.captions_per_image])
        for image, captions in itertools.islice(found, config.num_images or None)
    )
    images, texts, owners = _embed(towers, pairs, report)
    if not images:
        raise SourceError(
            f"{data} has no pair that can be used",
            expected="pictures with captions",
            action=f"mend the data; left out were {dict(skipped)}",
        )
    found_ranks = ranks(
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(np.concatenate(texts)),
        torch.tensor(owners),
    )
    metrics = {k: 100 * v for k, v in recall_of_ranks(found_ranks).items()}
    metrics |= {"num_images": float(owners[-1] + 1), "num_captions": float(len(owners))}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    words = {
        "image to text": f"R@1 {metrics['image_to_text_r1']:.2f} %",
        "text to image": f"R@1 {metrics['text_to_image_r1']:.2f} %",
    }
    write_json(join(place.uri, _RANKS), {way: r.tolist() for way, r in found_ranks.items()})
    return write_result(place, metrics, words)


def read_ranks(uri: str) -> dict[str, list[int]]:
    """Each query's rank, 0 the best, by way; queries are in the data's order.

    Raises NotFoundError of an evaluation that was made before ranks were kept.
    """
    return {way: list(ranks) for way, ranks in read_json(join(uri, _RANKS)).items()}


def _embed(
    towers: ClipTowers, pairs: Iterator[Pair], report: Report
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[int]]:
    """Embeddings of images and of captions, and the number of the image of each caption."""
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
