"""The head that serves against mmseg's that trained, weight for weight."""

import subprocess
import sys

import pytest
import torch

from clipmill.models.heads import UperNetHead
from clipmill.openmmlab.segmentation import UperNetTraining

WIDTHS = (4, 6, 8, 10)


def pair():
    """mmseg's head with weights and statistics that no two places share, and ours with the same."""
    torch.manual_seed(0)
    theirs = UperNetTraining(WIDTHS, 12, 7, dropout=0.0).decode_head
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(
                    0, 0.3
                )
    ours = UperNetHead(WIDTHS, 12, 7)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def random_maps(*sizes):
    return [torch.randn(2, width, *size) for width, size in zip(WIDTHS, sizes, strict=True)]


@pytest.mark.parametrize(
    "sizes",
    [
        ((32, 32), (16, 16), (8, 8), (4, 4)),
        ((56, 36), (28, 18), (14, 9), (7, 5)),
        ((13, 9), (7, 5), (3, 2), (2, 2)),
        ((6, 6), (6, 6), (6, 6), (6, 6)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_equals_mmseg(sizes, training):
    ours, theirs = pair()
    maps = random_maps(*sizes)
    with torch.no_grad():
        logits = ours.train(training)(maps)
        torch.testing.assert_close(logits, theirs.train(training)(maps), rtol=1e-5, atol=1e-5)
    assert logits.shape == (2, 7, *sizes[0])
    assert float(logits.std()) > 0.1
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name))


def test_the_input_is_left_as_it_was():
    ours, _ = pair()
    maps = random_maps((8, 8), (4, 4), (2, 2), (1, 1))
    before = [map_BDhw.clone() for map_BDhw in maps]
    ours.eval()(maps)
    assert all(torch.equal(a, b) for a, b in zip(before, maps, strict=True))


def test_serving_needs_no_openmmlab():
    script = """
import sys
import torch
from clipmill.models.necks import SimpleFeaturePyramid
from clipmill.models.heads import UperNetHead
maps = SimpleFeaturePyramid(8, width=4)(torch.zeros(1, 8, 4, 4))
UperNetHead((4, 4, 4, 4), 4, 3).eval()(maps)
print({name.split(".")[0] for name in sys.modules} & {"mmcv", "mmdet", "mmengine", "mmseg"})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
