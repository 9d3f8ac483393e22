"""Training a CoCa captioner on a dataset with good captions.

As CoCa was fine-tuned on COCO's captions before it wrote those of DataCompDR.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.data.dataset import Dataset
from clipmill.data.loading.dataloader import PairBatch
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.coca import build_coca, coca_forward
from clipmill.models.encoders import Normalize
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import MAX_LOGIT_SCALE
from clipmill.pretrain.config import CocaTrainConfig
from clipmill.pretrain.dataloader import pair_batches
from clipmill.stage_records import Report


def train_captioner(config: CocaTrainConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train CoCa on the dataset's real captions; the URI of the checkpoint, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real"))
    uri = result_uri(store, "captioners", "coca", config, view.parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.trainer import train
    from clipmill.pretrain.coca import CocaObjective

    clip = config.model.clip
    trained = train(
        lambda here: CocaObjective(config, here),
        lambda cursor, here: pair_batches(
            view,
            config.load,
            config.train,
            crop=CropTransform(clip.vision.image_size, config.crop),
            tokenizer=Tokenizer.from_config(clip.text, is_padded=True),
            here=here,
            cursor=cursor,
        ),
        config.train,
        name="coca",
        state_uri=f"{uri}/state",
        report=report,
    )
    metadata = CheckpointMetadata(
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
    save_result(uri, metadata, tensors, trained)
    return uri


class CocaObjective(Objective):
    """Contrastive and captioning loss of (image, real caption)."""

    def __init__(self, config: CocaTrainConfig, here: Ranks) -> None:
        from open_clip.loss import ClipLoss

        super().__init__()
        self.normalize = Normalize(config.model.clip.vision.mean, config.model.clip.vision.std)
        self.coca = build_coca(config.model)
        self._weights = (config.contrastive_weight, config.captioning_weight)
        self._contrastive = ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=here.rank,
            world_size=here.world_size,
        )

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses ``contrastive`` and ``captioning``."""
        assert batch.real_BT is not None
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        found = coca_forward(self.coca, images_B3HW, batch.real_BT)
        contrastive = self._contrastive(
            found.image_BD.float(), found.text_BD.float(), self.coca.logit_scale.exp()
        )
        captioning = F.cross_entropy(
            found.logits_BTV.float().transpose(1, 2),
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
