"""Detection heads: ours against mmdet's with equal weights, and what training sees."""

from types import SimpleNamespace

import pytest
import torch

from clipmill.models.mask_rcnn import PostprocessConfig, RoIHeads, RPNHead, paste_masks_in_image
from clipmill.models.necks import StageFpn
from clipmill.openmmlab.detection import MaskRcnnTraining
from clipmill.openmmlab.ops import importing_openmmlab
from clipmill.tasks.detection.training import DetectionTraining

STRIDES = (4, 8, 16, 32, 64)
WIDTH, HIDDEN, CLASSES = 8, 12, 5
SIZE = (60, 90)  # within maps of 64 x 96


def build(num_stages, **changes):
    torch.manual_seed(0)
    training = MaskRcnnTraining(
        WIDTH,
        HIDDEN,
        CLASSES,
        num_stages=num_stages,
        strides=STRIDES,
        anchor_scale=2.0,
        num_proposals=40,
        **changes,
    )
    with torch.no_grad():
        for name, parameter in training.named_parameters():
            # As large as training leaves them, so that scores and boxes differ.
            parameter.add_(torch.randn_like(parameter), alpha=0.03 if "fc_reg" in name else 0.1)
    return training


def ours(training, num_stages):
    heads = torch.nn.ModuleDict(
        {
            "rpn_head": RPNHead(WIDTH, STRIDES, 2.0),
            "roi_head": RoIHeads(WIDTH, HIDDEN, CLASSES, num_stages=num_stages, strides=STRIDES),
        }
    )
    named = {
        DetectionTraining().inference_key(f"heads.{k}"): v for k, v in training.state_dict().items()
    }
    heads.load_state_dict({k.removeprefix("heads."): v for k, v in named.items()})
    return heads


def maps(seed=1):
    torch.manual_seed(seed)
    return [torch.randn(2, WIDTH, 64 // s, -(-96 // s)) for s in STRIDES]


def samples():
    from mmdet.structures import DetDataSample

    metainfo = {"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0)}
    return [DetDataSample(metainfo=metainfo) for _ in range(2)]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:To copy construct")  # mmdet's own cascade
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_detections_equal_mmdets(num_stages, seed):
    training = build(num_stages).eval()
    heads, seen = ours(training, num_stages), maps(seed)
    limits = PostprocessConfig(proposals_per_level=40, proposals=40)
    proposals = heads["rpn_head"](seen, SIZE, limits)
    expected_proposals = training.rpn_head.predict(seen, samples(), rescale=False)
    for found, expected in zip(proposals, expected_proposals, strict=True):
        torch.testing.assert_close(found, expected.bboxes, rtol=1e-4, atol=1e-4)

    found = heads["roi_head"].boxes(seen, proposals, SIZE, limits)
    masks = heads["roi_head"].masks(seen, found)
    expected = training.roi_head.predict(seen, expected_proposals, samples(), rescale=True)
    for one, probabilities, other in zip(found, masks, expected, strict=True):
        assert len(one["boxes"]) == len(other) > 3
        torch.testing.assert_close(one["boxes"], other.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one["scores"], other.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(one["labels"], other.labels)
        pasted = paste_masks_in_image(probabilities, one["boxes"], *SIZE)
        assert 0 < pasted.float().mean() < 1
        # A probability of one half may fall to either side by rounding.
        assert (pasted.bool() != other.masks).float().mean() < 1e-3


@torch.no_grad()
def test_nothing_found():
    heads = ours(build(1), 1)
    heads["roi_head"].bbox_head[0].fc_cls.bias[-1] += 100
    proposals = [torch.zeros(0, 4), torch.tensor([[1.0, 2.0, 30.0, 40.0]])]
    found = heads["roi_head"].boxes(maps(), proposals, SIZE, PostprocessConfig())
    assert [len(f["labels"]) for f in found] == [0, 0]
    assert [tuple(m.shape) for m in heads["roi_head"].masks(maps(), found)] == [(0, 28, 28)] * 2
    assert paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), 6, 7).shape == (0, 6, 7)


@torch.no_grad()
def test_pyramid_equals_mmdets():
    with importing_openmmlab():
        from mmdet.models.necks import FPN

    torch.manual_seed(0)
    mine, theirs = StageFpn((3, 5, 7, 9), WIDTH), FPN([3, 5, 7, 9], WIDTH, num_outs=5)
    mine.load_state_dict(theirs.state_dict())
    seen = [torch.randn(1, c, s, s + 1) for c, s in ((3, 33), (5, 17), (7, 9), (9, 5))]
    for found, expected in zip(mine(seen), theirs(seen), strict=False):
        torch.testing.assert_close(found, expected)


def truth():
    return {
        "boxes_BM4": torch.tensor(
            [[[4.0, 4, 40, 30], [50, 10, 80, 50]], [[8, 8, 30, 50], [0, 0, 0, 0]]]
        ),
        "labels_BM": torch.tensor([[0, 3], [2, -1]]),
        "masks_BMHW": torch.ones(2, 2, 64, 96, dtype=torch.uint8),
        "has_mask_BM": torch.ones(2, 2, dtype=torch.bool),
        "is_crowd_BM": torch.zeros(2, 2, dtype=torch.bool),
        "size": (64, 96),
    }


def loss(training, **changes):
    inputs = maps()
    torch.manual_seed(0)
    return training.loss(inputs, **{**truth(), **changes})


@pytest.mark.parametrize("num_stages", [1, 3])
def test_gradients_reach_every_parameter(num_stages):
    training = build(num_stages)
    losses = loss(training)
    stages = [""] if num_stages == 1 else [f"s{n}." for n in range(num_stages)]
    kinds = ("loss_cls", "loss_bbox", "loss_mask")
    expected = {"loss_rpn_cls", "loss_rpn_bbox", *(s + k for s in stages for k in kinds)}
    assert set(losses) == expected
    sum(losses.values()).backward()
    still = [n for n, p in training.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("num_stages", [1, 3])
def test_images_without_objects_train_as_ground(num_stages):
    losses = loss(build(num_stages), labels_BM=torch.full((2, 2), -1))
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["loss_rpn_cls"] > 0
    assert losses["loss_rpn_bbox"] == 0


def test_losses_equal_those_of_mmdets_detector():
    """Labels included, which the proposal head must not lose."""
    training, batch = build(1), truth()
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.config import ConfigDict
    from mmengine.structures import InstanceData

    proposals = {"nms_pre": 80, "max_per_img": 40, "nms": {"type": "nms", "iou_threshold": 0.7}}
    detector = SimpleNamespace(
        extract_feat=lambda inputs: inputs,
        with_rpn=True,
        test_cfg=ConfigDict(rpn={}),
        train_cfg=ConfigDict(rpn_proposal={**proposals, "min_bbox_size": 0}),
        rpn_head=training.rpn_head,
        roi_head=training.roi_head,
    )
    size = batch["size"]
    samples = [DetDataSample(metainfo={"img_shape": size, "pad_shape": size}) for _ in range(2)]
    for image, sample in enumerate(samples):
        real = batch["labels_BM"][image] >= 0
        masks = batch["masks_BMHW"][image][real].numpy()
        sample.gt_instances = InstanceData(
            bboxes=batch["boxes_BM4"][image][real],
            labels=batch["labels_BM"][image][real],
            masks=BitmapMasks(masks, *masks.shape[1:]),
            has_mask=real[real],
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
        )
    inputs = maps()
    torch.manual_seed(0)
    theirs = TwoStageDetector.loss(detector, inputs, samples)
    found = loss(training)
    for name, value in found.items():
        expected = theirs[name]
        expected = torch.stack(expected).sum() if isinstance(expected, list) else expected.sum()
        torch.testing.assert_close(value, expected)


def test_crowds_are_left_out():
    training = build(1)
    crowd = loss(training, is_crowd_BM=torch.tensor([[False, True], [False, False]]))
    absent = loss(training, labels_BM=torch.tensor([[0, -1], [2, -1]]))
    whole = loss(training)
    assert {k: v.item() for k, v in crowd.items()} == {k: v.item() for k, v in absent.items()}
    assert crowd["loss_rpn_cls"] != whole["loss_rpn_cls"]


def test_losses_fall():
    training = build(1)
    optimizer = torch.optim.Adam(training.parameters(), 3e-3)
    totals = []
    for _ in range(15):
        total = sum(loss(training).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]
