"""What a CLIP makes of the images that it was trained on."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clipmill.data.dataset import cache_folder
from clipmill.data.reader import read_shard
from clipmill.data.view import View
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from clipmill.models.clip_embedder import ClipEmbedder
from clipmill.models.embedding import EmbeddingStatistics, spread_places, statistics_of
from clipmill.models.towers import ClipConfig

if TYPE_CHECKING:
    from torch import Tensor

_NUM_IMAGES = 256
_NUM_SHARDS = 8
_BATCH_SIZE = 32

_logger = logging.getLogger(__name__)


def training_embedding(
    config: ClipConfig, tensors: "Mapping[str, Tensor]", view: View
) -> EmbeddingStatistics | None:
    """Statistics over a few hundred of the view's images, seen as an endpoint sees them.

    None where the view has too few.
    """
    embedder = ClipEmbedder(config, tensors)
    prepared = [embedder.prepare(image) for image in _images(view)]
    starts = range(0, len(prepared), _BATCH_SIZE)
    found = [embedder.images(prepared[start : start + _BATCH_SIZE]) for start in starts]
    return statistics_of(np.concatenate(found)) if found else None


def _images(view: View) -> Iterator[Image.Image]:
    """Images from all over the view, but of few shards, since shards are large and far away."""
    indices = spread_places(len(view.dataset.shards), _NUM_SHARDS)
    share = -(-_NUM_IMAGES // len(indices)) if indices else 0
    for index in indices:
        with read_shard(view.dataset, index, cache_folder()) as reader:
            rows = view.open_shard(index, reader.uids, cache_folder()).rows.tolist()
            for row in [rows[place] for place in spread_places(len(rows), share)]:
                try:
                    yield decode_rgb(reader.image(row))
                except BadSampleError as error:
                    _logger.warning("no embedding of %s: %s", reader.uid(row), error)
