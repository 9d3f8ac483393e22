"""CoCa: training of a captioner on a dataset with good captions.

As CoCa was fine-tuned on COCO's captions before it wrote those of DataCompDR. Its objective adds a
contrastive and a captioning loss (Yu et al. 2022).
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.data.dataset import Dataset
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_run, state_uri, under_prefix
from clipmill.engine.trainer import train
from clipmill.models.checkpoint import has_checkpoint
from clipmill.models.coca import build_coca, coca_forward
from clipmill.models.encoders import Normalize
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import MAX_LOGIT_SCALE
from clipmill.pretrain.config import CocaTrainConfig
from clipmill.stage_records import ProgressCallback


def train_coca(
    config: CocaTrainConfig, dataset: str, store: str, *, report: ProgressCallback
) -> str:
    """Train CoCa on the dataset's real captions; return the URI of the checkpoint, under ``store``.

    An existing checkpoint is returned at once; an unfinished run is resumed.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real"))
    uri = result_uri(store, "captioners", "coca", config, view.parents)
    if has_checkpoint(uri):
        return uri
    result = train(
        partial(CocaObjective, config),
        partial(_dataloader, config, view),
        config.train,
        name="coca",
        checkpoint_uri=state_uri(uri),
        report=report,
    )
    return save_run(
        uri,
        result,
        kind="coca",
        architecture=config.model.to_json(),
        config=config,
        parents=view.parents,
        summary={"seen samples": f"{config.train.num_seen_samples:,}"},
        tensors=under_prefix(result.tensors, "coca."),
    )


def _dataloader(
    config: CocaTrainConfig, view: View, start_step: int, dist: DistributedContext
) -> Iterator[PairBatch]:
    clip = config.model.clip
    return iter(
        PairDataLoader(
            view,
            config.dataloader,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            transform=CropTransform(clip.vision.image_size, config.random_resized_crop),
            tokenize=Tokenizer.from_config(clip.text, is_padded=True),
            start_step=start_step,
            rank=dist.rank,
            world_size=dist.world_size,
        )
    )


class CocaObjective(Objective):
    """Contrastive and captioning loss of (image, real caption)."""

    def __init__(self, config: CocaTrainConfig, dist: DistributedContext) -> None:
        from open_clip.loss import ClipLoss

        super().__init__()
        self.normalize = Normalize(config.model.clip.vision.mean, config.model.clip.vision.std)
        self.coca = build_coca(config.model)
        self._weights = (config.contrastive_weight, config.captioning_weight)
        self._contrastive = ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=dist.rank,
            world_size=dist.world_size,
        )

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return losses ``contrastive`` and ``captioning``."""
        assert batch.real_BT is not None
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        output = coca_forward(self.coca, images_B3HW, batch.real_BT)
        contrastive = self._contrastive(
            output.image_BD.float(), output.text_BD.float(), self.coca.logit_scale.exp()
        )
        captioning = F.cross_entropy(
            output.logits_BTV.float().transpose(1, 2),
            batch.real_BT[:, 1:],
            ignore_index=self.coca.pad_id,
        )
        # A weight of 0 leaves every parameter a gradient, which ranks that average them wait for.
        return {
            "contrastive": contrastive * self._weights[0],
            "captioning": captioning * self._weights[1],
        }

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.coca.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
