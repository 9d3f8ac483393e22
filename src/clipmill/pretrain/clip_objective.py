"""CLIP's objective over real and synthetic captions.

Shapes: B batch, b micro-batch, D embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipmill.data.loader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Forward, Objective, synchronizing
from clipmill.models.normalization import Normalize
from clipmill.models.towers import MAX_LOGIT_SCALE, ClipConfig, build_clip


class ClipObjective(Objective):
    """The contrastive loss of (image, caption) for each kind of caption that a batch brings.

    G + S of CLIP-QC: both losses are added, and share the image pass.
    """

    def __init__(self, config: ClipConfig, here: Ranks) -> None:
        from open_clip.loss import ClipLoss

        super().__init__()
        self.normalize = Normalize()
        self.clip = build_clip(config)
        self._loss = ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=here.rank,
            world_size=here.world_size,
        )

    def forward(
        self, batch: PairBatch, cached: tuple[dict[str, Tensor], int] | None = None
    ) -> dict[str, Tensor]:
        """Losses by caption kind.

        With ``cached`` (features of the whole batch, and where this micro-batch starts in it),
        the micro-batch's fresh features stand in their place among the cached ones.
        """
        features = self.features(batch)
        if cached is not None:
            whole, start = cached
            features = {k: _replace_rows(whole[k], v, start) for k, v in features.items()}
        image_BD = features.pop("image")
        scale = self.clip.logit_scale.exp()
        return {kind: self._loss(image_BD, v, scale) for kind, v in features.items()}

    def features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Unit embeddings (B, D): ``image``, and one for each kind of caption."""
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        found = {"image": self.clip.encode_image(images_B3HW, normalize=True)}
        for kind, tokens_BT in (("real", batch.real_BT), ("synthetic", batch.synthetic_BT)):
            if tokens_BT is not None:
                found[kind] = self.clip.encode_text(tokens_BT, normalize=True)
        return {kind: value.float() for kind, value in found.items()}

    def accumulate(self, micro_batches: Sequence[PairBatch], forward: Forward) -> dict[str, Tensor]:
        """Exactly the whole batch's gradients: features are cached first, then replayed in pieces.

        Each piece's loss over the whole batch has gradients for its own rows alone, so that the
        sum over pieces is the gradient of the whole (GradCache; Gao et al. 2021).
        """
        if len(micro_batches) == 1:
            return super().accumulate(micro_batches, forward)
        with torch.no_grad():
            pieces = [self.features(m) for m in micro_batches]
        whole = {kind: torch.cat([p[kind] for p in pieces]) for kind in pieces[0]}
        start, losses = 0, {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            with synchronizing(forward, last=number == len(micro_batches)):
                losses = forward(micro_batch, cached=(whole, start))
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
            start += len(micro_batch.images_B3HW)
        # The scale's gradient was added once a piece, each time over the whole batch.
        self.clip.logit_scale.grad.div_(len(micro_batches))
        return {kind: value.detach() for kind, value in losses.items()}

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def _replace_rows(whole_BD: Tensor, fresh_bD: Tensor, start: int) -> Tensor:
    after = start + len(fresh_bD)
    return torch.cat([whole_BD[:start], fresh_bD, whole_BD[after:]])
