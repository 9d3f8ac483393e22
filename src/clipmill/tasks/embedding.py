"""What a task model's encoder makes of the images that it was trained on.

Shapes: B batch, C embedding width.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError
from clipmill.models.embedding import EmbeddingStatistics, spread_places, statistics_of
from clipmill.tasks.predictor import Predictor

_NUM_IMAGES = 64

_logger = logging.getLogger(__name__)


def training_embedding(predictor: Predictor, folder: Path) -> EmbeddingStatistics | None:
    """Statistics over images from all over the training split, seen as an endpoint sees them.

    None where the split has too few. Images that can't be read are left out: training met its
    own, and is over.
    """
    images = predictor.task.training_images(folder)
    found: list[NDArray[Any]] = []
    predictor.watch(found.append)
    for index in spread_places(len(images), _NUM_IMAGES):
        try:
            predictor.predict([images.image_HW3(index)])
        except SourceError as error:
            _logger.warning("no embedding of training image %d: %s", index, error)
    return statistics_of(np.concatenate(found)) if found else None
