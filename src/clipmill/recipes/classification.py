"""Classification recipes, and the zero-shot and retrieval evaluations of CLIP."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.tasks.config import ClassificationConfig
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.zero_shot import IMAGENET, RetrievalConfig, ZeroShotConfig

# 1,281,167 images at batch 1024, the last batch of an epoch left out as timm does.
_STEPS_OF_AN_EPOCH = 1_251


def classification_vit_b16() -> FinetuneConfig:
    """Full fine-tuning on ImageNet-1K: 100 epochs, 5 of warm-up, at batch 1024.

    Source: CLIP-QC, Table 12; it gives no layer decay, so the rate is one for all layers.
    Command: ``clipmill finetune --recipe classification-vit-b16 --encoder URI --data IMAGENET``
    Hardware and hours: not run.
    Expected: top-1 85.9 from DataComp, 86.4 from DataCompDR (CLIP-QC, Table 1).
    """
    return FinetuneConfig(
        task="classification",
        model=ClassificationConfig(),
        train=TrainConfig(
            steps=100 * _STEPS_OF_AN_EPOCH,
            batch_size=1024,
            schedule=ScheduleConfig(
                name="cosine", lr=1e-4, min_lr=0.0, warmup_steps=5 * _STEPS_OF_AN_EPOCH
            ),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            ema_decay=0.9995,
            precision="bf16",
        ),
    )


def classification_vit_b16_384() -> FinetuneConfig:
    """As :func:`classification_vit_b16`, tested at 384 pixels with interpolated positions.

    Source: CLIP-QC, classification table; test crop 1.0, as is usual at 384.
    Hardware and hours: not run.
    Expected: top-1 87.2 from DataCompDR.
    """
    full = classification_vit_b16()
    model = ClassificationConfig(image_size=384, test_size=384, test_crop=1.0)
    return replace(full, model=model)


def linear_probe_vit_b16() -> FinetuneConfig:
    """Linear probe on ImageNet-1K: the encoder is frozen, its projection replaced.

    Source: CLIP-QC, Table 12.
    Command: ``clipmill finetune --recipe linear-probe-vit-b16 --encoder URI --data IMAGENET``
    Hardware and hours: not run.
    Expected: top-1 81.8 from DataComp, 82.4 from DataCompDR (CLIP-QC, Table 1).
    """
    full = classification_vit_b16()
    train = full.train
    return replace(
        full,
        model=ClassificationConfig(freeze_encoder=True),
        train=replace(
            train,
            schedule=replace(train.schedule, lr=5e-4),
            optimizer=replace(train.optimizer, weight_decay=0.0005),
        ),
    )


def classification_tiny() -> FinetuneConfig:
    """Full fine-tuning at 64 px, half a minute of one core.

    Source: ours, derived from :func:`classification_vit_b16`.
    Command: ``clipmill finetune --recipe classification-tiny --encoder URI --data FOLDER``
    Hardware and time: see docs/hardware.md.
    """
    return _tiny(classification_vit_b16(), steps=200, peak=1e-3)


def linear_probe_tiny() -> FinetuneConfig:
    """A linear probe at 64 px, seconds of one core.

    Source: ours, derived from :func:`linear_probe_vit_b16`.
    Command: ``clipmill finetune --recipe linear-probe-tiny --encoder URI --data FOLDER``
    Hardware and time: see docs/hardware.md.
    """
    return _tiny(linear_probe_vit_b16(), steps=200, peak=2e-2)


def _tiny(full: FinetuneConfig, *, steps: int, peak: float) -> FinetuneConfig:
    assert isinstance(full.model, ClassificationConfig)
    return replace(
        full,
        model=replace(
            full.model,
            image_size=64,
            test_size=64,
            test_crop=1.0,
            scale=(0.6, 1.0),
            drop_path=0.0,
            num_workers=0,
        ),
        train=replace(
            full.train,
            steps=steps,
            batch_size=32,
            schedule=replace(full.train.schedule, lr=peak, warmup_steps=10),
            ema_decay=None,
            precision="fp32",
            checkpoint_every=50,
            log_every=10,
            num_threads=1,
        ),
    )


def zero_shot() -> ZeroShotConfig:
    """Any labeled images, with OpenAI's 80 sentences.

    Source: Radford et al. 2021, section 3.1.
    Command: ``clipmill eval zero-shot MODEL --data FOLDER --classes NAMES.txt --store URI``
    """
    return ZeroShotConfig()


def zero_shot_imagenet() -> ZeroShotConfig:
    """ImageNet-1K's validation split by wnid, OpenAI's names and 80 sentences.

    Source: Radford et al. 2021, and open_clip's copy of names and sentences.
    Command: ``clipmill eval zero-shot MODEL --recipe zero-shot-imagenet --data imagenet
    --store URI``
    Hardware and hours: not run.
    """
    return ZeroShotConfig(classes=IMAGENET)


def retrieval() -> RetrievalConfig:
    """Image-text retrieval, at most five captions an image.

    Source: COCO's and Flickr30k's custom since Karpathy and Fei-Fei 2015.
    Command: ``clipmill eval retrieval MODEL --data captions_val2014.json --store URI``
    """
    return RetrievalConfig()
