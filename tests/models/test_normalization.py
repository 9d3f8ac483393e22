"""Normalization, against torchvision's."""

import torch
from torchvision.transforms import functional

from clipmill.models.config import CLIP_MEAN, CLIP_STD
from clipmill.models.encoders import Normalize


def test_equals_torchvisions():
    images = torch.rand(2, 3, 4, 5)
    for mean, std in ((CLIP_MEAN, CLIP_STD), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))):
        expected = functional.normalize(images, mean, std)
        torch.testing.assert_close(Normalize(mean, std)(images), expected)
    torch.testing.assert_close(
        Normalize()(images), functional.normalize(images, CLIP_MEAN, CLIP_STD)
    )


def test_saves_nothing_and_moves_with_its_module():
    normalize = Normalize()
    assert normalize.state_dict() == {}
    assert normalize.to(torch.float64)(torch.rand(1, 3, 2, 2)).dtype == torch.float64


def test_clips_statistics_are_open_clips():
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
