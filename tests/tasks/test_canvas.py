"""Pictures of any size through a network of one size."""

import pytest
import torch
from torch.nn import functional as F

from clipmill.tasks.canvas import run_at


def spy(seen):
    def network(images):
        seen.append(tuple(images.shape[-2:]))
        return images

    return network


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((64, 100), (64, 112)),  # padded up to a multiple of 16
        ((128, 192), (64, 96)),
        ((30, 41), (64, 96)),  # 64 / 30 * 41 = 87.5
        ((1, 50), (64, 3200)),
    ],
)
def test_the_network_sees_the_trained_size(size, expected):
    seen = []
    found = run_at(torch.rand(2, 3, *size), 64, 16, spy(seen))
    assert seen == [expected]
    assert found.shape == (2, 3, *size)


def test_at_the_trained_size_nothing_changes():
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(run_at(images, 64, 32, lambda x: x), images)


def test_padding_is_cut_off_again():
    """Padded with what lies at the edge, below and to the right, and never seen in the output."""
    images = torch.rand(1, 3, 64, 70)
    padded = []

    def network(x):
        padded.append(x)
        return x

    assert torch.equal(run_at(images, 64, 32, network), images)
    assert torch.equal(padded[0], F.pad(images, (0, 26, 0, 0), mode="replicate"))


def test_a_ramp_stays_where_it_was():
    """Shrunk, run and grown again, a linear picture comes back but for its rim."""
    rows = torch.linspace(0, 1, 120)[:, None].expand(120, 180)
    columns = torch.linspace(0, 1, 180)[None].expand(120, 180)
    images = torch.stack([rows, columns, rows + columns])[None]
    found = run_at(images, 60, 16, lambda x: x)
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], images[inner], rtol=0, atol=1e-4)
