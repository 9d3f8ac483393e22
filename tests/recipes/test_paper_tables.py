"""The full recipes, line by line against the tables that they cite (CLIP-QC)."""

import pytest

from clipmill.recipes.captioner import coca_vit_l14, recaption_beam
from clipmill.recipes.clip import clip_vit_b16
from clipmill.recipes.dense import depth_vit_b16, upernet_vit_b16


def test_clip_vit_b16_is_table_11():
    config = clip_vit_b16()
    assert config.model.vision.image_size == 224
    assert config.model.vision.patch_size == 16
    assert config.model.text.context_length == 77
    assert config.crop.scale == (0.9, 1.0)
    assert config.crop.ratio == (0.75, 1.33)
    assert config.train.steps == 200_000
    assert config.train.schedule.warmup_steps == 2_000
    assert config.train.batch_size == 65_536
    assert config.train.optimizer.betas == (0.9, 0.95)
    assert config.train.schedule.peak == 1e-3
    assert config.train.schedule.minimum == 1e-6
    assert config.train.schedule.shape == "cosine"
    assert config.train.optimizer.weight_decay == 0.2
    assert config.train.precision == "bf16"
    assert config.train.average_decay == 0.9995
    # The text's 12.8 B, rounded: 200k times 65,536 is 13.1 B.
    assert config.train.num_seen_samples == pytest.approx(12.8e9, rel=0.03)
    # Nothing that the table doesn't have.
    assert config.train.optimizer.layer_decay == 1.0
    assert config.train.optimizer.clip_norm is None
    assert config.view.captions == "real"
    assert config.view.fraction == 1.0


def test_upernet_vit_b16_is_table_14():
    config = upernet_vit_b16()
    assert config.task == "segmentation"
    assert config.model.crop_size == 512
    assert config.train.steps == 160_000
    assert config.train.batch_size == 16
    assert config.train.schedule.warmup_steps == 1_500
    assert config.train.schedule.shape == "polynomial"
    assert config.train.optimizer.weight_decay == 0.01
    # One point of each sweep.
    assert config.model.drop_path in {0.0, 0.05, 0.1, 0.15, 0.2}
    assert config.train.schedule.peak in {5e-4, 2e-4, 1e-4}
    # mmseg's UPerHead for ADE20K.
    assert (config.model.head_channels, config.model.auxiliary_channels) == (512, 256)
    assert config.model.scale == (0.5, 2.0)


def test_depth_vit_b16_is_table_15():
    config = depth_vit_b16()
    assert config.task == "depth"
    assert config.model.crop_size == 480
    assert config.train.batch_size == 24
    # 25 epochs of NYUv2's 24,231 training images.
    assert config.train.steps == 25 * (24_231 // 24)
    assert config.train.optimizer.layer_decay == 0.8
    assert config.train.optimizer.weight_decay == 0.05
    assert config.model.drop_path in {0.0, 0.05, 0.1, 0.15, 0.2}
    assert config.train.schedule.peak in {7e-4, 5e-4, 2e-4, 1e-4}
    assert config.model.flip_test


def test_captioner_is_open_clips():
    """coca_ViT-L-14's own config, and generation at open_clip's defaults."""
    import inspect

    import open_clip
    from open_clip.coca_model import CoCa

    theirs = open_clip.get_model_config("coca_ViT-L-14")
    clip = coca_vit_l14().model.clip
    assert clip.embed_dim == theirs["embed_dim"]
    names = ("image_size", "patch_size", "width", "layers")
    assert {n: getattr(clip.vision, n) for n in names} == {
        n: theirs["vision_cfg"][n] for n in names
    }
    names = ("context_length", "vocab_size", "width", "heads", "layers")
    assert {n: getattr(clip.text, n) for n in names} == {n: theirs["text_cfg"][n] for n in names}
    assert coca_vit_l14().model.decoder_layers == theirs["multimodal_cfg"]["layers"]
    defaults = {n: p.default for n, p in inspect.signature(CoCa.generate).parameters.items()}
    generate = recaption_beam().generate
    assert generate.method == defaults["generation_type"]
    names = ("num_beams", "num_beam_groups", "top_p", "top_k")
    assert {n: getattr(generate, n) for n in names} == {n: defaults[n] for n in names}
