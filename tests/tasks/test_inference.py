"""Pictures of any size through a network of one size."""

import pytest
import torch
from torch.nn import functional as F

from clipmill.models.execution import (
    resize_and_run,
    shifted_window_inference,
    sliding_window_inference,
)


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
    found = resize_and_run(torch.rand(2, 3, *size), 64, 16, spy(seen))
    assert seen == [expected]
    assert found.shape == (2, 3, *size)


def test_at_the_trained_size_nothing_changes():
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(resize_and_run(images, 64, 32, lambda x: x), images)


def test_padding_is_cut_off_again():
    """Padded with what lies at the edge, below and to the right, and never seen in the output."""
    images = torch.rand(1, 3, 64, 70)
    padded = []

    def network(x):
        padded.append(x)
        return x

    assert torch.equal(resize_and_run(images, 64, 32, network), images)
    assert torch.equal(padded[0], F.pad(images, (0, 26, 0, 0), mode="replicate"))


def test_a_ramp_stays_where_it_was():
    """Shrunk, run and grown again, a linear picture comes back but for its rim."""
    rows = torch.linspace(0, 1, 120)[:, None].expand(120, 180)
    columns = torch.linspace(0, 1, 180)[None].expand(120, 180)
    images = torch.stack([rows, columns, rows + columns])[None]
    found = resize_and_run(images, 60, 16, lambda x: x)
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], images[inner], rtol=0, atol=1e-4)


def places(seen):
    """Remembers where each window began, by values that say where a pixel is."""

    def network(images):
        seen.append(tuple(int(v) for v in images[0, :, 0, 0]) + tuple(images.shape[-2:]))
        return images * len(seen)

    return network


def coordinates(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float()[None]


def test_nyus_two_squares():
    """Xie et al.'s shifted windows: 640 columns as 0..480 and 160..640, the middle averaged."""
    seen = []
    found = shifted_window_inference(coordinates(480, 640), 2, places(seen))
    assert seen == [(0, 0, 480, 480), (0, 160, 480, 480)]
    ratio = (found / coordinates(480, 640))[0, 1, 5]
    assert ratio[1:160].unique().tolist() == [1.0]
    assert ratio[160:480].unique().tolist() == [1.5]
    assert ratio[480:].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("size", "number", "expected"),
    [
        ((8, 8), 2, [(0, 0)]),
        ((8, 12), 1, [(0, 0)]),
        ((8, 15), 3, [(0, 0), (0, 3), (0, 7)]),  # 7 / 2 = 3.5
        ((12, 8), 2, [(0, 0), (4, 0)]),
        ((4, 15), 2, [(0, 0), (0, 3), (0, 7), (0, 11)]),  # two couldn't cover it
    ],
)
def test_squares_cover_the_image(size, number, expected):
    seen = []
    found = shifted_window_inference(coordinates(*size), number, places(seen))
    assert [window[:2] for window in seen] == expected
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("size", [(10, 10), (10, 23), (31, 17), (7, 25), (5, 6)])
def test_windows_are_mmsegs(size):
    """mmseg's own slide_inference, on a model whose logits depend on what a window holds."""
    from mmengine.config import ConfigDict

    from clipmill.openmmlab.ops import importing_openmmlab

    with importing_openmmlab():
        from mmseg.models.segmentors import EncoderDecoder

    def network(images):
        return torch.cat([images, images.mean((2, 3), keepdim=True) + 0 * images], dim=1)

    class Model(EncoderDecoder):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.test_cfg = ConfigDict(stride=(7, 7), crop_size=(10, 10))
            self.out_channels = 6

        def encode_decode(self, inputs, batch_img_metas):
            return network(inputs)

    torch.manual_seed(0)
    images = torch.rand(2, 3, *size)
    expected = Model().slide_inference(images, [{"img_shape": size}])
    torch.testing.assert_close(sliding_window_inference(images, 10, 7, network), expected)
