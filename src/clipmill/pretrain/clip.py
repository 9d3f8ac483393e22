"""CLIP with quality captions: contrastive pretraining on real and synthetic captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.transforms.augmentation import ReplayTransform
from clipmill.data.loading.view import View, ViewConfig
from clipmill.config import digest_json
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint, save_checkpoint
from clipmill.models.config import RangeAugmentConfig
from clipmill.models.config import ClipConfig, TowerOptions
from clipmill.pretrain.teacher import teacher_parent
from clipmill.pretrain.config import DistillationConfig
from clipmill.pretrain.validation import clip_evaluations
from clipmill.pretrain.config import InTrainingConfig
from clipmill.pretrain.dataloader import pair_batches
from clipmill.pretrain.config import LoadConfig
from clipmill.pretrain.init_weights import find_start
from clipmill.stage_records import Report
from clipmill.storage import join
from collections.abc import Sequence
import torch
from torch import Tensor
from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Forward, Objective, synchronizing
from clipmill.models.encoders import Normalize
from clipmill.models.range_augment import RangeAugment
from clipmill.models.towers import MAX_LOGIT_SCALE, build_clip
from clipmill.models.config import ClipConfig, TowerOptions
from clipmill.pretrain.contrastive import CaptionLosses
from clipmill.pretrain.config import DistillationConfig
import contextlib
from torch import Tensor, nn
import logging
from collections.abc import Iterator, Mapping
import numpy as np
from PIL import Image
from clipmill.data.dataset import cache_folder
from clipmill.data.shards.read import read_shard
from clipmill.data.loading.view import View
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from clipmill.models.clip import ClipEmbedder
from clipmill.models.embedding_stats import EmbeddingStatistics, evenly_spaced_indices, statistics_of
from clipmill.models.config import ClipConfig
from clipmill.pretrain.config import PretrainConfig
from clipmill.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from clipmill.data.loading.dataloader import PairBatch
    from clipmill.engine.distributed import Ranks
    from clipmill.pretrain.clip import ClipObjective


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
    from clipmill.engine.trainer import train
    from clipmill.pretrain.clip import training_embedding
    from clipmill.pretrain.init_weights import load_start

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
            config.evaluation, view, Tokenizer.from_config(config.model.text), config.model.vision
        ),
    )
    metadata = CheckpointMetadata(
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
        metadata,
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
    metadata = CheckpointMetadata(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=untrained,
        parents=(),
        metrics={},
        summary={"weights": "random", "seed": str(config.train.seed)},
    )
    save_checkpoint(uri, metadata, tensors)
    return uri


def clip_objective(config: PretrainConfig, here: "Ranks") -> "ClipObjective":
    """What the run minimises, with random weights."""
    from clipmill.pretrain.clip import ClipObjective

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
    from clipmill.data.loading.teacher_targets import Teaching

    size = config.model.vision.image_size
    teaching = None
    if config.distillation is not None:
        teaching = Teaching(config.distillation.layer, ReplayTransform(size))
    return pair_batches(
        view,
        config.load,
        config.train,
        crop=CropTransform(size, config.crop),
        tokenizer=Tokenizer.from_config(config.model.text),
        teaching=teaching,
        here=here,
        cursor=cursor,
    )


_AUGMENTATION = "range_augment"


class ClipObjective(Objective):
    """The loss of (image, caption) for each kind of caption that a batch brings.

    G + S of CLIP-QC: both losses are added, and share the image pass. With distillation, the
    batch brings the teachers' embeddings too.
    """

    def __init__(
        self,
        config: ClipConfig,
        here: Ranks,
        *,
        options: TowerOptions = TowerOptions(),  # noqa: B008  # frozen
        range_augment: RangeAugmentConfig | None = None,
        distillation: DistillationConfig | None = None,
    ) -> None:
        super().__init__()
        self.range_augment = None if range_augment is None else RangeAugment(range_augment)
        self.normalize = Normalize(config.vision.mean, config.vision.std)
        self.clip = build_clip(config, options)
        self._is_distilled = distillation is not None
        self._losses = CaptionLosses(config.loss, here, distillation)

    def forward(
        self,
        batch: PairBatch,
        *,
        features_only: bool = False,
        gradients: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses by caption kind, and RangeAugment's where there is one.

        With ``features_only`` what :meth:`features` gives. With ``gradients`` (of the losses, by
        the features' names and those of the temperature) one number whose gradients are those
        that the losses would have for this micro-batch.
        """
        images_B3HW, augmentation = self._augmented(batch)
        features = self._embed(images_B3HW, batch)
        if features_only:
            return features | augmentation
        if gradients is not None:
            found = features | self._temperature() | augmentation
            parts = [(found[name] * gradient).sum() for name, gradient in gradients.items()]
            return {"replay": torch.stack(parts).sum()}
        losses = self._losses_of(features, self._temperature(), self._teachers([batch]))
        return losses | augmentation

    def features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Unit embeddings (B, D): ``image``, and one for each kind of caption."""
        return self._embed(batch.images_B3HW.float() / 255, batch)

    def _augmented(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, 3, H, W) in 0..1, and the loss that learns how far to change them."""
        images_B3HW = batch.images_B3HW.float() / 255
        if self.range_augment is None or not self.training:
            return images_B3HW, {}
        augmented_B3HW = self.range_augment(images_B3HW)
        loss = self.range_augment.loss(augmented_B3HW, images_B3HW)
        return augmented_B3HW, {_AUGMENTATION: loss}

    def _embed(self, images_B3HW: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        images_B3HW = self.normalize(images_B3HW)
        found = {"image": self.clip.encode_image(images_B3HW, normalize=True)}
        for kind, tokens_BT in (("real", batch.real_BT), ("synthetic", batch.synthetic_BT)):
            if tokens_BT is not None:
                found[kind] = self.clip.encode_text(tokens_BT, normalize=True)
        return {kind: value.float() for kind, value in found.items()}

    def accumulate(self, micro_batches: Sequence[PairBatch], forward: Forward) -> dict[str, Tensor]:
        """Exactly the whole batch's gradients, with one micro-batch's activations at a time.

        Features are computed first, without gradients; the loss over all of them gives each
        feature's gradient; then each piece runs again and takes its own part of these (GradCache;
        Gao et al. 2021). The loss and its exchange between ranks happen once a step.
        """
        if len(micro_batches) == 1:
            return super().accumulate(micro_batches, forward)
        device = micro_batches[0].images_B3HW.device
        states, pieces = [], []
        with torch.no_grad(), without_statistics(self):
            for micro_batch in micro_batches:
                states.append(random_state(device))
                pieces.append(forward(micro_batch, features_only=True))
        augmentation = [piece.pop(_AUGMENTATION) for piece in pieces if _AUGMENTATION in piece]
        whole = {k: torch.cat([p[k] for p in pieces]).requires_grad_() for k in pieces[0]}
        temperature = {k: v.detach().requires_grad_() for k, v in self._temperature().items()}
        losses = self._losses_of(whole, temperature, self._teachers(micro_batches))
        leaves = whole | temperature
        found = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        start = 0
        for number, micro_batch in enumerate(micro_batches, start=1):
            after = start + len(micro_batch.images_B3HW)
            own = {k: gradients[k][start:after] for k in whole}
            own |= {k: gradients[k] / len(micro_batches) for k in temperature}
            if augmentation:
                own[_AUGMENTATION] = torch.ones((), device=device) / len(micro_batches)
            # Patch dropout and the like must fall as they fell before.
            set_random_state(states[number - 1], device)
            with synchronizing(forward, last=number == len(micro_batches)):
                torch.autograd.backward(forward(micro_batch, gradients=own)["replay"])
            start = after
        if augmentation:
            losses[_AUGMENTATION] = torch.stack(augmentation).mean()
        return {kind: value.detach() for kind, value in losses.items()}

    def before_step(self, progress: float) -> None:
        """Let RangeAugment's target follow its curriculum."""
        if self.range_augment is not None:
            self.range_augment.aim(progress)

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _temperature(self) -> dict[str, Tensor]:
        """Factor of the similarities, and what is added to them if anything is."""
        found = {"scale": self.clip.logit_scale.exp()}
        if self.clip.logit_bias is not None:
            found["bias"] = self.clip.logit_bias
        return found

    def _losses_of(
        self,
        features: dict[str, Tensor],
        temperature: dict[str, Tensor],
        teachers: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        return self._losses(features, temperature["scale"], temperature.get("bias"), teachers)

    def _teachers(self, batches: Sequence[PairBatch]) -> dict[str, Tensor]:
        if not self._is_distilled:
            return {}
        found = [_teacher_embeddings(batch) for batch in batches]
        return {name: torch.cat([f[name] for f in found]).float() for name in found[0]}


def _teacher_embeddings(batch: PairBatch) -> dict[str, Tensor]:
    """The teachers' embeddings (B, E) by name: ``image``, and one for each kind of caption."""
    assert batch.teacher_image_BE is not None, "distillation needs batches with teacher embeddings"
    found = {
        "image": batch.teacher_image_BE,
        "real": batch.teacher_real_BE,
        "synthetic": batch.teacher_synthetic_BE,
    }
    return {name: value for name, value in found.items() if value is not None}



@contextlib.contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms see their batch as in training, but don't move their running statistics."""
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    ]
    kept = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, kept, strict=True):
            norm.track_running_stats = value


def random_state(device: torch.device) -> list[Tensor]:
    """Where the random streams of the CPU and of ``device`` stand."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Draw again, from here on, what was drawn after :func:`random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


if TYPE_CHECKING:
    from torch import Tensor

_NUM_IMAGES = 256
_NUM_SHARDS = 8
_BATCH_SIZE = 32

_logger = logging.getLogger(__name__)


def training_embedding(
    config: ClipConfig, tensors: "Mapping[str, Tensor]", view: View
) -> EmbeddingStatistics | None:
    """Statistics over a few hundred of the view's images, seen as an endpoint sees them.

    None where the view has too few.
    """
    embedder = ClipEmbedder(config, tensors)
    prepared = [embedder.prepare(image) for image in _images(view)]
    starts = range(0, len(prepared), _BATCH_SIZE)
    found = [embedder.images(prepared[start : start + _BATCH_SIZE]) for start in starts]
    return statistics_of(np.concatenate(found)) if found else None


def _images(view: View) -> Iterator[Image.Image]:
    """Images from all over the view, but of few shards, since shards are large and far away."""
    indices = evenly_spaced_indices(len(view.dataset.shards), _NUM_SHARDS)
    share = -(-_NUM_IMAGES // len(indices)) if indices else 0
    for index in indices:
        with read_shard(view.dataset, index, cache_folder()) as reader:
            rows = view.open_shard(index, reader.uids, cache_folder()).rows.tolist()
            for row in [rows[place] for place in evenly_spaced_indices(len(rows), share)]:
                try:
                    yield decode_rgb(reader.image(row))
                except BadSampleError as error:
                    _logger.warning("no embedding of %s: %s", reader.uid(row), error)
