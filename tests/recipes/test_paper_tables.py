"""The full recipes, line by line against the tables that they cite (CLIP-QC)."""

import inspect

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.towers import build_clip, text_kwargs, vision_kwargs
from clipmill.pretrain.config import (
    MaePretrainConfig,
    PretrainConfig,
    SupervisedConfig,
    TeacherConfig,
)
from clipmill.recipes.data import coca_vit_l14, recaption_beam
from clipmill.recipes.finetune import depth_vit_b16, upernet_vit_b16
from clipmill.recipes.registry import get_recipe
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task

BATCH = 65_536

TABLE_11 = {
    "model.vision.image_size": 224,
    "model.text.context_length": 77,
    "random_resized_crop.scale": (0.9, 1.0),
    "random_resized_crop.ratio": (0.75, 1.33),
    "train.steps": 200_000,
    "train.schedule.warmup_steps": 2_000,
    "train.batch_size": BATCH,
    "train.optimizer.betas": (0.9, 0.95),
    "train.schedule.lr": 1e-3,
    "train.schedule.min_lr": 1e-6,
    "train.schedule.name": "cosine",
    "train.optimizer.weight_decay": 0.2,
    "train.precision": "bf16",
    "train.ema_decay": 0.9995,
    "range_augment.psnr_start_db": 40.0,
    "range_augment.psnr_end_db": 20.0,
}

LENGTHS = {
    # The text's 12.8 B, rounded: 200k times 65,536 is 13.1 B.
    "clip-vit-b16-12.8b": 12.8e9,
    "clip-vit-b16-5b": 5.0e9,
    "clip-vit-b16-2.05b": 2.05e9,
    "clip-vit-b16-after-mae": 5.0e9,
    "clip-vit-b32-12.8b": 12.8e9,
    "clip-vit-l14-12.8b": 12.8e9,
    "clip-vit-s16-12.8b": 12.8e9,
    "clip-vit-ti16-12.8b": 12.8e9,
    "siglip-vit-b16-12.8b": 12.8e9,
    "clip-vit-b16-distilled-12.8b": 12.8e9,
    "clip-mci0-12.8b": 12.8e9,
    "clip-mci1-12.8b": 12.8e9,
    "clip-mci2-12.8b": 12.8e9,
}
"""Seen samples of the runs at the paper's batch."""

SCALING = {
    "clip-vit-b16-scaling-1.28m": 0.001,
    "clip-vit-b16-scaling-12.8m": 0.01,
    "clip-vit-b16-scaling-128m": 0.1,
    "clip-vit-b16-scaling-1.28b": 1.0,
}
"""Parts of 1.28 B pairs (CLIP-QC, Figure 2)."""


def at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("line", TABLE_11)
def test_clip_vit_b16_is_table_11(line):
    assert at(get_recipe("clip-vit-b16-12.8b", PretrainConfig), line) == TABLE_11[line]


def test_clip_vit_b16_has_nothing_that_table_11_lacks():
    config = get_recipe("clip-vit-b16-12.8b", PretrainConfig)
    assert config.model.vision.patch_size == 16
    assert config.train.optimizer.layer_decay == 1.0
    assert config.train.optimizer.clip_norm is None
    assert (config.view.captions, config.view.subset_fraction) == ("real", 1.0)
    assert (config.init, config.distillation) == ("", None)
    assert config.tower_options.patch_dropout == 0.0


@pytest.mark.parametrize("name", [*LENGTHS, *SCALING])
def test_other_runs_differ_from_table_11_by_what_they_are_named_after(name):
    config = get_recipe(name, PretrainConfig)
    is_mobile = "mci" in name
    lines = dict(TABLE_11)
    if config.distillation is not None:  # the teachers' stored augmentation is replayed instead
        assert config.range_augment is None
        lines = {line: v for line, v in lines.items() if not line.startswith("range_augment.")}
    differing = {p for p, v in lines.items() if at(config, p) != v}
    allowed = {"train.steps"} | ({"model.vision.image_size"} if is_mobile else set())
    assert differing <= allowed
    if name in LENGTHS:
        assert config.train.num_seen_samples == pytest.approx(LENGTHS[name], rel=0.03)
        assert config.view.subset_fraction == 1.0
    else:
        assert config.train.steps == 20_000
        assert config.view.subset_fraction == SCALING[name]
    assert config.train.optimizer.clip_norm == (1.0 if is_mobile else None)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("clip-vit-b16-12.8b", "ViT-B-16"),
        ("clip-vit-b32-12.8b", "ViT-B-32"),
        ("clip-vit-l14-12.8b", "ViT-L-14"),
        ("clip-vit-s16-12.8b", "ViT-S-16"),
    ],
)
def test_towers_are_open_clips(name, theirs):
    expected = open_clip.get_model_config(theirs)
    model = get_recipe(name, PretrainConfig).model
    assert model.embed_dim == expected["embed_dim"]
    assert {k: getattr(model.vision, k) for k in expected["vision_cfg"]} == expected["vision_cfg"]
    assert {k: getattr(model.text, k) for k in expected["text_cfg"]} == expected["text_cfg"]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("clip-mci0-12.8b", "MobileCLIP2-S0"),
        ("clip-mci1-12.8b", "MobileCLIP-S1"),
        ("clip-mci2-12.8b", "MobileCLIP-S2"),
    ],
)
def test_mobile_towers_are_open_clips(name, theirs):
    """Whose weights a model of ours takes, tensor by tensor."""
    expected = open_clip.get_model_config(theirs)
    model = get_recipe(name, PretrainConfig).model
    assert vision_kwargs(model.vision).items() <= expected["vision_cfg"].items()
    assert text_kwargs(model.text) == expected["text_cfg"]
    with torch.device("meta"):
        ours = build_clip(model).state_dict()
        built = open_clip.CustomTextCLIP(
            embed_dim=expected["embed_dim"],
            vision_cfg=expected["vision_cfg"],
            text_cfg=expected["text_cfg"],
        )
    shapes = {k.removeprefix("text."): v.shape for k, v in built.state_dict().items()}
    assert {k: v.shape for k, v in ours.items()} == shapes
    # MobileCLIP's image statistics.
    assert (model.vision.mean, model.vision.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("clip-mci0-12.8b", (0.0, 1.0)),
        ("clip-mci0-12m", (0.0, 1.0)),
        ("clip-vit-b16-distilled-12.8b", (0.25, 0.75)),
    ],
)
def test_distillation_is_mobileclips(name, weights):
    config = get_recipe(name, PretrainConfig).distillation
    assert (config.contrastive_weight, config.weight) == weights
    assert (config.teacher_widths, config.teacher_scale) == ((768, 768), 100.0)


@pytest.mark.parametrize("name", ["clip-vit-b16-12m", "clip-mci0-12m"])
def test_runs_on_12_million_pairs_are_mobileclips(name):
    train = get_recipe(name, PretrainConfig).train
    assert (train.steps, train.batch_size, train.schedule.warmup_steps) == (30_000, 8_192, 1_000)


@pytest.mark.parametrize(
    ("name", "seen"), [("mae-vit-b16-2.05b", 2.05e9), ("mae-vit-b16-5b", 5.0e9)]
)
def test_mae_is_its_papers(name, seen):
    """He et al. 2022, Table 8, at CLIP's seen samples."""
    config = get_recipe(name, MaePretrainConfig)
    model, train = config.model, config.train
    assert model.mask_ratio == 0.75
    assert (model.decoder_width, model.decoder_layers, model.decoder_heads) == (512, 8, 16)
    vision = model.vision
    assert (vision.image_size, vision.patch_size, vision.width, vision.layers) == (224, 16, 768, 12)
    assert config.random_resized_crop.scale == (0.2, 1.0)
    assert train.batch_size == 4096
    assert train.schedule.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert train.schedule.warmup_steps == pytest.approx(40 * 1_281_167 / 4096, abs=1)
    assert (train.optimizer.betas, train.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert train.ema_decay is None
    assert train.num_seen_samples == pytest.approx(seen, rel=1e-5)


def test_clip_after_mae_has_maes_tower():
    mae = get_recipe("mae-vit-b16-5b", MaePretrainConfig).model.vision
    assert get_recipe("clip-vit-b16-after-mae", PretrainConfig).model.vision == mae


@pytest.mark.parametrize("size", [0, 1, 2])
def test_supervised_baseline_is_fastvits(size):
    """apple/ml-fastvit's README and the defaults of its train.py."""
    config = get_recipe(f"supervised-mci{size}", SupervisedConfig)
    assert config.vision.timm_model == f"fastvit_mci{size}"
    assert config.vision.image_size == 256
    assert (config.mixup, config.cutmix, config.random_erasing_prob) == (0.2, 1.0, 0.25)
    assert config.label_smoothing == 0.1
    assert config.augmentation.crop.scale == (0.08, 1.0)
    assert (config.augmentation.magnitude, config.augmentation.magnitude_deviation) == (9.0, 0.5)
    train = config.train
    assert train.batch_size == 8 * 128
    assert train.num_seen_samples == pytest.approx(300 * 1_281_167, rel=1e-3)
    assert train.schedule.warmup_steps == 5 * (1_281_167 // 1024)
    assert (train.schedule.lr, train.schedule.min_lr) == (1e-3, 1e-5)
    assert train.optimizer.weight_decay == 0.05
    assert train.ema_decay == 0.9995


def test_datacompdrs_teachers():
    config = get_recipe("teacher-datacompdr", TeacherConfig)
    assert config.num_augmentations == 30
    known = open_clip.list_pretrained()
    for name in config.models:
        assert tuple(name.removeprefix("open_clip:").split("/")) in known
    assert len(config.models) == 2


def test_upernet_vit_b16_is_table_14():
    config = upernet_vit_b16()
    assert config.task == "segmentation"
    assert config.model.crop_size == 512
    assert config.train.steps == 160_000
    assert config.train.batch_size == 16
    assert config.train.schedule.warmup_steps == 1_500
    assert config.train.schedule.name == "polynomial"
    assert config.train.optimizer.weight_decay == 0.01
    # One point of each sweep.
    assert config.model.drop_path in {0.0, 0.05, 0.1, 0.15, 0.2}
    assert config.train.schedule.lr in {5e-4, 2e-4, 1e-4}
    # mmseg's UPerHead for ADE20K.
    assert (config.model.head_channels, config.model.auxiliary_channels) == (512, 256)
    assert config.model.scale == (0.5, 2.0)


TABLE_14_MOBILE = {
    "task": "segmentation",
    "model.head": "semantic-fpn",
    "model.crop_size": 512,
    "model.scale": (0.5, 2.0),
    "model.pyramid_channels": 256,
    "model.head_channels": 128,
    "model.test_mode": "whole",
    "train.steps": 40_000,
    "train.batch_size": 64,
    "train.schedule.warmup_steps": 0,
    "train.schedule.name": "polynomial",
    "train.optimizer.weight_decay": 5e-4,
}


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("line", TABLE_14_MOBILE)
def test_semantic_fpn_is_table_14(line, size):
    config = get_recipe(f"semantic-fpn-mci{size}", FinetuneConfig)
    assert at(config, line) == TABLE_14_MOBILE[line]
    assert config.model.drop_path in {0.0, 0.05, 0.1, 0.15, 0.2}
    assert config.train.schedule.lr in {5e-4, 2e-4, 1e-4}


@pytest.mark.parametrize(
    ("size", "head", "paper"), [(0, 4.25, 14.5), (1, 4.25, 24.6), (2, 4.31, 38.5)]
)
def test_mobile_parameters(size, head, paper):
    """Millions, with SemanticFPN for ADE20K's 150 classes (CLIP-QC, mobile tables).

    Ours are 1.7 to 3.5% more. No head explains the paper's: what it leaves to one beside our
    encoders is 3.8, 3.7 and 3.6 M, less for MCi2, whose maps are wider, than for MCi0. The
    encoders agree: with Mask R-CNN for COCO's 80 classes they are within 1% of its table.
    """
    config = get_recipe(f"semantic-fpn-mci{size}", FinetuneConfig)
    encoder = EncoderConfig(vision=VisionConfig(timm_model=f"fastvit_mci{size}"))
    with torch.device("meta"):
        network = get_task("segmentation").build_inference_model(config.model, encoder, ("",) * 150)
    count = lambda module: sum(p.numel() for p in module.parameters()) / 1e6  # noqa: E731
    assert count(network.head) == pytest.approx(head, abs=0.01)
    assert 0 < count(network) / paper - 1 < 0.035
    mask_rcnn = get_recipe("mask-rcnn-1x", FinetuneConfig)
    with torch.device("meta"):
        detector = get_task("detection").build_inference_model(mask_rcnn.model, encoder, ("",) * 80)
    assert count(detector) == pytest.approx({0: 31.0, 1: 41.1, 2: 55.0}[size], rel=0.01)


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
    assert config.train.schedule.lr in {7e-4, 5e-4, 2e-4, 1e-4}
    assert config.model.flip_augment_test
    # Xie et al.'s test: two squares of 480x640, and GLPDepth's crop.
    assert (config.model.num_test_windows, config.model.eigen_crop) == (2, True)


def test_captioner_is_open_clips():
    """coca_ViT-L-14's own config, and generation at open_clip's defaults."""
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
