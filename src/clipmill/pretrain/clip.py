"""CLIP with quality captions: contrastive pretraining on real and synthetic captions.

Shapes: B batch, D embedding width.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader, TeacherLayer
from clipmill.data.loading.mixture import BLOCK, Mixture, MixtureOrder
from clipmill.data.loading.view import View
from clipmill.data.shards.read import read_shard
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Forward, Objective, no_sync_except_last
from clipmill.engine.result import result_uri, save_run, state_uri, under_prefix
from clipmill.engine.trainer import ProgressMetrics, train
from clipmill.errors import BadSampleError, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint, save_checkpoint
from clipmill.models.clip import ClipEmbedder
from clipmill.models.config import ClipConfig, RangeAugmentConfig, TowerOptions
from clipmill.models.embedding_stats import (
    EmbeddingStatistics,
    evenly_spaced_indices,
    statistics_of,
)
from clipmill.models.encoders import Normalize
from clipmill.models.range_augment import RangeAugment
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import MAX_LOGIT_SCALE, build_clip
from clipmill.pretrain.config import DistillationConfig, PretrainConfig
from clipmill.pretrain.contrastive import ContrastiveLoss, ContrastiveOutput
from clipmill.pretrain.init_weights import InitWeights, load_init_weights, resolve_init
from clipmill.pretrain.teacher import replay_transform, teacher_parent
from clipmill.pretrain.validation import build_validators
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import artifact_uri

_LOG = logging.getLogger(__name__)

_AUGMENTATION_LOSS = "range_augment"
_NUM_EMBEDDED_IMAGES = 256
_NUM_EMBEDDED_SHARDS = 8
_EMBEDDING_BATCH_SIZE = 32


def pretrain_clip(
    config: PretrainConfig,
    dataset: str = "",
    store: str = "out",
    *,
    report: ProgressCallback = no_progress,
) -> str:
    """Pretrain CLIP on a dataset or a mixture of several; return the URI of the encoder.

    An existing checkpoint is returned at once; an unfinished run is resumed.

    Args:
        config: The run, such as a recipe's; ``config.view`` says which captions it uses.
        dataset: URI that ``write_dataset`` returned; empty with ``config.mixture``.
        store: Folder or ``s3://`` URI for checkpoints.
        report: Called with the steps done, their total, and a message.

    Raises:
        ConfigError: the view names a layer that the dataset doesn't have, or there is neither a
            dataset nor a mixture, or both.
        StoppedError, TrainingError, StorageError: as the training loop does.

    Example:
        >>> dataset = clipmill.write_dataset(clipmill.ShardConfig(), "photos", "out")
        >>> settings = ["train.steps=2", "train.batch_size=8", "validation.every=0"]
        >>> config = clipmill.get_recipe("clip-tiny", clipmill.PretrainConfig, settings)
        >>> encoder = clipmill.pretrain_clip(config, dataset, "out")
        >>> clipmill.load_encoder(encoder).width
        256
    """
    mixture = open_mixture(config, dataset)
    config = replace(config, mixture=mixture.resolve())
    init = resolve_init(config.init)
    parents = mixture.parents
    if init is not None:
        parents += (init.parent,)
    if config.distillation is not None:
        parents += tuple(teacher_parent(s.view, config.distillation) for s in mixture.sources)
    uri = result_uri(store, "encoders", mixture.captions, config, parents)
    if has_checkpoint(uri):
        return uri
    tokenizer = Tokenizer.from_config(config.model.text)
    result = train(
        partial(clip_objective, config, init, sources=mixture.names),
        partial(clip_dataloader, config, mixture),
        config.train,
        name="clip",
        checkpoint_uri=state_uri(uri),
        report=report,
        validators=build_validators(config.validation, mixture, tokenizer, config.model.vision),
        progress_metrics=source_progress(config, mixture) if mixture.names else None,
    )
    tensors = under_prefix(result.tensors, "clip.")
    return save_run(
        uri,
        result,
        kind="clip",
        architecture=config.model.to_json(),
        config=config,
        parents=parents,
        summary={
            "captions": mixture.captions,
            **({"mixture": mixture.describe()} if mixture.names else {}),
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
        tensors=tensors,
        embed=lambda _: training_embedding_stats(config.model, tensors, mixture),
    )


def open_mixture(config: PretrainConfig, dataset: str) -> Mixture:
    """Open the datasets of a run: the mixture's, or the one at the URI ``dataset``.

    Raises:
        ConfigError: there is neither, or both; or a view isn't possible.
        ArtifactError: there is no dataset.
    """
    if bool(dataset) == bool(config.mixture):
        raise ConfigError(
            f"the dataset was {dataset!r}, and the mixture had {len(config.mixture)} sources",
            expected="a dataset, or a mixture of several",
            action="give DATASET, or --mixture URI=WEIGHT for each dataset",
        )
    if dataset:
        return Mixture.of_view(View(Dataset.open(dataset), config.view))
    return Mixture.open(config.mixture, config.view)


def source_progress(config: PretrainConfig, mixture: Mixture) -> ProgressMetrics:
    """Return a function from updates to each source's samples seen, and its epochs."""
    order = MixtureOrder(mixture.quotas, config.train.seed)
    sizes = [sum(source.view.shard_sizes()) for source in mixture.sources]

    def metrics(step: int) -> dict[str, float]:
        seen = order.num_seen(step * config.train.batch_size)
        by_source = list(zip(mixture.names, seen, sizes, strict=True))
        samples = {f"source/{name}/samples": float(count) for name, count, _ in by_source}
        return samples | {f"source/{name}/epochs": count / size for name, count, size in by_source}

    return metrics


def random_encoder(config: PretrainConfig, store: str) -> str:
    """Save the config's towers with random weights, as a baseline; return the checkpoint's URI.

    The weights follow from ``train.seed``; the metadata says that they are random.
    """
    recipe = {"model": config.model.to_json(), "seed": config.train.seed}
    uri = artifact_uri(store, "encoders", f"random-{digest_json(recipe)[:12]}")
    if has_checkpoint(uri):
        return uri
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        tensors = build_clip(config.model).state_dict()
    metadata = CheckpointMetadata(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=recipe,
        parents=(),
        metrics={},
        summary={"weights": "random", "seed": str(config.train.seed)},
    )
    save_checkpoint(uri, metadata, tensors)
    return uri


def clip_objective(
    config: PretrainConfig,
    init: InitWeights | None,
    dist: DistributedContext,
    *,
    sources: Sequence[str] = (),
) -> "ClipObjective":
    """Build the objective, with the initial weights if there are any, else random ones.

    ``sources`` are the names of a mixture's sources.
    """
    objective = ClipObjective(
        config.model,
        dist,
        options=config.tower_options,
        range_augment=config.range_augment,
        distillation=config.distillation,
        sources=sources,
    )
    if init is not None:
        load_init_weights(init, objective.clip, config.model)
    return objective


def clip_dataloader(
    config: PretrainConfig, mixture: Mixture, start_step: int, dist: DistributedContext
) -> Iterator[PairBatch]:
    """Build the iterator over this rank's batches from ``start_step`` on."""
    size = config.model.vision.image_size
    teachers = None
    if config.distillation is not None:
        layer = config.distillation.layer
        teachers = [
            TeacherLayer(layer, replay_transform(source.view.dataset, layer, size))
            for source in mixture.sources
        ]
    return iter(
        PairDataLoader(
            mixture,
            config.dataloader,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            transform=CropTransform(size, config.random_resized_crop),
            tokenize=Tokenizer.from_config(config.model.text),
            teacher=teachers,
            start_step=start_step,
            rank=dist.rank,
            world_size=dist.world_size,
        )
    )


class ClipObjective(Objective):
    """Contrastive loss of the images with each kind of caption that a batch has.

    G + S of CLIP-QC: both losses are added, and share the image pass. With distillation, the batch
    has the teachers' embeddings too.
    """

    def __init__(
        self,
        config: ClipConfig,
        dist: DistributedContext,
        *,
        options: TowerOptions = TowerOptions(),  # noqa: B008  # frozen
        range_augment: RangeAugmentConfig | None = None,
        distillation: DistillationConfig | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.range_augment = None if range_augment is None else RangeAugment(range_augment)
        self.normalize = Normalize(config.vision.mean, config.vision.std)
        self.clip = build_clip(config, options)
        self._is_distilled = distillation is not None
        self._loss = ContrastiveLoss(config.loss, dist, distillation, with_accuracy=bool(sources))
        self._sources = SourceMetrics(sources, dist) if sources else None

    def forward(
        self,
        batch: PairBatch,
        *,
        features_only: bool = False,
        gradients: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return losses by caption kind, and RangeAugment's if it is used.

        With ``features_only`` return those of :meth:`features`. With ``gradients`` (of the losses,
        by name of the feature, or of the logit scale and bias) return one number whose gradients
        are those that the losses would have for this micro-batch.
        """
        images_B3HW, augmentation_loss = self._augment(batch)
        features = self._embed(images_B3HW, batch)
        if features_only:
            return features | augmentation_loss
        if gradients is not None:
            values = features | self._logit_scale_and_bias() | augmentation_loss
            parts = [(values[name] * gradient).sum() for name, gradient in gradients.items()]
            return {"replay": torch.stack(parts).sum()}
        losses = self._compute_losses(features, self._logit_scale_and_bias(), [batch])
        return losses | augmentation_loss

    def features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return unit embeddings (B, D): ``image``, and one for each kind of caption."""
        return self._embed(batch.images_B3HW.float() / 255, batch)

    def _augment(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return augmented images (B, 3, H, W) in 0..1, and the loss that trains RangeAugment."""
        images_B3HW = batch.images_B3HW.float() / 255
        if self.range_augment is None or not self.training:
            return images_B3HW, {}
        augmented_B3HW = self.range_augment(images_B3HW)
        loss = self.range_augment.loss(augmented_B3HW, images_B3HW)
        return augmented_B3HW, {_AUGMENTATION_LOSS: loss}

    def _embed(self, images_B3HW: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        images_B3HW = self.normalize(images_B3HW)
        features = {"image": self.clip.encode_image(images_B3HW, normalize=True)}
        for kind, tokens_BT in (("real", batch.real_BT), ("synthetic", batch.synthetic_BT)):
            if tokens_BT is not None:
                features[kind] = self.clip.encode_text(tokens_BT, normalize=True)
        return {kind: value.float() for kind, value in features.items()}

    def accumulate(self, micro_batches: Sequence[PairBatch], forward: Forward) -> dict[str, Tensor]:
        """Add exactly the full batch's gradients, with one micro-batch's activations at a time.

        Features are computed first, without gradients; the loss over all of them gives each
        feature's gradient; then each micro-batch runs again and takes its own part of these
        (GradCache; Gao et al. 2021). The loss and its exchange between ranks happen once per step.
        """
        if len(micro_batches) == 1:
            return super().accumulate(micro_batches, forward)
        device = micro_batches[0].images_B3HW.device
        rng_states, outputs = [], []
        with torch.no_grad(), freeze_batchnorm_stats(self):
            for micro_batch in micro_batches:
                rng_states.append(_get_rng_state(device))
                outputs.append(forward(micro_batch, features_only=True))
        augmentation = [o.pop(_AUGMENTATION_LOSS) for o in outputs if _AUGMENTATION_LOSS in o]
        features = {k: torch.cat([o[k] for o in outputs]).requires_grad_() for k in outputs[0]}
        scale = {k: v.detach().requires_grad_() for k, v in self._logit_scale_and_bias().items()}
        losses = self._compute_losses(features, scale, micro_batches)
        leaves = features | scale
        loss = torch.stack(list(losses.values())).sum()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        start = 0
        for number, micro_batch in enumerate(micro_batches, start=1):
            end = start + len(micro_batch.images_B3HW)
            local = {k: gradients[k][start:end] for k in features}
            local |= {k: gradients[k] / len(micro_batches) for k in scale}
            if augmentation:
                local[_AUGMENTATION_LOSS] = torch.ones((), device=device) / len(micro_batches)
            # Patch dropout and the like must draw the same numbers again.
            _set_rng_state(rng_states[number - 1], device)
            with no_sync_except_last(forward, last=number == len(micro_batches)):
                torch.autograd.backward(forward(micro_batch, gradients=local)["replay"])
            start = end
        if augmentation:
            losses[_AUGMENTATION_LOSS] = torch.stack(augmentation).mean()
        return {kind: value.detach() for kind, value in losses.items()}

    def before_step(self, progress: float) -> None:
        """Set RangeAugment's target by its curriculum."""
        if self.range_augment is not None:
            self.range_augment.set_progress(progress)

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _logit_scale_and_bias(self) -> dict[str, Tensor]:
        """Return the factor of the similarities as ``scale``, and SigLIP's ``bias`` if any."""
        values = {"scale": self.clip.logit_scale.exp()}
        if self.clip.logit_bias is not None:
            values["bias"] = self.clip.logit_bias
        return values

    def extra_metrics(self) -> dict[str, Tensor]:
        """Return the logit scale, and of each source the means since the last call.

        A collective where there are sources, called on all ranks together.
        """
        metrics = super().extra_metrics()
        return metrics if self._sources is None else metrics | self._sources.read()

    def _compute_losses(
        self,
        features: dict[str, Tensor],
        logits: dict[str, Tensor],
        batches: Sequence[PairBatch],
    ) -> dict[str, Tensor]:
        teachers = self._teacher_targets(batches)
        output = self._loss(features, logits["scale"], logits.get("bias"), teachers)
        sources = [batch.source_B for batch in batches if batch.source_B is not None]
        # Without gradients it is no update, but a count of FLOPs.
        if self._sources is not None and sources and torch.is_grad_enabled():
            self._sources.add(torch.cat(sources), output)
        return output.losses

    def _teacher_targets(self, batches: Sequence[PairBatch]) -> dict[str, Tensor]:
        if not self._is_distilled:
            return {}
        targets = [_teacher_embeddings(batch) for batch in batches]
        return {name: torch.cat([t[name] for t in targets]).float() for name in targets[0]}


class SourceMetrics:
    """Means over the samples of each source of a mixture, of all ranks, between two readings.

    A sample's loss is its own term of the batch's mean: an InfoNCE loss has its row and its column
    (halved), SigLIP its row. So the batch's loss is the mean of the sources' losses, weighted by
    their samples. The accuracy is the share of images whose own caption is the most similar of all
    ranks' in the batch.
    """

    def __init__(self, names: Sequence[str], dist: DistributedContext) -> None:
        self._names = names
        self._dist = dist
        # Rows: number of samples, sums of losses and of accuracies.
        self._sums_3S = torch.zeros(3, len(names), dtype=torch.float64, device=dist.device)

    @torch.no_grad()
    def add(self, source_B: Tensor, output: ContrastiveOutput) -> None:
        """Add this rank's part of a batch, without losses that aren't finite."""
        assert output.accuracy_b is not None
        finite_B = output.sample_losses_b.isfinite()
        values_3B = torch.stack(
            [
                finite_B.double(),
                output.sample_losses_b.double().where(finite_B, 0),
                output.accuracy_b.double().where(finite_B, 0),
            ]
        )
        # A product, since an indexed sum has no fixed order on a GPU.
        one_hot_BS = torch.nn.functional.one_hot(source_B, len(self._names)).double()
        self._sums_3S += values_3B @ one_hot_BS

    def read(self) -> dict[str, Tensor]:
        """Return ``source/NAME/loss`` and ``accuracy``, and reset them; NaN without samples."""
        counts_S, losses_S, accuracies_S = self._dist.all_reduce_sum(self._sums_3S.clone())
        self._sums_3S.zero_()
        means = {"loss": losses_S / counts_S, "accuracy": accuracies_S / counts_S}
        return {
            f"source/{name}/{metric}": value
            for metric, values_S in means.items()
            for name, value in zip(self._names, values_S, strict=True)
        }


def _teacher_embeddings(batch: PairBatch) -> dict[str, Tensor]:
    """Return the teachers' embeddings (B, E) by name: ``image``, and each kind of caption."""
    assert batch.teacher_image_BE is not None, "distillation needs batches with teacher embeddings"
    embeddings = {
        "image": batch.teacher_image_BE,
        "real": batch.teacher_real_BE,
        "synthetic": batch.teacher_synthetic_BE,
    }
    return {name: value for name, value in embeddings.items() if value is not None}


@contextlib.contextmanager
def freeze_batchnorm_stats(module: nn.Module) -> Iterator[None]:
    """Let batch norms use their batch's statistics, as in training, without updating running ones.

    GradCache passes each micro-batch through the towers twice; it must count once.
    """
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    ]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.track_running_stats = value


def _get_rng_state(device: torch.device) -> list[Tensor]:
    """Return the random state of the CPU and of ``device``."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def _set_rng_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def training_embedding_stats(
    config: ClipConfig, tensors: Mapping[str, Tensor], mixture: Mixture
) -> EmbeddingStatistics | None:
    """Return statistics of a few hundred training images' embeddings, computed as when served.

    None where the views have too few.
    """
    embedder = ClipEmbedder(config, tensors)
    images = (
        image
        for source in mixture.sources
        for image in _sample_images(source.view, round(_NUM_EMBEDDED_IMAGES * source.quota / BLOCK))
    )
    prepared = [embedder.prepare(image) for image in images]
    embeddings = [
        embedder.encode_images(prepared[start : start + _EMBEDDING_BATCH_SIZE])
        for start in range(0, len(prepared), _EMBEDDING_BATCH_SIZE)
    ]
    return statistics_of(np.concatenate(embeddings)) if embeddings else None


def _sample_images(view: View, num_images: int) -> Iterator[Image.Image]:
    """Sample images from all over the view, but from few shards, which are large and remote."""
    indices = evenly_spaced_indices(len(view.dataset.shards), _NUM_EMBEDDED_SHARDS)
    images_per_shard = -(-num_images // len(indices)) if indices else 0
    for index in indices:
        with read_shard(view.dataset, index, cache_folder()) as reader:
            rows = view.open_shard(index, reader.uids, cache_folder()).rows.tolist()
            for position in evenly_spaced_indices(len(rows), images_per_shard):
                row = rows[position]
                try:
                    yield decode_rgb(reader.image(row))
                except BadSampleError as error:
                    _LOG.warning("no embedding of %s: %s", reader.uid(row), error)
