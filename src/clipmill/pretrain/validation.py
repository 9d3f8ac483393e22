"""Validation of CLIP during training: retrieval among held-out pairs, zero-shot classification.

Shapes: B samples, T text length, D embedding width, C classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmill.data.dataset import cache_folder
from clipmill.data.loading.mixture import Mixture
from clipmill.data.loading.view import View, in_subset
from clipmill.data.shards.read import read_shard
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective, Validator
from clipmill.errors import BadSampleError, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.config import VisionConfig
from clipmill.models.preprocess import tower_image
from clipmill.models.retrieval import pair_accuracy, recall
from clipmill.models.tokenizer import Tokenizer
from clipmill.pretrain.config import ValidationConfig

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def build_validators(
    config: ValidationConfig, mixture: Mixture, tokenizer: Tokenizer, vision: VisionConfig
) -> tuple[Validator, ...]:
    """Build the validators of an objective whose module ``clip`` has both encoders.

    Retrieval takes real captions of a dataset's samples outside of its view's fraction, which
    training doesn't see. Of a mixture each source with such samples has its own validator,
    ``retrieval_NAME``.

    Raises:
        ConfigError: nothing is held out, or the folder has no class.
    """
    if not config.every:
        return ()
    validators: list[Validator] = []
    if config.num_pairs:
        views = {source.name: source.view for source in mixture.sources}
        held_out = {name: v for name, v in views.items() if v.config.subset_fraction < 1} or views
        for source, view in held_out.items():
            images, captions = _validation_pairs(view, config.num_pairs, vision)
            compute = _retrieval(images, tokenizer(captions), config.batch_size)
            name = f"retrieval_{source}" if source else "retrieval"
            validators.append(Validator(name=name, every=config.every, compute=compute))
    if config.zero_shot_dataset:
        class_images, labels, names = _labeled_images(Path(config.zero_shot_dataset), vision)
        prompts = tokenizer([t.format(name) for name in names for t in config.templates])

        def zero_shot(objective: Objective, dist: DistributedContext) -> Mapping[str, float]:
            text = _embed(prompts, objective, dist, config.batch_size, _encode_text)
            class_CD = text.view(len(names), -1, text.shape[1]).mean(1)
            image_BD = _embed(class_images, objective, dist, config.batch_size, _encode_image)
            predicted_B = (image_BD @ class_CD.T / class_CD.norm(dim=1)).argmax(1)
            return {"top1": float((predicted_B == labels.to(predicted_B.device)).float().mean())}

        validators.append(Validator(name="zero_shot", every=config.every, compute=zero_shot))
    return tuple(validators)


def _retrieval(
    images: Tensor, tokens_BT: Tensor, batch_size: int
) -> Callable[[Objective, DistributedContext], Mapping[str, float]]:
    """Return the retrieval among pairs of uint8 images and captions."""

    def retrieval(objective: Objective, dist: DistributedContext) -> Mapping[str, float]:
        image_BD = _embed(images, objective, dist, batch_size, _encode_image)
        text_BD = _embed(tokens_BT, objective, dist, batch_size, _encode_text)
        return recall(image_BD, text_BD) | pair_accuracy(image_BD, text_BD)

    return retrieval


def _encode_image(objective: Any, images_B3HW: Tensor) -> Tensor:
    embedded: Tensor = objective.clip.encode_image(
        objective.normalize(images_B3HW.float() / 255), normalize=True
    )
    return embedded


def _encode_text(objective: Any, tokens_BT: Tensor) -> Tensor:
    embedded: Tensor = objective.clip.encode_text(tokens_BT, normalize=True)
    return embedded


def _embed(
    values: Tensor,
    objective: Objective,
    dist: DistributedContext,
    batch_size: int,
    encode: Callable[[Any, Tensor], Tensor],
) -> Tensor:
    return torch.cat(
        [encode(objective, batch.to(dist.device)) for batch in torch.split(values, batch_size)]
    )


def _validation_pairs(view: View, num_pairs: int, vision: VisionConfig) -> tuple[Tensor, list[str]]:
    """Return up to ``num_pairs`` pairs outside of the view, in the dataset's order."""
    images: list[Any] = []
    captions: list[str] = []
    for index in range(len(view.dataset.shards) if view.config.subset_fraction < 1 else 0):
        with read_shard(view.dataset, index, cache_folder()) as reader:
            for row, uid in enumerate(reader.uids):
                if not in_subset(uid, view.config.subset_fraction) and len(images) < num_pairs:
                    images.append(decode_rgb(reader.image(row)))
                    captions.append(reader.caption(row))
        if len(images) == num_pairs:
            break
    if not images:
        raise ConfigError(
            f"the view has {view.config.subset_fraction:g} of the dataset: no pair is held out",
            expected="a fraction below 1, and samples outside of it",
            action="set view.subset_fraction=0.95, say, or num_pairs=0 for no retrieval",
        )
    return _stack(images, vision), captions


def _labeled_images(folder: Path, vision: VisionConfig) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Return all images, the class index of each, and the classes' names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                try:
                    images.append(decode_rgb(path.read_bytes()))
                except BadSampleError as error:
                    raise ConfigError(
                        f"{path} can't be used: {error}",
                        expected="images that can be decoded",
                        action="remove or fix it",
                    ) from error
                labels.append(label)
    if not images:
        raise ConfigError(
            f"zero_shot_dataset {folder} has no image in a folder of its class",
            expected="folder/CLASS NAME/image.jpg",
            action="correct the folder, or leave zero_shot_dataset empty",
        )
    return _stack(images, vision), torch.tensor(labels), names


def _stack(images: Iterable[Any], vision: VisionConfig) -> Tensor:
    stacked_BHW3 = np.stack([tower_image(image, vision) for image in images])
    return torch.from_numpy(stacked_BHW3).permute(0, 3, 1, 2)
