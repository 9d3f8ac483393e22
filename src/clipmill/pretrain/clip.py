"""CLIP with quality captions: contrastive pretraining on real and synthetic captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.stored_augmentation import ReplayTransform
from clipmill.data.view import View, ViewConfig
from clipmill.digest import digest_json
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import ModelCard, has_checkpoint, save_checkpoint
from clipmill.models.range_augment_config import RangeAugmentConfig
from clipmill.models.towers import ClipConfig, TowerOptions
from clipmill.pretrain.distillation import DistillationConfig, teacher_parent
from clipmill.pretrain.in_training_evaluation import InTrainingConfig, clip_evaluations
from clipmill.pretrain.pairs import LoadConfig, pair_batches
from clipmill.pretrain.start import find_start
from clipmill.stage_records import Report
from clipmill.storage import join

if TYPE_CHECKING:
    from clipmill.data.batches import PairBatch
    from clipmill.engine.distributed import Ranks
    from clipmill.pretrain.clip_objective import ClipObjective


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Config):
    """A CLIP pretraining run."""

    model: ClipConfig = ClipConfig()
    """The two towers."""
    init: str = ""
    """Address of the weights to start from; empty for random ones."""
    towers: TowerOptions = TowerOptions()
    """How the towers are run."""
    distillation: DistillationConfig | None = None
    """Learning from a teacher layer; null to learn from captions alone."""
    view: ViewConfig = ViewConfig()
    """Which captions of which samples."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation; with distillation the layer's own is replayed instead."""
    range_augment: RangeAugmentConfig | None = None
    """Learnt photometric augmentation on the device; null for none."""
    load: LoadConfig = LoadConfig()
    """Where samples are read and decoded."""
    evaluation: InTrainingConfig = InTrainingConfig(every_steps=0)
    """What is judged while it trains."""
    train: TrainConfig
    """Length, rate, precision."""

    def __post_init__(self) -> None:
        """Refuse losses that don't go together (ConfigError)."""
        if self.distillation is not None and self.model.loss == "sigmoid":
            raise ConfigError(
                "model.loss was 'sigmoid', with distillation",
                expected="softmax: teachers give a distribution over a batch",
                action="set model.loss=softmax, or distillation=null",
            )
        if self.distillation is not None and self.range_augment is not None:
            raise ConfigError(
                "range_augment was given, with distillation",
                expected="null: teachers speak of the stored augmentation, not of a changed one",
                action="set range_augment=null, or distillation=null",
            )


def pretrain(config: PretrainConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train CLIP on the dataset at that URI; the URI of the checkpoint, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), config.view)
    start = find_start(config.init)
    parents = view.parents
    if start is not None:
        parents += (start.parent,)
    if config.distillation is not None:
        parents += (teacher_parent(view, config.distillation),)
    uri = result_uri(store, "encoders", config.view.captions, config, parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.loop import train
    from clipmill.pretrain.embedding import training_embedding
    from clipmill.pretrain.start_weights import load_start

    def objective(here: "Ranks") -> "ClipObjective":
        made = clip_objective(config, here)
        if start is not None:
            load_start(start, made.clip, config.model)
        return made

    trained = train(
        objective,
        lambda cursor, here: clip_batches(config, view, here, cursor),
        config.train,
        name="clip",
        state_uri=f"{uri}/state",
        report=report,
        evaluations=clip_evaluations(
            config.evaluation, view, config.model.text.tokenizer(), config.model.vision
        ),
    )
    card = ModelCard(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=parents,
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
    save_result(
        uri,
        card,
        tensors,
        trained,
        embed=lambda: training_embedding(config.model, tensors, view),
    )
    return uri


def random_encoder(config: PretrainConfig, store: str) -> str:
    """A checkpoint of the config's towers that has learned nothing: a comparison's baseline.

    Its weights follow from ``train.seed``; the card says that they are random.
    """
    untrained = {"model": config.model.to_json(), "seed": config.train.seed}
    uri = join(store, "encoders", f"random-{digest_json(untrained)[:12]}")
    if has_checkpoint(uri):
        return uri
    import torch

    from clipmill.models.towers import build_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        tensors = build_clip(config.model).state_dict()
    card = ModelCard(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=untrained,
        parents=(),
        metrics={},
        summary={"weights": "random", "seed": str(config.train.seed)},
    )
    save_checkpoint(uri, card, tensors)
    return uri


def clip_objective(config: PretrainConfig, here: "Ranks") -> "ClipObjective":
    """What the run minimises, with random weights."""
    from clipmill.pretrain.clip_objective import ClipObjective

    return ClipObjective(
        config.model,
        here,
        options=config.towers,
        range_augment=config.range_augment,
        distillation=config.distillation,
    )


def clip_batches(
    config: PretrainConfig, view: View, here: "Ranks", cursor: int
) -> "Iterator[PairBatch]":
    """This rank's batches from update ``cursor`` on."""
    from clipmill.data.teacher_rows import Teaching

    size = config.model.vision.image_size
    teaching = None
    if config.distillation is not None:
        teaching = Teaching(config.distillation.layer, ReplayTransform(size))
    return pair_batches(
        view,
        config.load,
        config.train,
        crop=CropTransform(size, config.crop),
        tokenizer=config.model.text.tokenizer(),
        teaching=teaching,
        here=here,
        cursor=cursor,
    )
