"""Judging CLIP without training."""

from clipmill.tasks.zero_shot_config import RetrievalConfig, ZeroShotConfig
from clipmill.tasks.zero_shot_prompts import IMAGENET


def zero_shot() -> ZeroShotConfig:
    """Any labelled pictures, with OpenAI's 80 sentences.

    Source: Radford et al. 2021, section 3.1.
    Command: ``clipmill zero-shot MODEL --data FOLDER --classes NAMES.txt --store URI``
    """
    return ZeroShotConfig()


def zero_shot_imagenet() -> ZeroShotConfig:
    """ImageNet-1K's validation split by wnid, OpenAI's names and 80 sentences.

    Source: Radford et al. 2021, and open_clip's copy of names and sentences.
    Command: ``clipmill zero-shot MODEL --recipe zero-shot-imagenet --data imagenet --store URI``
    Hardware and hours: not run.
    """
    return ZeroShotConfig(classes=IMAGENET)


def retrieval() -> RetrievalConfig:
    """Image-text retrieval, at most five captions an image.

    Source: COCO's and Flickr30k's custom since Karpathy and Fei-Fei 2015.
    Command: ``clipmill retrieval MODEL --data captions_val2014.json --store URI``
    """
    return RetrievalConfig()
