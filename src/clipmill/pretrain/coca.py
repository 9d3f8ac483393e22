"""Training a CoCa captioner on a dataset with good captions.

As CoCa was fine-tuned on COCO's captions before it wrote those of DataCompDR.
"""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.view import View, ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.towers import CocaConfig
from clipmill.pretrain.pairs import LoadConfig, pair_batches
from clipmill.stage_records import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerConfig(Config):
    """A CoCa training run."""

    model: CocaConfig = CocaConfig()
    """Towers and decoder."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss (open_clip's default)."""
    captioning_weight: float = 2.0
    """Weight of the captioning loss (open_clip's default)."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation."""
    load: LoadConfig = LoadConfig()
    """How samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


def train_captioner(config: CaptionerConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train CoCa on the dataset's real captions; the URI of the checkpoint, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real"))
    uri = result_uri(store, "captioners", "coca", config, view.parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.loop import train
    from clipmill.pretrain.coca_objective import CocaObjective

    clip = config.model.clip
    trained = train(
        lambda here: CocaObjective(config, here),
        lambda cursor, here: pair_batches(
            view,
            config.load,
            config.train,
            crop=CropTransform(clip.vision.image_size, config.crop),
            tokenizer=clip.text.tokenizer(is_padded=True),
            here=here,
            cursor=cursor,
        ),
        config.train,
        name="coca",
        state_uri=f"{uri}/state",
        report=report,
    )
    card = ModelCard(
        kind="coca",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=view.parents,
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={"seen samples": f"{config.train.num_seen_samples:,}"},
    )
    tensors = {
        k.removeprefix("coca."): v for k, v in trained.tensors.items() if k.startswith("coca.")
    }
    save_result(uri, card, tensors, trained)
    return uri
