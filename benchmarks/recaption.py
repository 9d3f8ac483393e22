"""Captions a CPU second of a CoCa, ours against open_clip's ``generate`` called by hand.

``python benchmarks/recaption.py [--threads N]``. Both caption the same decoded pictures with the
same weights, which are random: how fast they are depends on shapes and lengths alone. Ours also
crops, resizes and scores. Texts are compared: a text counts as equal if all its words are. On a GPU
it is captions a second, both in bf16: ``recaption.py --model large --pictures 128``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table
from towers import hardware

from clipmill.data.captioners import CaptionInput, CocaCaptioner, GenerateConfig
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.coca import build_coca
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.models.encoders import Normalize
from clipmill.models.preprocess import center_crop_resize
from clipmill.models.tokenizer import Tokenizer

_ROUNDS = 2

# A third of coca_ViT-B-32's width, a third of its depth, and a quarter of its image tokens.
SMALL = CocaConfig(
    clip=ClipConfig(
        embed_dim=192,
        vision=VisionConfig(image_size=128, patch_size=16, width=256, layers=4, head_width=64),
        text=TextConfig(context_length=32, vocab_size=8192, width=192, heads=4, layers=4),
    ),
    decoder_layers=4,
    num_queries=64,
)

# The shape of open_clip's coca_ViT-L-14.
LARGE = CocaConfig(
    clip=ClipConfig(
        embed_dim=768,
        vision=VisionConfig(patch_size=14, width=1024, layers=24),
        text=TextConfig(context_length=76, width=768, heads=12),
    ),
)
MODELS = {"small": SMALL, "large": LARGE}
_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WAYS = {
    "greedy": GenerateConfig(method="top_k", top_k=1, max_tokens=30),
    "nucleus, 5 captions": GenerateConfig(method="top_p", top_p=0.9, num_captions=5, max_tokens=30),
    "6 beams in 3 groups": GenerateConfig(max_tokens=30),
}


def by_hand(
    coca: Any,
    architecture: CocaConfig,
    pictures: list[Image.Image],
    config: GenerateConfig,
) -> list[list[str]]:
    """Texts of each picture, as a script around open_clip would make them."""
    tokenizer = Tokenizer.from_config(architecture.clip.text, is_padded=True)
    size = architecture.clip.vision.image_size
    pixels = torch.from_numpy(np.stack([center_crop_resize(picture, size) for picture in pictures]))
    images = Normalize()(pixels.permute(0, 3, 1, 2).float() / 255)
    images = images.to(_DEVICE).repeat_interleave(config.num_captions, dim=0)
    with torch.autocast("cuda", torch.bfloat16, enabled=_DEVICE.type == "cuda"):
        tokens = coca.generate(
            images,
            seq_len=config.max_tokens,
            generation_type=config.method,
            num_beams=config.num_beams,
            num_beam_groups=config.num_beam_groups,
            top_p=config.top_p,
            top_k=config.top_k,
            pad_token_id=tokenizer.pad_id,
            sot_token_id=tokenizer.start_id,
            eos_token_id=tokenizer.end_id,
        )
    texts = [" ".join(tokenizer.decode(t).split()) for t in tokens.cpu()]
    count = config.num_captions
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def best_seconds(work: Callable[[], object]) -> float:
    """The best of a few rounds, in seconds of CPU time or on a GPU's host: noise only ever adds."""
    # CPU time is of this process alone, so that others on the machine count as little as they can.
    clock = time.process_time if _DEVICE.type == "cpu" else time.perf_counter
    rounds = []
    for _ in range(_ROUNDS):
        start = clock()
        work()
        rounds.append(clock() - start)
    return min(rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    architecture = MODELS[arguments.model]
    coca = build_coca(architecture).to(_DEVICE).eval()
    with torch.no_grad():
        for name, parameter in coca.named_parameters():
            if "ln_" not in name:
                parameter.mul_(2)
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (240, 320, 3), np.uint8))
        for _ in range(arguments.pictures)
    ]
    inputs = [
        CaptionInput(uid=f"{i}", caption="", image=picture) for i, picture in enumerate(pictures)
    ]
    size = architecture.clip.vision.image_size
    second = "CPU second" if _DEVICE.type == "cpu" else "second"
    table = Table(
        title=f"Captions a {second}, {arguments.model} CoCa, {len(pictures)} pictures at {size} px",
        caption=f"{hardware()}, open_clip {open_clip.__version__}, "
        f"transformers {transformers.__version__}",
    )
    for heading in ("way", "ours", "open_clip", "ratio", "equal texts"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        metadata = CheckpointMetadata(kind="coca", architecture=architecture.to_json(), recipe={})
        uri = save_checkpoint(folder, metadata, coca.state_dict()).uri
        for way, config in WAYS.items():
            captioner = CocaCaptioner(uri, config)
            said = dict(captioner.caption(inputs))
            expected = by_hand(coca, architecture, pictures, config)
            equal = sum(said[i].texts == tuple(texts) for i, texts in enumerate(expected))
            count = len(pictures) * config.num_captions
            ours = count / best_seconds(lambda: list(captioner.caption(inputs)))  # noqa: B023
            by_open_clip = partial(by_hand, coca, architecture, pictures, config)
            theirs = count / best_seconds(by_open_clip)
            shown = f"{equal}/{len(pictures)}" if config.num_captions == 1 else "drawn anew"
            table.add_row(way, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}x", shown)
            Console(stderr=True).print(f"{way}: {ours / theirs:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
