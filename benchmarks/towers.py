"""What the benchmarks of training share: a machine's name, towers of a size, batches for them."""

import os
import platform
from pathlib import Path

import torch

from clipmill.data.loading.dataloader import PairBatch
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.tokenizer import Tokenizer

SMALL = ClipConfig(
    embed_dim=192,
    vision=VisionConfig(image_size=112, patch_size=16, width=192, layers=12, head_width=64),
    text=TextConfig(width=192, heads=3, layers=4),
)
"""ViT-Ti at 112 px with a text tower of its width: a step takes a CPU a second or so."""
BASE = ClipConfig()
"""ViT-B/16 at 224 px."""

_CAPTIONS = (
    "a red cube on a wooden table",
    "Vintage 1960s advert for a seaside holiday, framed print, 30 x 40 cm",
    "two dogs run along the beach in the evening sun while a child watches from the dunes",
    "IMG_2034.jpg",
)


def hardware() -> str:
    """Device, cores, load and versions."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        device = names[0] if names else platform.processor()
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def pairs(
    config: ClipConfig,
    size: int,
    *,
    synthetic: bool = False,
    is_padded: bool = False,
    seed: int = 0,
) -> PairBatch:
    """A batch of noise with captions of usual lengths, padded to the context if asked."""
    generator = torch.Generator().manual_seed(seed)
    side = config.vision.image_size
    tokenizer = Tokenizer.from_config(config.text, is_padded=is_padded)
    texts = [f"{_CAPTIONS[i % len(_CAPTIONS)]} {i}" for i in range(size)]
    return PairBatch(
        images_B3HW=torch.randint(
            0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator
        ),
        real_BT=tokenizer(texts),
        synthetic_BT=tokenizer(texts[::-1]) if synthetic else None,
        uids=(),
    )


def matmul_flops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a plain product of square matrices, the best of a few."""
    import time

    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
