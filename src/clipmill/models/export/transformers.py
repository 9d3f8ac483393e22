"""Both towers as Hugging Face transformers loads them: ``CLIPModel.from_pretrained(folder)``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import CLIP_VOCAB_SIZE, ClipConfig
from clipmill.models.export.base import (
    ExportResult,
    origin,
    preprocessing,
    write_json_file,
    write_model,
)

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelled so by transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_PROJECTIONS = {"visual.proj": "visual_projection", "text_projection": "text_projection"}
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""PIL's numbers of interpolations."""


def export_transformers(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write a ``CLIPModel``, its image processor and, for CLIP's vocabulary, its tokenizer.

    Raises:
        ArtifactError: transformers' CLIP has no such tower.
    """
    _check(metadata, config)
    notes = []
    kept = dict(tensors)
    if kept.pop("logit_bias", None) is not None:
        notes.append("note: transformers' CLIPModel has no bias of similarities; it is left out")
    if config.text.vocab_size == CLIP_VOCAB_SIZE:
        _write_tokenizer(folder, config.text.context_length)
    else:
        notes.append(
            f"note: this text tower has {config.text.vocab_size} tokens, which CLIPTokenizer "
            "doesn't write: give the model ids from clipmill.models.tokenizer"
        )
    size = config.vision.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _RESAMPLE[config.vision.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.vision.mean),
        "image_std": list(config.vision.std),
    }
    write_json_file(folder / "preprocessor_config.json", processor)
    value = _config(config) | {"clipmill": origin(metadata)}
    write_model(folder, "config.json", value, "model.safetensors", dict(_renamed(kept)))
    return ExportResult(
        name=str(folder),
        usage=(
            "from transformers import CLIPModel, CLIPProcessor\n\n"
            f'model = CLIPModel.from_pretrained("{folder}")\n'
            f'processor = CLIPProcessor.from_pretrained("{folder}")'
        ),
        library="transformers",
        preprocessing=preprocessing(config.vision),
        notes=tuple(notes),
    )


def _check(metadata: CheckpointMetadata, config: ClipConfig) -> None:
    wrong = ""
    if config.vision.timm_model:
        wrong = f"an image tower {config.vision.timm_model}"
    elif not config.vision.has_input_norm:
        wrong = "an image tower without a norm before its blocks"
    elif not config.text.is_causal:
        wrong = "a text tower that isn't causal"
    if wrong:
        raise ArtifactError(
            f"{metadata.uri} has {wrong}",
            expected="CLIP's own ViT and causal text tower, all that transformers' CLIPModel has",
            action="export it with --to open_clip",
        )


def _config(config: ClipConfig) -> dict[str, Any]:
    vision, text = config.vision, config.text
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "dtype": "float32",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.activation,
            "projection_dim": config.embed_dim,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": 0,
            "hidden_act": text.activation,
            "projection_dim": config.embed_dim,
        },
    }


def _renamed(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, "Tensor"]]:
    """open_clip's tensors under transformers' names."""
    for name, tensor in tensors.items():
        if name in _NAMES:
            yield _NAMES[name], tensor
        elif name in _PROJECTIONS:
            yield f"{_PROJECTIONS[name]}.weight", tensor.T
        else:
            tower, _, rest = name.partition("transformer.resblocks.")
            number, _, rest = rest.partition(".")
            layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
            part, _, kind = rest.rpartition(".")
            if part == "attn":  # in_proj_weight, in_proj_bias: queries, keys and values in one
                kind = kind.removeprefix("in_proj_")
                for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{layer}self_attn.{letter}_proj.{kind}", piece
            else:
                yield f"{layer}{_BLOCK_NAMES[part]}.{kind}", tensor


def _write_tokenizer(folder: Path, context_length: int) -> None:
    """Write CLIP's vocabulary as CLIPTokenizer reads it; special tokens are spelled its way."""
    from open_clip.tokenizer import SimpleTokenizer

    known = SimpleTokenizer()
    special = {CLIP_VOCAB_SIZE - 2: "<|startoftext|>", CLIP_VOCAB_SIZE - 1: "<|endoftext|>"}
    vocabulary = {special.get(i, token): i for token, i in known.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(known.bpe_ranks, key=known.bpe_ranks.__getitem__)]
    write_json_file(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": special[CLIP_VOCAB_SIZE - 2],
        "eos_token": special[CLIP_VOCAB_SIZE - 1],
        "unk_token": special[CLIP_VOCAB_SIZE - 1],
        "pad_token": special[CLIP_VOCAB_SIZE - 1],
        "model_max_length": context_length,
    }
    write_json_file(folder / "tokenizer_config.json", tokenizer)
