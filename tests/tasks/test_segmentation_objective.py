"""UPerNet's objective on encoders of ours."""

import pytest
import torch

from clipmill.engine.objective import split_batch
from clipmill.tasks.segmentation.objective import SegmentationObjective
from helpers.tiny_tasks import CLASSES, CONV, SEGMENTATION, VIT


def batch_of(num_samples=2):
    torch.manual_seed(1)
    return {
        "images": torch.randint(0, 256, (num_samples, 64, 64, 3), dtype=torch.uint8),
        "labels": torch.randint(0, len(CLASSES), (num_samples, 64, 64), dtype=torch.uint8),
    }


@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_losses_and_their_gradients(encoder):
    torch.manual_seed(0)
    objective = SegmentationObjective(SEGMENTATION, encoder, len(CLASSES))
    losses = objective(batch_of())
    assert sorted(losses) == ["auxiliary", "decode"]
    # Before training every class is as likely: log C, and 0.4 of that.
    chance = torch.tensor(len(CLASSES)).log().item()
    assert losses["decode"].item() == pytest.approx(chance, rel=0.2)
    assert losses["auxiliary"].item() == pytest.approx(0.4 * chance, rel=0.2)
    sum(losses.values()).backward()
    assert [n for n, p in objective.named_parameters() if p.grad is None] == []


def test_images_are_normalized_once():
    """The encoder sees 0..1: a white picture's pixels, less the mean, over the deviation."""
    objective = SegmentationObjective(SEGMENTATION, VIT, len(CLASSES))
    seen = []
    objective.encoder.normalize.register_forward_hook(lambda _, inputs, output: seen.append(inputs))
    white = {**batch_of(), "images": torch.full((2, 64, 64, 3), 255, dtype=torch.uint8)}
    objective(white)
    ((images,),) = seen
    assert torch.equal(images, torch.ones(2, 3, 64, 64))


def test_labels_are_read_where_they_lie():
    """A picture whose left half is class 1 and right half class 3 is learnt that way round."""
    torch.manual_seed(0)
    objective = SegmentationObjective(SEGMENTATION, CONV, len(CLASSES))
    labels = torch.full((2, 64, 64), 1, dtype=torch.uint8)
    labels[:, :, 32:] = 3
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    images[:, :, 32:] = 255
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        sum(objective({"images": images, "labels": labels}).values()).backward()
        optimizer.step()
    with torch.no_grad():
        maps = objective.pyramid(objective.encoder(images.permute(0, 3, 1, 2) / 255))
        found = objective.heads.decode_head(maps).argmax(1)
    middle = found.shape[-1] // 2
    assert (found[:, :, : middle - 2] == 1).float().mean() > 0.9
    assert (found[:, :, middle + 2 :] == 3).float().mean() > 0.9


def test_batch_can_be_cut():
    pieces = split_batch(batch_of(4), 2)
    assert [p["labels"].shape for p in pieces] == [(2, 64, 64)] * 2
