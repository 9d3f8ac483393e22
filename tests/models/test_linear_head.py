"""The linear head: DINOv2's, computed map by map."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipmill.models.heads import LinearHead

CHANNELS = (8, 12, 20)
SIDES = ((16, 24), (8, 12), (2, 3))


def maps(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        3 * torch.randn(batch, width, *side, generator=generator) + 1
        for width, side in zip(CHANNELS, SIDES, strict=True)
    ]


@torch.no_grad()
def trained(**options: int) -> LinearHead:
    """A head with statistics and weights as training leaves them."""
    torch.manual_seed(0)
    head = LinearHead(CHANNELS, 5, **options)
    for norm in head.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 9)
    for projection in head.projections:
        projection.weight.normal_()
    head.projections[0].bias.normal_()
    if head.position is not None:
        head.position.normal_()
    return head.eval()


@torch.no_grad()
def test_equals_a_norm_and_a_convolution_of_all_maps_together() -> None:
    """DINOv2's BNHead: maps resized to the finest and concatenated, batch norm, 1x1 convolution."""
    head, features = trained(), maps()
    together = torch.cat(
        [F.interpolate(m, SIDES[0], mode="bilinear", align_corners=False) for m in features], 1
    )
    norm = nn.BatchNorm2d(sum(CHANNELS), affine=False).eval()
    norm.running_mean.copy_(torch.cat([n.running_mean for n in head.norms]))
    norm.running_var.copy_(torch.cat([n.running_var for n in head.norms]))
    convolution = nn.Conv2d(sum(CHANNELS), 5, 1)
    convolution.weight.copy_(torch.cat([p.weight for p in head.projections], 1))
    convolution.bias.copy_(head.projections[0].bias)
    torch.testing.assert_close(head(features), convolution(norm(together)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", [4, 16, 40])
def test_a_bias_by_position_is_added(side: int) -> None:
    with_position, without = trained(position_side=side), trained()
    expected = F.interpolate(with_position.position, SIDES[0], mode="bilinear")
    for found in with_position(maps()) - without(maps()):
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)


def test_position_says_nothing_before_it_is_learned() -> None:
    torch.manual_seed(0)
    head = LinearHead(CHANNELS, 2, position_side=4)
    expected = head(maps())
    with torch.no_grad():
        head.position = None
    torch.testing.assert_close(head(maps()), expected)


def test_place_is_learned_where_features_do_not_know_it() -> None:
    """A target that grows downwards, of features that are alike everywhere."""
    features = [torch.ones(2, width, *side) for width, side in zip(CHANNELS, SIDES, strict=True)]
    target = torch.linspace(0, 1, SIDES[0][0])[:, None].expand(2, 1, *SIDES[0])
    losses = {}
    for side in (0, 8):
        head = LinearHead(CHANNELS, 1, position_side=side)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            loss = F.mse_loss(head(features), target)
            loss.backward()
            optimizer.step()
        losses[side] = loss.item()
    assert losses[0] == pytest.approx(target.var(correction=0).item(), rel=0.05)
    assert losses[8] < losses[0] / 20


def test_norms_learn_nothing_but_statistics() -> None:
    """An affine norm's scale and shift would only repeat the projection's."""
    head = LinearHead(CHANNELS, 5)
    assert [name for name, _ in head.named_parameters()] == [
        "projections.0.weight",
        "projections.0.bias",
        "projections.1.weight",
        "projections.2.weight",
    ]
    head(maps())
    assert head.norms[2].num_batches_tracked == 1
