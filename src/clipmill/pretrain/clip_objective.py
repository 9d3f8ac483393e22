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
from clipmill.models.towers import MAX_LOGIT_SCALE, ClipConfig, TowerOptions, build_clip
from clipmill.pretrain.contrastive import CaptionLosses
from clipmill.pretrain.distillation import DistillationConfig
from clipmill.pretrain.replay import random_state, set_random_state, without_statistics


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
        distillation: DistillationConfig | None = None,
    ) -> None:
        super().__init__()
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
        """Losses by caption kind.

        With ``features_only`` what :meth:`features` gives. With ``gradients`` (of the losses, by
        the features' names and those of the temperature) one number whose gradients are those
        that the losses would have for this micro-batch.
        """
        features = self.features(batch)
        if features_only:
            return features
        if gradients is not None:
            found = features | self._temperature()
            parts = [(found[name] * gradient).sum() for name, gradient in gradients.items()]
            return {"replay": torch.stack(parts).sum()}
        return self._losses_of(features, self._temperature(), self._teachers([batch]))

    def features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Unit embeddings (B, D): ``image``, and one for each kind of caption."""
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
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
            # Patch dropout and the like must fall as they fell before.
            set_random_state(states[number - 1], device)
            with synchronizing(forward, last=number == len(micro_batches)):
                torch.autograd.backward(forward(micro_batch, gradients=own)["replay"])
            start = after
        return {kind: value.detach() for kind, value in losses.items()}

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
