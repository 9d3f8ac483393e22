"""What test_distributed.py computes in one process and in two; a script for each of the two."""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.batch_norm import sync_batch_norms
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext, init_distributed
from clipmill.engine.objective import Objective, split_batch
from clipmill.engine.trainer import train
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.models.tokenizer import Tokenizer
from clipmill.pretrain.clip import ClipObjective
from clipmill.pretrain.coca import CocaObjective
from clipmill.pretrain.config import CocaTrainConfig
from helpers.regression import Regression, regression_batches

CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
    text=TextConfig(context_length=10, vocab_size=600, width=16, heads=2, layers=1),
)
CONVOLUTIONAL = dataclasses.replace(
    CLIP, vision=VisionConfig(image_size=16, timm_model="test_resnet")
)
COCA = CocaConfig(clip=CLIP, decoder_layers=1, num_queries=4)
TRAIN = TrainConfig(
    steps=3, batch_size=8, schedule=ScheduleConfig(lr=1e-2), checkpoint_every=2, log_every=1
)

CASES = {
    "CLIP": ("clip", 1),
    "CLIP in 2 pieces": ("clip", 2),
    "batch norms": ("convolutional", 1),
    "batch norms in 2 pieces": ("convolutional", 2),
    "CoCa": ("coca", 1),
    "CoCa without its contrastive loss": ("captions", 1),
}
"""An objective, and the pieces that each rank's share is computed in."""


def gradients_of(case: str, dist: DistributedContext) -> dict[str, Tensor]:
    """Gradients of two steps on one global batch: the second shows what the first left behind."""
    kind, num_pieces = CASES[case]
    torch.manual_seed(0)
    objective = _objective(kind, dist)
    sync_batch_norms(objective, dist)
    forward = dist.wrap_ddp(objective)
    # A piece has the rows that both ranks have in theirs, since its batch norms depend on them.
    rows = torch.arange(16).view(2, num_pieces, -1)
    rows = rows.transpose(0, 1) if dist.world_size == 1 else rows[dist.rank]
    share = _batch(rows.flatten())
    for _ in range(2):
        objective.zero_grad(set_to_none=True)
        objective.accumulate(split_batch(share, num_pieces), forward)
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Weights after a run of the loop, which goes on from a saved state if there is one."""

    def batches(cursor: int, dist: DistributedContext):
        size = TRAIN.batch_size // dist.world_size
        for batch in regression_batches(cursor, TRAIN.batch_size):
            yield {k: v[dist.rank * size :][:size] for k, v in batch.items()}

    return train(
        lambda _: Regression(dropout=0.0, norm=False),
        batches,
        TRAIN,
        name="test",
        checkpoint_uri=str(folder / "state"),
        report=lambda *_: None,
    ).tensors


def _objective(kind: str, dist: DistributedContext) -> Objective:
    if kind == "clip":
        return ClipObjective(CLIP, dist)
    if kind == "convolutional":
        return ClipObjective(CONVOLUTIONAL, dist)
    weight = 1.0 if kind == "coca" else 0.0
    config = CocaTrainConfig(model=COCA, contrastive_weight=weight, train=TRAIN)
    return CocaObjective(config, dist)


def _batch(rows: Tensor) -> PairBatch:
    """These rows of one global batch of 16; all captions are equally long."""
    generator = torch.Generator().manual_seed(0)
    texts = [
        f"{a} {b}" for a in ("cube", "ball", "hats", "dogs") for b in ("red", "sky", "sea", "ice")
    ]
    tokens_BT = Tokenizer.from_config(CLIP.text)(texts)
    batch = PairBatch(
        images_B3HW=torch.randint(0, 256, (16, 3, 16, 16), generator=generator),
        real_BT=tokens_BT,
        synthetic_BT=tokens_BT.roll(3, 0),
        uids=tuple(texts),
    )
    return dataclasses.replace(
        batch,
        images_B3HW=batch.images_B3HW[rows],
        real_BT=batch.real_BT[rows],
        synthetic_BT=batch.synthetic_BT[rows],
        uids=tuple(texts[row] for row in rows),
    )


def main(folder: Path, ports: list[str]) -> None:
    """Each group of processes meets at a port of its own, as each run of torchrun does."""
    found = {}
    os.environ["MASTER_PORT"] = ports[0]
    with init_distributed() as dist:
        for case in CASES:
            found[case] = gradients_of(case, dist)
    for name, port in zip(("weights", "resumed weights"), ports[1:], strict=True):
        os.environ["MASTER_PORT"] = port
        found[name] = trained_weights(folder)
    torch.save(found, folder / f"{dist.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
