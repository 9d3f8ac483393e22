"""Windows: cut and joined, and what a windowed encoder can and can't see."""

import pytest
import torch

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.encoders import (
    ViTEncoder,
    WindowedViTEncoder,
    build_detection_encoder,
    from_windows,
    to_windows,
)

CONFIG = EncoderConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=4, head_width=8)
)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (3, 2)])
def test_windows_are_joined_again(size):
    map_BhwD = torch.rand(2, *size, 3)
    windows, grid = to_windows(map_BhwD, 4)
    assert windows.shape == (2 * grid[0] * grid[1], 16, 3)
    assert torch.equal(from_windows(windows, grid, *size), map_BhwD)
    top_left = torch.zeros(4, 4, 3)
    height, width = min(4, size[0]), min(4, size[1])
    top_left[:height, :width] = map_BhwD[0, :height, :width]
    assert torch.equal(windows[0].reshape(4, 4, 3), top_left)


def test_twelve_blocks_have_vitdets_global_ones():
    encoder = WindowedViTEncoder(EncoderConfig(vision=VisionConfig(width=64, head_width=64)), 0.0)
    assert sorted(encoder.global_blocks) == [2, 5, 8, 11]


def test_windows_hide_what_is_elsewhere():
    torch.manual_seed(0)
    encoder = WindowedViTEncoder(CONFIG, 0.0).eval()
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 32:, 32:] = 0
    with torch.no_grad():
        seen = (encoder(images)[0] - encoder(changed)[0])[..., :4, :4].abs().max()
        encoder.global_blocks = frozenset()
        hidden = (encoder(images)[0] - encoder(changed)[0])[..., :4, :4].abs().max()
    assert seen > 1e-4
    assert hidden == 0


def test_one_window_is_plain_attention_without_the_class_token():
    torch.manual_seed(0)
    encoder = WindowedViTEncoder(CONFIG, 0.0).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        windowed = encoder(images)[0]
        encoder.global_blocks = frozenset(range(4))
        torch.testing.assert_close(windowed, encoder(images)[0])


def test_takes_a_plain_encoders_weights():
    plain, windowed = ViTEncoder(CONFIG, 0.0), build_detection_encoder(CONFIG)
    state = {k: v for k, v in plain.state_dict().items() if k not in windowed.pruned}
    windowed.load_state_dict(state)
    assert windowed.pruned == {"trunk.class_embedding"}
    assert windowed.strides == (8,)
    assert windowed.layer_id("trunk.transformer.resblocks.2.ln_1.weight") == 3
