"""CLIP judged while it trains: retrieval among held-out pairs, and zero-shot classification.

Shapes: B samples, T text length, D embedding width, C classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.data.dataset import cache_folder
from clipmill.data.loading.view import View, in_fraction
from clipmill.data.shards.read import read_shard
from clipmill.errors import BadSampleError, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.config import VisionConfig
from clipmill.models.preprocess import tower_image
from clipmill.models.retrieval import pair_accuracy, recall
from clipmill.models.tokenizer import Tokenizer
from clipmill.pretrain.config import ValidationConfig

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.engine.distributed import Ranks
    from clipmill.engine.objective import Objective
    from clipmill.engine.validation import Evaluation

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def clip_evaluations(
    config: ValidationConfig, view: View, tokenizer: Tokenizer, vision: VisionConfig
) -> "tuple[Evaluation, ...]":
    """The evaluations for the loop, of an objective whose module ``clip`` has both encoders.

    Retrieval takes real captions of the dataset's samples outside of the view's fraction, which
    training doesn't see.

    Raises:
        ConfigError: nothing is held out, or the folder has no class.
    """
    from clipmill.engine.validation import Evaluation

    if not config.every_steps:
        return ()
    found: list[Evaluation] = []
    if config.num_pairs:
        images, captions = _held_out(view, config.num_pairs, vision)
        tokens_BT = tokenizer(captions)

        def retrieval(objective: "Objective", here: "Ranks") -> Mapping[str, float]:
            image_BD, text_BD = (
                _embed(images, objective, here, config.batch_size, _image_encoder),
                _embed(tokens_BT, objective, here, config.batch_size, _text_encoder),
            )
            return recall(image_BD, text_BD) | pair_accuracy(image_BD, text_BD)

        found.append(Evaluation(name="retrieval", every_steps=config.every_steps, judge=retrieval))
    if config.class_folder:
        pictures, labels, names = _classes(Path(config.class_folder), vision)
        prompts = tokenizer([t.format(name) for name in names for t in config.templates])

        def zero_shot(objective: "Objective", here: "Ranks") -> Mapping[str, float]:
            text = _embed(prompts, objective, here, config.batch_size, _text_encoder)
            class_CD = text.view(len(names), -1, text.shape[1]).mean(1)
            image_BD = _embed(pictures, objective, here, config.batch_size, _image_encoder)
            guessed_B = (image_BD @ class_CD.T / class_CD.norm(dim=1)).argmax(1)
            return {"top1": float((guessed_B == labels.to(guessed_B.device)).float().mean())}

        found.append(Evaluation(name="zero-shot", every_steps=config.every_steps, judge=zero_shot))
    return tuple(found)


def _image_encoder(objective: Any, images_B3HW: "Tensor") -> "Tensor":
    embedded: Tensor = objective.clip.encode_image(
        objective.normalize(images_B3HW.float() / 255), normalize=True
    )
    return embedded


def _text_encoder(objective: Any, tokens_BT: "Tensor") -> "Tensor":
    embedded: Tensor = objective.clip.encode_text(tokens_BT, normalize=True)
    return embedded


def _embed(
    values: "Tensor",
    objective: "Objective",
    here: "Ranks",
    batch_size: int,
    encode: "Callable[[Any, Tensor], Tensor]",
) -> "Tensor":
    import torch

    return torch.cat(
        [encode(objective, p.to(here.device)) for p in torch.split(values, batch_size)]
    )


def _held_out(view: View, num_pairs: int, vision: VisionConfig) -> "tuple[Tensor, list[str]]":
    """Up to so many pairs outside of the view, in the dataset's order."""
    images: list[Any] = []
    captions: list[str] = []
    for index in range(len(view.dataset.shards) if view.config.fraction < 1 else 0):
        with read_shard(view.dataset, index, cache_folder()) as reader:
            for row, uid in enumerate(reader.uids):
                if not in_fraction(uid, view.config.fraction) and len(images) < num_pairs:
                    images.append(decode_rgb(reader.image(row)))
                    captions.append(reader.caption(row))
        if len(images) == num_pairs:
            break
    if not images:
        raise ConfigError(
            f"the view has {view.config.fraction:g} of the dataset, so that no pair is held out",
            expected="a fraction below 1, and samples outside of it",
            action="set view.fraction=0.95, say, or num_pairs=0 for no retrieval",
        )
    return _stacked(images, vision), captions


def _classes(folder: Path, vision: VisionConfig) -> "tuple[Tensor, Tensor, Sequence[str]]":
    """All pictures, the number of the class of each, and the classes' names."""
    import torch

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
                        expected="pictures that can be decoded",
                        action="remove or mend it",
                    ) from error
                labels.append(label)
    if not images:
        raise ConfigError(
            f"class_folder {folder} has no picture in a folder of its class",
            expected="folder/CLASS NAME/picture.jpg",
            action="correct the folder, or leave class_folder empty",
        )
    return _stacked(images, vision), torch.tensor(labels), names


def _stacked(images: Iterable[Any], vision: VisionConfig) -> "Tensor":
    import numpy as np
    import torch

    whole_BHW3 = np.stack([tower_image(image, vision) for image in images])
    return torch.from_numpy(whole_BHW3).permute(0, 3, 1, 2)
