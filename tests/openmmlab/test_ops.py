"""mmcv.ops on torchvision: suppression by hand and by search, absent operations, imports."""

import subprocess
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import UserError
from clipmill.openmmlab.ops import importing_openmmlab, register_ops

register_ops()

# Sides 9 and 9, overlapping by 9 x 4; with offset 1, sides 10 and 10, overlapping by 10 x 5.
OVERLAPPING = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 5.0, 9.0, 14.0]])


def greedy(boxes_N4, scores_N, threshold, offset):
    """Suppression, spelled out."""
    kept = []
    for i in scores_N.argsort(descending=True).tolist():
        if all(iou(boxes_N4[i], boxes_N4[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a, b, offset):
    width, height = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]) + offset).clamp(0)
    areas = [torch.prod(box[2:] - box[:2] + offset) for box in (a, b)]
    return float(width * height / (sum(areas) - width * height))


@pytest.mark.parametrize(
    ("offset", "threshold", "kept"),
    [(0, 0.30, [1, 0]), (1, 0.30, [1]), (0, 0.28, [1]), (1, 0.34, [1, 0])],
)
def test_nms_by_hand(offset, threshold, kept):
    from mmcv.ops import nms

    dets, indices = nms(OVERLAPPING, torch.tensor([0.5, 0.6]), threshold, offset=offset)
    assert indices.tolist() == kept
    assert dets[:, 4].tolist() == pytest.approx([[0.5, 0.6][i] for i in kept])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), offset=st.sampled_from([0, 1]), number=st.integers(1, 30))
def test_nms_equals_greedy_search(seed, offset, number):
    from mmcv.ops import nms

    random = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 20, (number, 2), generator=random)
    sides = torch.randint(2, 12, (number, 2), generator=random)
    boxes = torch.cat([corners, corners + sides], dim=1).float()
    scores = torch.randperm(number, generator=random) / number
    # No ratio of such small areas comes near this threshold, so rounding decides nothing.
    threshold = 0.41421356
    _, indices = nms(boxes, scores, threshold, offset=offset)
    assert indices.tolist() == greedy(boxes, scores, threshold, offset)


def test_nms_of_nothing():
    from mmcv.ops import nms

    _, indices = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert indices.numel() == 0


def test_batched_nms_keeps_classes_apart():
    from mmcv.ops import batched_nms

    boxes, scores = OVERLAPPING.repeat(2, 1), torch.tensor([0.5, 0.6, 0.8, 0.7])
    _, kept = batched_nms(
        boxes, scores, torch.tensor([0, 0, 1, 1]), {"type": "nms", "iou_threshold": 0.2}
    )
    assert kept.tolist() == [2, 1]


def test_an_absent_operation_names_itself():
    from mmcv.ops import RoIPool

    with pytest.raises(UserError, match="operation 'roi_pool_forward'") as raised:
        RoIPool(7)(torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]))
    assert "use_torchvision=True" in raised.value.expected


def test_masks_are_cut_out_as_torchvision_does():
    from mmcv.ops.roi_align import roi_align

    masks_B1HW = (torch.rand(2, 1, 20, 30) > 0.5).float()
    rois_N5 = torch.tensor([[0.0, 2.5, 3.0, 17.0, 12.0], [1.0, 0.0, 0.0, 30.0, 20.0]])
    found = roi_align(masks_B1HW, rois_N5, (7, 5), 1.0, 0, "avg", True)
    expected = torchvision.ops.roi_align(masks_B1HW, rois_N5, (7, 5), 1.0, 0, aligned=True)
    assert torch.equal(found, expected)
    assert 0 < found.mean() < 1


def test_registering_again_changes_nothing():
    before = sys.modules["mmcv._ext"]
    register_ops()
    assert sys.modules["mmcv._ext"] is before


def test_detection_runs_on_torchvision():
    with importing_openmmlab():
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(
        roi_layer={
            "type": "RoIAlign",
            "output_size": 3,
            "sampling_ratio": 0,
            "use_torchvision": True,
        },
        out_channels=2,
        featmap_strides=[4],
    )
    map_BDhw = torch.randn(1, 2, 16, 16, requires_grad=True)
    rois_N5 = torch.tensor([[0.0, 5.0, 7.0, 41.0, 60.0], [0.0, 0.0, 0.0, 12.0, 12.0]])
    pooled = extractor([map_BDhw], rois_N5)
    expected = torchvision.ops.roi_align(map_BDhw, rois_N5, 3, 1 / 4, 0, aligned=True)
    assert torch.equal(pooled, expected)
    pooled.sum().backward()
    assert map_BDhw.grad.abs().sum() > 0


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )


def test_imports_are_quiet():
    script = """
import warnings
import torchvision
warnings.simplefilter("error")
from clipmill.openmmlab.ops import importing_openmmlab
with importing_openmmlab():
    import mmdet.models, mmseg.models
from clipmill.openmmlab.segmentation import UperNetTraining
UperNetTraining((4, 4, 4, 4), 4, 2)
"""
    done = run(script)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_the_heads_dont_use_is_not_imported():
    script = """
import sys
from clipmill.openmmlab.ops import importing_openmmlab
with importing_openmmlab():
    import mmdet.models, mmseg.models
unused = ("matplotlib", "scipy", "skimage", "timm", "transformers")
print([name for name in unused if name in sys.modules])
import timm, scipy.optimize
print(timm.__name__, callable(scipy.optimize.linear_sum_assignment))
"""
    assert run(script).stdout == "[]\ntimm True\n"


def test_compiled_operations_are_kept(tmp_path):
    (tmp_path / "_ext.py").write_text("compiled = True")
    script = """
import sys
import mmcv
mmcv.__path__.append(sys.argv[1])
from clipmill.openmmlab.ops import register_ops
register_ops()
from mmcv import _ext
print(_ext.compiled)
"""
    assert run(script, str(tmp_path)).stdout == "True\n"
