"""SemanticFPN in plain torch against mmseg's, with copied weights."""

import pytest
import torch

from clipmill.errors import ConfigError
from clipmill.models.heads import SemanticFpnHead, num_upsamples
from clipmill.openmmlab.segmentation import SemanticFpnTraining

CHANNELS, STRIDES = (4, 6, 8, 10), (16, 32, 64, 128)


@torch.no_grad()
@pytest.mark.parametrize("sides", [(16, 8, 4, 2), (13, 7, 4, 2)])
def test_equals_mmsegs(sides):
    """Of maps that halve evenly and of maps whose sides are rounded."""
    torch.manual_seed(0)
    theirs = SemanticFpnTraining(CHANNELS, STRIDES, 12, 8, 5)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    theirs.decode_head.conv_seg.weight.normal_()
    theirs.eval()
    ours = SemanticFpnHead(CHANNELS, STRIDES, 12, 8, 5).eval()
    state = theirs.state_dict()
    ours.load_state_dict({k.removeprefix("decode_head."): v for k, v in state.items()})
    maps = [torch.randn(2, c, s, s + 1) for c, s in zip(CHANNELS, sides, strict=True)]
    expected = theirs.decode_head(theirs.neck(maps))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(maps), expected, rtol=1e-6, atol=1e-6)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    training = SemanticFpnTraining(CHANNELS, STRIDES, 12, 8, 5)
    maps = [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, (16, 8, 4, 2), strict=True)]
    losses = training.loss(maps, torch.randint(0, 5, (2, 64, 64)))
    assert list(losses) == ["decode"]
    losses["decode"].backward()
    still = [name for name, p in training.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_strides_that_no_doubling_meets():
    assert num_upsamples((16, 32, 32, 128)) == [0, 1, 1, 3]
    with pytest.raises(ConfigError, match="strides 16, 48"):
        num_upsamples((16, 48))
