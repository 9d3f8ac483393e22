"""Training with channels last: gradients against double precision, and memory left whole."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from clipmill.models.execution import to_channels_last

CHILD = """
import timm, torch
from clipmill.models.execution import to_channels_last
torch.set_num_threads(1)
network = to_channels_last(timm.create_model("fastvit_mci0", num_classes=0))
for _ in range(5):
    images = torch.rand(2, 128, 128, 3).permute(0, 3, 1, 2)  # as the loader gives them
    network(images).sum().backward()
stem = to_channels_last(torch.nn.Conv2d(3, 64, 1, stride=2))
for _ in range(40):
    stem(torch.rand(8, 128, 128, 3).permute(0, 3, 1, 2)).sum().backward()
"""


def test_mci0_trains_at_128_px_without_a_crash():
    """In a process of its own: torch 2.14.1 ends it with "double free" or a segfault otherwise."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("channels", [1, 3, 15])
def test_gradients_equal_those_of_the_convolution_as_it_was(stride, channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, 11, 14, generator=generator)
    plain = nn.Conv2d(channels, 8, 1, stride=stride)
    ours = to_channels_last(copy.deepcopy(plain))
    found_x = images.clone(memory_format=torch.channels_last).requires_grad_()
    found = ours(found_x)
    found.square().sum().backward()
    weight, bias = (p.detach().double().requires_grad_() for p in plain.parameters())
    expected_x = images.double().requires_grad_()
    expected = F.conv2d(expected_x, weight, bias, stride=stride)
    expected.square().sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for value, truth in ((ours.weight, weight), (ours.bias, bias), (found_x, expected_x)):
        torch.testing.assert_close(value.grad.double(), truth.grad, rtol=1e-5, atol=1e-4)


def unsafe(network):
    """Convolutions that oneDNN's fault concerns (uxlfoundation/oneDNN#6035)."""
    return [
        name
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d)
        and (*m.kernel_size, m.groups) == (1, 1, 1)
        and max(m.stride) > 1
        and m.in_channels < 16
    ]


@pytest.mark.parametrize("name", ["fastvit_mci0", "mobileone_s0", "repvgg_a0"])
def test_no_unsafe_convolution_is_left_and_weights_keep_their_names(name):
    with torch.device("meta"):
        names = set(timm.create_model(name).state_dict())
    network = timm.create_model(name)
    assert unsafe(network)
    to_channels_last(network)
    assert not unsafe(network)
    assert set(network.state_dict()) == names


def test_a_safe_convolution_is_left_as_it_is():
    for safe in (nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(3, 8, 1)):
        stride = safe.stride
        to_channels_last(safe)
        assert safe.stride == stride
        assert not safe._forward_pre_hooks
        assert safe.weight.is_contiguous(memory_format=torch.channels_last)


def test_done_twice_is_done_once():
    images = torch.randn(1, 3, 8, 8)
    stem = nn.Conv2d(3, 4, 1, stride=2)
    expected = stem(images)
    torch.testing.assert_close(to_channels_last(to_channels_last(stem))(images), expected)
