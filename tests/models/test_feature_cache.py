"""A frozen encoder's maps, computed once an image."""

import pytest
import torch

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.encoders import FeatureCache, build_dense
from helpers.tiny_towers import VIT

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[VIT, VisionConfig(timm_model="test_resnet")], ids=["vit", "resnet"])
def encoder(request):
    """One map, or one of each stage."""
    torch.manual_seed(0)
    return build_dense(EncoderConfig(vision=request.param)).eval().requires_grad_(False)


def counted(encoder):
    """The numbers of images that it is called on."""
    calls = []
    encoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    return calls


def test_maps_are_the_encoders_and_an_image_is_encoded_once(encoder):
    expected = encoder(IMAGES)
    calls = counted(encoder)
    cache = FeatureCache(encoder)
    for rows in ([0, 1, 2], [2, 0, 3], [3, 1], [5, 4, 5, 0]):
        found = cache(IMAGES[rows], torch.tensor(rows))
        assert len(found) == len(expected)
        for level, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(level, truth[rows], rtol=1e-5, atol=1e-5)
    # The last has a new image twice: it is encoded with its batch, and kept once.
    assert calls == [3, 1, 3]


def test_keys_and_not_pixels_tell_images_apart(encoder):
    cache = FeatureCache(encoder)
    first = cache(IMAGES[:1], torch.tensor([7]))
    for level, kept in zip(cache(IMAGES[1:2], torch.tensor([7])), first, strict=True):
        assert torch.equal(level, kept)


def test_what_does_not_fit_is_encoded_again(encoder):
    expected = encoder(IMAGES)
    calls = counted(encoder)
    size = sum(level[0].nbytes for level in expected)
    cache = FeatureCache(encoder, max_bytes=2 * size)
    for _ in range(2):
        found = cache(IMAGES, torch.arange(6))
        for level, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(level, truth, rtol=1e-5, atol=1e-5)
    assert calls == [6, 4]


def test_a_change_of_what_is_returned_does_not_reach_what_is_kept(encoder):
    cache = FeatureCache(encoder)
    first = cache(IMAGES[:2], torch.tensor([0, 1]))
    kept = [level.clone() for level in first]
    for level in first:
        level.zero_()
    for level, truth in zip(cache(IMAGES[:2], torch.tensor([0, 1])), kept, strict=True):
        assert torch.equal(level, truth)
        assert not level.requires_grad
