"""Export of CLIP encoders to other libraries' formats, with equal outputs.

Both towers for open_clip (a folder that it takes by ``local-dir:``) and transformers
(``CLIPModel.from_pretrained(folder)``), the image tower for timm (``local-dir:``) and Core ML (a
program that takes an image of fixed size). Each export writes tensors, JSON, the origin, and a
README with a model card.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Node, lineage, render
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import CLIP_VOCAB_SIZE, ClipConfig, VisionConfig
from clipmill.models.towers import build_clip, text_kwargs, vision_kwargs
from clipmill.storage import atomic_write

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """Result of an export."""

    name: str
    """Name or path that the other library loads."""
    usage: str
    """Code that loads it."""
    library: str
    """Name of the library, as the Hugging Face hub spells it."""
    preprocessing: Mapping[str, Any]
    """Preprocessing of its images, by aspect."""
    language: str = "python"
    """Language of the code."""
    notes: tuple[str, ...] = ()
    """Limitations of the format."""


def write_model(
    folder: Path,
    config_name: str,
    config: Mapping[str, Any],
    tensors_name: str,
    tensors: Mapping[str, "Tensor"],
) -> None:
    """Write tensors, then the config, without which no library takes the folder for a model."""
    from safetensors.torch import save

    # safetensors' own save_file makes a file that only its owner can read.
    data = save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    with atomic_write(folder / tensors_name) as path:
        path.write_bytes(data)
    write_json_file(folder / config_name, config)


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON object, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def origin(metadata: CheckpointMetadata) -> dict[str, str]:
    """Return URI and digest of the exported checkpoint, for the lineage."""
    return {"uri": metadata.uri, "digest": metadata.digest}


def preprocessing(vision: VisionConfig) -> dict[str, Any]:
    """Return an image tower's preprocessing, for people and for a model's metadata."""
    return {
        "size": vision.image_size,
        "mean": list(vision.mean),
        "std": list(vision.std),
        "interpolation": vision.interpolation,
        "crop": "center square",
    }


def missing_extra_error(module: str, extra: str) -> ConfigError:
    """Return the error for a format whose library isn't installed."""
    return ConfigError(
        f"the Python package {module} isn't installed",
        expected=f"clipmill with the extra {extra!r}",
        action=f"pip install 'clipmill[{extra}]'",
    )


def render_model_card(metadata: CheckpointMetadata, result: ExportResult) -> str:
    """Markdown with the YAML header that the Hugging Face hub reads.

    The license is the sources' own where their ``summary`` names one; none is assumed.
    """
    tree = lineage(metadata.uri)
    nodes = list(_nodes(tree))
    licenses = sorted({n.detail["license"] for n in nodes if "license" in n.detail})
    header = {
        "library_name": result.library,
        "tags": ["clipmill", str(metadata.architecture.get("task", "clip"))],
        **({"license": licenses[0]} if len(licenses) == 1 else {}),
    }
    sections = {
        "": "\n".join(
            f"- {name}: {text}"
            for name, text in {**metadata.summary, "digest": metadata.digest}.items()
        ),
        "How to load it": f"```{result.language}\n{result.usage}\n```\n" + "\n".join(result.notes),
        "Preprocessing": "\n".join(
            f"- {name}: {text}" for name, text in result.preprocessing.items()
        ),
        "Training metrics": "\n".join(
            f"- {name}: {value:.6g}" for name, value in sorted(metadata.metrics.items())
        )
        or "None were recorded.",
        "Made from": f"```\n{render(tree)}\n```",
        "License": ", ".join(licenses)
        or "The sources name none: check that of the data and weights it was made from.",
        "Recipe": f"```json\n{json.dumps(metadata.recipe, indent=2)}\n```",
        "Architecture": f"```json\n{json.dumps(metadata.architecture, indent=2)}\n```",
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    body = "\n\n".join(
        (f"## {title}\n\n" if title else "") + text.rstrip() for title, text in sections.items()
    )
    return f"---\n{yaml}\n---\n\n# {_title(metadata)}\n\n{body}\n"


def _title(metadata: CheckpointMetadata) -> str:
    if metadata.kind == "task":
        return f"{str(metadata.architecture['task']).capitalize()} model made by clipmill"
    return "CLIP encoder made by clipmill"


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for parent in node.parents:
        yield from _nodes(parent)


def export_open_clip(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``."""
    value = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "vision_cfg": vision_kwargs(config.vision),
            "text_cfg": text_kwargs(config.text),
            **({"quick_gelu": True} if config.text.activation == "quick_gelu" else {}),
            **({"init_logit_bias": 0.0} if config.loss == "sigmoid" else {}),
        },
        "preprocess_cfg": {
            "size": config.vision.image_size,
            "mean": list(config.vision.mean),
            "std": list(config.vision.std),
            "interpolation": config.vision.interpolation,
            "resize_mode": "squash" if config.vision.resize == "squash" else "shortest",
        },
        "clipmill": origin(metadata),
    }
    write_model(folder, "open_clip_config.json", value, "open_clip_model.safetensors", tensors)
    notes: tuple[str, ...] = ()
    if config.text.vocab_size != CLIP_VOCAB_SIZE:
        note = (
            f"note: open_clip's tokenizer has {CLIP_VOCAB_SIZE} tokens and this text tower "
            f"{config.text.vocab_size}: give it ids from clipmill.models.tokenizer"
        )
        notes = (note,)
    return ExportResult(
        name=f"local-dir:{folder}",
        usage=(
            "import open_clip\n\n"
            "model, preprocess = open_clip.create_model_from_pretrained("
            f'"local-dir:{folder}")\n'
            f'tokenizer = open_clip.get_tokenizer("local-dir:{folder}")'
        ),
        library="open_clip",
        preprocessing=preprocessing(config.vision),
        notes=notes,
    )


# Any of timm's ViTs of CLIP's kind; sizes and the norm before the blocks are given beside it.
_TIMM_VIT = "vit_base_patch16_clip_224"
_VIT_NAMES = (
    ("conv1", "patch_embed.proj"),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre", "norm_pre"),
    ("ln_post", "norm"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj", "attn.proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def export_timm(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write ``config.json`` and ``model.safetensors`` of the image tower.

    A ViT has its projection as the classifier, so that its output is the embedding before
    normalization; other towers give their pooled features.
    """
    vision = config.vision
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    if vision.timm_model:
        kept = {k.removeprefix("trunk."): v for k, v in visual.items() if k.startswith("trunk.")}
        value: dict[str, Any] = {
            "architecture": vision.timm_model,
            "num_classes": 0,
            "global_pool": "avg",
            "pretrained_cfg": _preprocessing(vision, 0),
        }
        notes: tuple[str, ...] = (
            "note: timm's model gives pooled features; the projection to the embedding isn't in it",
        )
    else:
        kept = dict(_timm_vit(visual))
        value = {
            "architecture": _TIMM_VIT,
            "num_classes": config.embed_dim,
            "model_args": {
                "img_size": vision.image_size,
                "patch_size": vision.patch_size,
                "embed_dim": vision.width,
                "depth": vision.layers,
                "num_heads": vision.width // vision.head_width,
                "pre_norm": vision.has_input_norm,
                "mlp_ratio": vision.mlp_ratio,
                **({"act_layer": "quick_gelu"} if vision.activation == "quick_gelu" else {}),
            },
            "pretrained_cfg": _preprocessing(vision, config.embed_dim),
        }
        notes = ()
    value |= {"clipmill": origin(metadata)}
    write_model(folder, "config.json", value, "model.safetensors", kept)
    return ExportResult(
        name=f"local-dir:{folder}",
        usage=f'import timm\n\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)',
        library="timm",
        preprocessing=preprocessing(vision),
        notes=notes,
    )


def _timm_vit(visual: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """open_clip's ViT under timm's names; the projection becomes a classifier without bias."""
    import torch

    renamed = {}
    for key, tensor in visual.items():
        name = key
        for old, new in _VIT_NAMES:
            name = name.replace(old, new)
        if name == "proj":
            renamed["head.weight"] = tensor.T
            renamed["head.bias"] = torch.zeros(tensor.shape[1])
        elif name == "cls_token":
            renamed[name] = tensor[None, None]
        elif name == "pos_embed":
            renamed[name] = tensor[None]
        else:
            renamed[name] = tensor
    if "norm_pre.weight" not in renamed:  # timm's patches have a bias where no norm follows
        renamed["patch_embed.proj.bias"] = torch.zeros(len(renamed["patch_embed.proj.weight"]))
    return renamed


def _preprocessing(vision: VisionConfig, num_classes: int) -> dict[str, Any]:
    size = vision.image_size
    return {
        "input_size": [3, size, size],
        "mean": list(vision.mean),
        "std": list(vision.std),
        "interpolation": vision.interpolation,
        "crop_pct": 1.0,
        "num_classes": num_classes,
    }


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


_FILE = "encoder.mlpackage"


def export_coreml(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write the image tower, its branches fused, as ``encoder.mlpackage`` in full precision.

    Its input ``image`` is RGB, its output ``embedding`` (1, D) as before normalization; the mean
    and standard deviation of pixels are inside. Converting works on Linux, running needs macOS.

    Raises:
        ConfigError: coremltools isn't installed.
    """
    try:
        import coremltools
    except ImportError as error:
        raise missing_extra_error("coremltools", "coreml") from error
    import torch

    size = config.vision.image_size
    traced = torch.jit.trace(  # type: ignore[no-untyped-call]
        image_embedder(config, tensors), torch.zeros(1, 3, size, size), check_trace=False
    )
    # Pixels come as 0..255; the embedder takes 0..1.
    image = coremltools.ImageType(
        name="image",
        shape=(1, 3, size, size),
        scale=1 / 255,
        color_layout=coremltools.colorlayout.RGB,
    )
    program: Any = coremltools.convert(
        traced,
        inputs=[image],
        outputs=[coremltools.TensorType(name="embedding")],
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    program.short_description = "Image tower of a CLIP encoder"
    program.input_description["image"] = f"RGB image, its central square at {size} x {size} pixels"
    program.output_description["embedding"] = "Embedding before normalization"
    program.user_defined_metadata.update({f"clipmill.{k}": v for k, v in origin(metadata).items()})
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / _FILE
    program.save(str(place))
    return ExportResult(
        name=str(place),
        usage=(
            "import coremltools, PIL.Image\n\n"
            f'model = coremltools.models.MLModel("{place}")\n'
            f'image = PIL.Image.open("photo.jpg").convert("RGB").resize(({size}, {size}))\n'
            'embedding = model.predict({"image": image})["embedding"]'
        ),
        library="coreml",
        preprocessing=preprocessing(config.vision),
        notes=("note: the text tower isn't in it",),
    )


def image_embedder(config: ClipConfig, tensors: Mapping[str, "Tensor"]) -> Any:
    """Images (B, 3, S, S) in 0..1 to embeddings (B, D): the module that is converted."""
    from torch import nn

    from clipmill.models.encoders import Normalize
    from clipmill.models.execution import fuse_branches

    clip = build_clip(config)
    clip.load_state_dict(tensors)
    normalize = Normalize(config.vision.mean, config.vision.std)
    return nn.Sequential(normalize, fuse_branches(clip.visual)).eval()


_Writer = Callable[[CheckpointMetadata, ClipConfig, Mapping[str, "Tensor"], Path], ExportResult]
ENCODER_FORMATS: Final[Mapping[str, _Writer]] = {
    "open_clip": export_open_clip,
    "timm": export_timm,
    "transformers": export_transformers,
    "coreml": export_coreml,
}
"""Both towers for open_clip and transformers, the image tower for timm and Core ML."""
