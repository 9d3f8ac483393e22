"""Captions by open_clip's own ``CoCa.generate``; to make them again takes its version 3.3.

    pip install open_clip_torch==3.3.0 transformers==4.55.4
    python tests/helpers/open_clip_captions.py

writes ``open_clip_captions.json``: for each case the token ids that ``generate`` gives. Weights are
drawn by numpy, so that any torch has the same.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import open_clip
import torch

from clipmill.models.coca import build_coca
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.models.encoders import Normalize
from clipmill.models.tokenizer import Tokenizer

FILE = Path(__file__).parents[1] / "data" / "open_clip_captions.json"
COCA = CocaConfig(
    clip=ClipConfig(
        embed_dim=32,
        vision=VisionConfig(image_size=16, patch_size=8, width=32, layers=1, head_width=16),
        text=TextConfig(context_length=20, vocab_size=1024, width=32, heads=2, layers=2),
    ),
    decoder_layers=2,
    num_queries=4,
)
# A model config in open_clip's own layout, with CLIP's whole vocabulary.
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**_TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
# Seed, generation_type, num_beams, num_beam_groups.
CASES = [
    (seed, *search)
    for seed, search in itertools.product(
        range(4),
        [
            ("beam_search", 6, 3),
            ("beam_search", 4, 1),
            ("beam_search", 2, 2),
            ("top_k", 2, 1),
        ],
    )
]
MAX_TOKENS = 19


def draw_weights(model, seed):
    """Fill a model's matrices with numbers so large that texts differ between images and beams."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = generator.random(tuple(parameter.shape), np.float32) * 2 - 1
            if parameter.ndim >= 2 or "_emb" in name:
                parameter.copy_(torch.from_numpy(drawn) * 3 * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()
    return model.eval()


def drawn_coca(seed):
    """A CoCa of ours; every second one likes to end its texts."""
    coca = draw_weights(build_coca(COCA), seed)
    if seed % 2:
        with torch.no_grad():
            coca.text_decoder.text_projection[:, -1] *= 2.5
    return coca


def draw_pixels(seed, count=8):
    """Images (B, 16, 16, 3) uint8."""
    return (np.random.default_rng(seed).random((count, 16, 16, 3)) * 256).astype(np.uint8)


def as_images(pixels):
    """Those images as a CoCa reads them."""
    return Normalize()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)


def tiny_model(folder):
    """The model of ``TINY``, as open_clip builds it."""
    (Path(folder) / "coca_tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return draw_weights(open_clip.create_model("coca_tiny", load_weights=False), 9)


def _main():
    import tempfile

    ids = Tokenizer.from_config(COCA.clip.text)
    found = {}
    for case in CASES:
        seed, method, num_beams, num_beam_groups = case
        tokens = drawn_coca(seed).generate(
            as_images(draw_pixels(seed)),
            seq_len=MAX_TOKENS,
            min_seq_len=5,
            generation_type=method,
            num_beams=num_beams,
            num_beam_groups=num_beam_groups,
            top_k=1,
            pad_token_id=ids.pad_id,
            sot_token_id=ids.start_id,
            eos_token_id=ids.end_id,
        )
        found[" ".join(map(str, case))] = tokens.tolist()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(folder)
        for method in ("beam_search", "top_k"):
            found[f"tiny {method}"] = model.generate(
                as_images(draw_pixels(7)), seq_len=12, generation_type=method, top_k=1
            ).tolist()
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _main()
