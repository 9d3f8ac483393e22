"""The smallest CLIP and CoCa, and batches for them."""

import torch

from clipmill.data.loading.dataloader import PairBatch
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.models.tokenizer import Tokenizer

CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, head_width=8),
    text=TextConfig(context_length=12, vocab_size=600, width=16, heads=2, layers=1),
)
COCA = CocaConfig(clip=CLIP, decoder_layers=1, num_queries=4)
CAPTIONS = ["a red cube", "two cones", "a dog", "it rains", "blue ball", "a wall", "sky", "hat"]


def pair_batch(kinds=("real", "synthetic"), num_samples=8, seed=0):
    """Random pictures with captions of these kinds."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = Tokenizer.from_config(CLIP.text)
    texts = (CAPTIONS * num_samples)[:num_samples]
    synthetic = [f"{text} by night {i}" for i, text in enumerate(texts)]
    return PairBatch(
        images_B3HW=torch.randint(
            0, 256, (num_samples, 3, 16, 16), dtype=torch.uint8, generator=generator
        ),
        real_BT=tokenizer(texts) if "real" in kinds else None,
        synthetic_BT=tokenizer(synthetic) if "synthetic" in kinds else None,
        uids=tuple(f"{i:04d}" for i in range(num_samples)),
    )


def reinforced_batch(num_samples=8, width=10):
    """The same with embeddings of teachers, ``width`` numbers together."""
    batch = pair_batch(num_samples=num_samples)
    image, real, synthetic = torch.randn(
        3, num_samples, width, generator=torch.Generator().manual_seed(1)
    )
    return PairBatch(
        images_B3HW=batch.images_B3HW,
        real_BT=batch.real_BT,
        synthetic_BT=batch.synthetic_BT,
        uids=batch.uids,
        teacher_image_BE=image,
        teacher_real_BE=real,
        teacher_synthetic_BE=synthetic,
    )
