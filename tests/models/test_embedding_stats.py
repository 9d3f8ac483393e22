"""Statistics of embeddings, and how they are listened to, against figures by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from clipmill.models.embedding_stats import (
    evenly_spaced_indices,
    register_embedding_hook,
    statistics_of,
)


def test_statistics_by_hand():
    found = statistics_of(np.array([[0.0, 0.0], [6.0, 0.0], [6.0, 0.0], [0.0, 0.0]]))
    assert (found.mean, found.spread, found.num_images) == ((3.0, 0.0), 3.0, 4)
    assert found.distance(np.array([3.0, 6.0])) == pytest.approx(2)
    assert found.distance(np.array([3.0, 0.0])) == 0


@pytest.mark.parametrize(
    "embeddings", [np.zeros((0, 2)), np.ones((1, 2)), np.ones((3, 2)), np.full((3, 2), np.nan)]
)
def test_too_few_or_too_much_alike(embeddings):
    assert statistics_of(embeddings) is None


def test_places_reach_from_end_to_end():
    assert evenly_spaced_indices(9, 3) == [0, 4, 8]
    assert evenly_spaced_indices(2, 3) == [0, 1]
    assert evenly_spaced_indices(1, 3) == [0]
    assert evenly_spaced_indices(0, 3) == []


class Twice(nn.Module):
    """Shows its encoder each image and then its negative; fails where it's told to."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.is_failing = False

    def forward(self, images):
        self.encoder(images)
        if self.is_failing:
            raise ValueError("no memory")
        return self.encoder(3 - images)


class Maps(nn.Module):
    def forward(self, images):
        return [images[..., ::2, ::2] * 100, images]


@pytest.mark.parametrize("encoder", [Maps(), nn.Flatten()])
def test_the_last_output_is_averaged_over_places_and_calls(encoder):
    network, heard = Twice(encoder), []
    register_embedding_hook(network, network.encoder, heard.append)
    images = torch.rand(2, 3, 4, 4) if isinstance(encoder, Maps) else torch.rand(2, 3)
    network.is_failing = True
    with pytest.raises(ValueError, match="no memory"):
        network(images[:1])
    network.is_failing = False
    network(images)
    (embeddings_BC,) = heard
    assert embeddings_BC.dtype == np.float32
    np.testing.assert_allclose(embeddings_BC, np.full((2, 3), 1.5), rtol=1e-6)
