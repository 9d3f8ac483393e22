"""Training a CoCa captioner."""

from dataclasses import replace

from clipmill.data.augmentation import RandomResizedCropConfig
from clipmill.data.captioners import GenerateConfig
from clipmill.data.recaption import RecaptionConfig
from clipmill.engine.config import AdamWConfig, TrainConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.models.towers import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.pretrain.coca import CaptionerConfig
from clipmill.pretrain.pairs import LoadConfig


def coca_vit_l14() -> CaptionerConfig:
    """CoCa ViT-L/14 fine-tuned on a captioning set, as open_clip did on COCO captions.

    Source: open_clip, ``coca_ViT-L-14`` and the fine-tuning command in its README.
    Command: ``torchrun --nproc-per-node 8 -m clipmill data train-captioner --recipe coca-vit-l14``
    Hardware and hours: not run.
    """
    return CaptionerConfig(
        model=CocaConfig(
            clip=ClipConfig(
                embed_dim=768,
                vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24),
                text=TextConfig(context_length=76, width=768, heads=12, layers=12),
            ),
            decoder_layers=12,
            num_queries=256,
        ),
        contrastive_weight=0.0,
        captioning_weight=1.0,
        train=TrainConfig(
            steps=4_500,
            batch_size=128,
            schedule=ScheduleConfig(peak=1e-5, minimum=0.0, warmup_steps=1_000),
            optimizer=AdamWConfig(betas=(0.9, 0.98), weight_decay=0.1),
            precision="bf16",
            checkpoint_steps=500,
        ),
    )


def coca_miniature() -> CaptionerConfig:
    """A CoCa of 1.2 M parameters at 64 px, from scratch on well-captioned scenes.

    Source: ours, derived from :func:`coca_vit_l14`.
    Command: ``clipmill data train-captioner --recipe coca-miniature ...``
    Hardware and time: see docs/log.md.
    """
    full = coca_vit_l14()
    return replace(
        full,
        model=CocaConfig(
            clip=ClipConfig(
                embed_dim=128,
                vision=VisionConfig(image_size=64, timm_model="test_resnet"),
                text=TextConfig(context_length=18, vocab_size=2048, width=128, heads=4, layers=1),
            ),
            decoder_layers=1,
            token_stride=8,
        ),
        crop=RandomResizedCropConfig(scale=(0.9, 1.0), ratio=(0.9, 1.1)),
        load=LoadConfig(num_workers=0),
        train=replace(
            full.train,
            steps=400,
            batch_size=24,
            schedule=ScheduleConfig(peak=5e-3, minimum=1e-5, warmup_steps=20),
            optimizer=AdamWConfig(betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0),
            precision="fp32",
            checkpoint_steps=50,
            log_steps=10,
            num_threads=2,
        ),
    )


def recaption_beam() -> RecaptionConfig:
    """open_clip's beam search, at its defaults.

    Source: open_clip, ``CoCa.generate``.
    Hardware and hours: not run.
    """
    return RecaptionConfig()


def recaption_miniature() -> RecaptionConfig:
    """Greedy captions on two CPU cores.

    Source: ours, derived from :func:`recaption_beam`.
    """
    return RecaptionConfig(
        generate=GenerateConfig(method="top_k", top_k=1, max_tokens=17),
        batch_size=128,
        num_threads=2,
    )
