"""CLIP with quality captions: contrastive pretraining on real and synthetic captions."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.view import View, ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.towers import ClipConfig
from clipmill.pretrain.pairs import LoadConfig, pair_batches
from clipmill.stages import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Config):
    """A CLIP pretraining run."""

    model: ClipConfig = ClipConfig()
    """The two towers."""
    view: ViewConfig = ViewConfig()
    """Which captions of which samples."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation."""
    load: LoadConfig = LoadConfig()
    """Where samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


def pretrain(config: PretrainConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train CLIP on the dataset at that URI; the URI of the checkpoint, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), config.view)
    uri = result_uri(store, "encoders", config.view.captions, config, view.parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.loop import train
    from clipmill.pretrain.clip_objective import ClipObjective

    trained = train(
        lambda here: ClipObjective(config.model, here),
        lambda cursor, here: pair_batches(
            view,
            config.load,
            config.train,
            crop=CropTransform(config.model.vision.image_size, config.crop),
            tokenizer=config.model.text.tokenizer(),
            here=here,
            cursor=cursor,
        ),
        config.train,
        name="clip",
        state_uri=f"{uri}/state",
        report=report,
    )
    card = ModelCard(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=view.parents,
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={
            "captions": config.view.captions,
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
    )
    tensors = {
        k.removeprefix("clip."): v for k, v in trained.tensors.items() if k.startswith("clip.")
    }
    save_result(uri, card, tensors, trained)
    return uri
