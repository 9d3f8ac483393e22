"""Public weights against the libraries that own them.

Each row builds a model with the owning library, with random weights, saves it in that library's own
format, and compares pooled features and the dense map of the last block.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import lineage
from clipmill.models.clip import load_clip
from clipmill.models.encoders import build_dense, build_pooled
from clipmill.models.pretrained import import_weights, open_encoder
from clipmill.models.weights import files, open_clip_layout
from clipmill.models.weights.public import find_weights
from clipmill.stage_records import no_progress

SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 4}
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model of another library, saved."""

    address: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooled: object
    """Normalized images to features before any projection."""
    dense: object
    """Normalized images to the map of the last block (B, D, h, w)."""


def shaken(model):
    """No parameter left at 0 or 1, so that each shows in what the model computes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def open_clip_folder(folder, vision, *, preprocess=None, **changed):
    """A CLIP of open_clip's with a small text tower, as ``save_for_hf`` writes it."""
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": SMALL_TEXT} | changed
    is_custom = config.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    model = shaken(kind(**config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    value = {"model_cfg": config | {"custom_text": is_custom}, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(value))
    return model


def open_clip_vit(folder, preprocess=None, vision=None, **changed):
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16} | (
        vision or {}
    )
    model = open_clip_folder(folder, vision, preprocess=preprocess, **changed)
    preprocess = preprocess or {}
    visual = model.visual

    def pooled(images):
        projection, visual.proj = visual.proj, None
        try:
            return visual(images)
        finally:
            visual.proj = projection

    def dense(images):
        found = visual.forward_intermediates(
            images, indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return found["image_intermediates"][-1]

    return Saved(
        address=f"file:{folder}",
        side=vision["image_size"],
        mean=preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=preprocess.get("std", open_clip.OPENAI_DATASET_STD),
        pooled=pooled,
        dense=dense,
    )


def last_map(model, images):
    """The map of a timm model's last stage: of a ViT all tokens but the first ones."""
    features = model.forward_features(images)
    if features.ndim == 3:
        patches = features[:, model.num_prefix_tokens :]
        side = int(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (side, side))
    # Some networks widen their features after the last stage, for the classifier alone.
    return model.forward_intermediates(images, intermediates_only=True)[-1]


def timm_pooled(model, images):
    return model.forward_head(model.forward_features(images), pre_logits=True)


def open_clip_timm(folder, name, *, side, pool, proj, preprocess=None):
    """A CLIP of open_clip's whose image tower is timm's."""
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": side}
    model = open_clip_folder(folder, vision, preprocess=preprocess, custom_text=True)
    trunk = model.visual.trunk
    preprocess = preprocess or {}

    return Saved(
        address=f"file:{folder}",
        side=side,
        mean=preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=preprocess.get("std", open_clip.OPENAI_DATASET_STD),
        pooled=partial(timm_pooled, trunk),
        dense=partial(last_map, trunk),
    )


def timm_folder(folder, name, *, is_pickled=False, **arguments):
    """A model of timm's, as ``save_for_hf`` writes it."""
    model = shaken(timm.create_model(name, num_classes=3, **arguments))
    if is_pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
    config = {k: v for k, v in model.pretrained_cfg.items() if k in {"mean", "std", "input_size"}}
    if "img_size" in arguments:
        config["input_size"] = [3, arguments["img_size"], arguments["img_size"]]
    value = {"architecture": name, "num_classes": 3, "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(value | {"model_args": arguments}))
    model.reset_classifier(0)
    return Saved(
        address=f"file:{folder}",
        side=config["input_size"][1],
        mean=config["mean"],
        std=config["std"],
        pooled=model,
        dense=partial(last_map, model),
    )


def transformers_clip(folder, **changed):
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 3, "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=24, **changed)
    model = shaken(CLIPModel(config))
    model.save_pretrained(folder)
    preprocess = {"image_mean": HALF, "image_std": [0.2, 0.3, 0.4], "resample": 2,
                  "do_center_crop": True}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess))

    def dense(images):
        hidden = model.vision_model(images).last_hidden_state[:, 1:]
        found = model.vision_model.post_layernorm(hidden)
        return found.transpose(1, 2).unflatten(2, (4, 4))

    return Saved(
        address=f"file:{folder}",
        side=32,
        mean=HALF,
        std=(0.2, 0.3, 0.4),
        pooled=lambda images: model.vision_model(images).pooler_output,
        dense=dense,
    )


def transformers_siglip(folder):
    from transformers import SiglipConfig, SiglipModel

    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 3, "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 3, "vocab_size": 100}  # fmt: skip
    model = shaken(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    model.save_pretrained(folder)

    def dense(images):
        hidden = model.vision_model(images).last_hidden_state
        return hidden.transpose(1, 2).unflatten(2, (4, 4))

    return Saved(
        address=f"file:{folder}",
        side=32,
        mean=HALF,
        std=HALF,
        pooled=lambda images: model.vision_model(images).pooler_output,
        dense=dense,
    )


LAYOUTS = {
    "open_clip ViT, GELU (LAION, DataComp)": open_clip_vit,
    "open_clip ViT, QuickGELU (OpenAI, DFN, MetaCLIP)": partial(open_clip_vit, quick_gelu=True),
    "open_clip ViT, mlp_ratio and mean of its own": partial(
        open_clip_vit,
        vision={"mlp_ratio": 4.3637},
        preprocess={"mean": HALF, "std": HALF},
    ),
    "open_clip ViT without input norm": partial(open_clip_vit, vision={"no_ln_pre": True}),
    "open_clip ViT in a CustomTextCLIP": partial(open_clip_vit, custom_text=True),
    "open_clip ViT, patch 14": partial(
        open_clip_vit, vision={"patch_size": 14, "image_size": 56}
    ),
    "open_clip, timm ViT pooled by attention (SigLIP, PE)": partial(
        open_clip_timm, name="test_vit3", side=160, pool="map", proj="none",
        preprocess={"mean": HALF, "std": HALF, "resize_mode": "squash"},
    ),
    "open_clip, timm ViT with its classifier (MobileCLIP-B)": partial(
        open_clip_timm, name="test_vit", side=160, pool="token", proj=None
    ),
    "open_clip, timm ViT pooled by the mean": partial(
        open_clip_timm, name="test_vit", side=160, pool="avg", proj="linear"
    ),
    "open_clip, timm ResNet": partial(
        open_clip_timm, name="test_resnet", side=64, pool="avg", proj="linear"
    ),
    "open_clip, FastViT (MobileCLIP S0-S2)": partial(
        open_clip_timm, name="fastvit_t8", side=64, pool="avg", proj=None,
        preprocess={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ),
    "timm ResNet": partial(timm_folder, name="test_resnet"),
    "timm ViT, pickled": partial(timm_folder, name="test_vit", is_pickled=True),
    "timm ViT, QuickGELU": partial(
        timm_folder, name="vit_base_patch16_clip_quickgelu_224", img_size=64, **TINY
    ),
    "timm SigLIP 2": partial(
        timm_folder, name="vit_base_patch16_siglip_256", img_size=64, act_layer="gelu_tanh", **TINY
    ),
    "timm DINOv2, patch 14, registers": partial(
        timm_folder, name="vit_base_patch14_reg4_dinov2", img_size=56, **TINY
    ),
    "timm DINOv3, rotary positions, registers": partial(
        timm_folder, name="vit_small_patch16_dinov3", img_size=64, **TINY
    ),
    "timm Perception Encoder": partial(
        timm_folder, name="vit_pe_core_base_patch16_224", img_size=64, **TINY
    ),
    "timm Perception Encoder, spatial": partial(
        timm_folder, name="vit_pe_spatial_tiny_patch16_512", img_size=64, **TINY
    ),
    "timm TIPS, patch 14, register": partial(
        timm_folder, name="vit_base_patch14_reg1_tipsv2", img_size=56, **TINY
    ),
    "transformers CLIP": transformers_clip,
    "transformers SigLIP": transformers_siglip,
}  # fmt: skip


def normalized(saved, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (saved.mean, saved.std))
    return (images - mean) / std


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_features_are_those_of_the_library_that_owns_the_weights(name, tmp_path):
    saved = LAYOUTS[name](tmp_path)
    start = open_encoder(saved.address)
    images = torch.rand(2, 3, saved.side, saved.side)
    inputs = normalized(saved, images)
    for build, expected in ((build_pooled, saved.pooled), (build_dense, saved.dense)):
        encoder = build(start.config).eval()
        start.load_weights(encoder)
        found = encoder(images)
        found = found[-1] if isinstance(found, list) else found
        reference = expected(inputs)
        assert found.std() > 0.001
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
    assert start.config.vision.image_size == saved.side


OPEN_CLIP_NAMES = [
    "ViT-B-16",
    "ViT-B-16-quickgelu",
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "MobileCLIP-S1",
    "MobileCLIP-S2",
    "MobileCLIP-B",
    "MobileCLIP2-S0",
    "MobileCLIP2-S2",
    "MobileCLIP2-B",
    "PE-Core-T-16-384",
    "PE-Core-B-16",
    "ViT-B-16-SigLIP2",
    "convnext_base",
]
TIMM_NAMES = [
    "fastvit_mci0",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_base_patch14_reg1_tipsv2",
]


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    "address", [f"open_clip/{n}" for n in OPEN_CLIP_NAMES] + [f"timm/{n}" for n in TIMM_NAMES]
)
def test_whole_public_architectures(address, tmp_path):
    """A file without a config, of the architecture as it is published, with random weights."""
    library, _, name = address.partition("/")
    if library == "timm":
        model = trunk = shaken(timm.create_model(name, num_classes=0))
    else:
        model = shaken(open_clip.create_model(name))
        trunk = getattr(model.visual, "trunk", None)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    start = open_encoder(f"file:{tmp_path}/w.safetensors#{address}")
    vision = start.config.vision
    images = torch.rand(1, 3, vision.image_size, vision.image_size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (vision.mean, vision.std))
    inputs = (images - mean) / std
    if trunk is None:
        model.visual.proj = None
        references = {build_pooled: model.visual(inputs)}
    else:
        references = {
            build_pooled: timm_pooled(trunk, inputs),
            build_dense: last_map(trunk, inputs),
        }
    for build, expected in references.items():
        encoder = build(start.config).eval()
        start.load_weights(encoder)
        found = encoder(images)
        found = found[-1] if isinstance(found, list) else found
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (open_clip_vit, ["a red cube", "two hats"]),
        (partial(open_clip_vit, quick_gelu=True), ["a red cube", "two hats"]),
        (partial(open_clip_vit, custom_text=True), ["a red cube", "two hats"]),
    ],
)
def test_texts_of_open_clips_layout(make, texts, tmp_path):
    make(tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ours = load_clip(f"file:{tmp_path}")
    expected = theirs.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts))
    torch.testing.assert_close(ours.model.encode_text(ours.tokenize(texts)), expected)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.model.encode_image(images), theirs.encode_image(images))


@torch.no_grad()
def test_texts_and_embeddings_of_transformers_layout(tmp_path):
    from transformers import CLIPModel

    transformers_clip(tmp_path)
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    ours = load_clip(f"file:{tmp_path}")
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a red cube", "two hats"])
    expected = theirs.get_text_features(tokens)
    found = ours.model.encode_text(ours.tokenize(["a red cube", "two hats"]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        ours.model.encode_image(images), theirs.get_image_features(images), rtol=1e-5, atol=1e-5
    )
    assert (ours.vision.interpolation, ours.vision.resize) == ("bilinear", "shortest")


def test_a_file_needs_its_architecture_where_its_shapes_leave_a_doubt(tmp_path, monkeypatch):
    tensors = open_clip.create_model("ViT-S-32-alt").state_dict()
    path = tmp_path / "a.pt"
    torch.save(tensors, path)
    assert find_weights(f"file:{path}").open_clip_config["vision_cfg"]["width"] == 384
    both = {"ViT-B-32": 0, "ViT-B-32-quickgelu": 0}
    monkeypatch.setattr(open_clip_layout, "known_architectures", lambda _: list(both))
    with pytest.raises(ArtifactError, match=r"#open_clip/ViT-B-32 or file:.*#open_clip/ViT-B-32-q"):
        find_weights(f"file:{path}")
    # OpenAI's files say that they are: all of them were trained with QuickGELU.
    torch.save(tensors | {"input_resolution": torch.tensor(224)}, path)
    assert find_weights(f"file:{path}").vision.activation == "quick_gelu"
    with pytest.raises(ArtifactError, match="trained with QuickGELU"):
        find_weights(f"file:{path}#open_clip/ViT-S-32-alt").tensors()


def test_shapes_name_the_architectures():
    for name in ("ViT-B-16", "ViT-L-14"):
        tensors = open_clip.create_model(name, device="meta").state_dict()
        assert open_clip_layout.known_architectures(tensors) == [name, f"{name}-quickgelu"]


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("ViT-B-16", "openai", "quick_gelu"),
        ("ViT-B-16-quickgelu", "openai", "quick_gelu"),
        ("ViT-B-16", "dfn2b", "quick_gelu"),
        ("ViT-B-32", "metaclip_400m", "quick_gelu"),
        ("ViT-L-14", "openai", "quick_gelu"),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", "gelu"),
        ("ViT-B-16", "laion2b_s34b_b88k", "gelu"),
    ],
)
def test_the_activation_is_the_weights(name, tag, activation, tmp_path):
    """Whatever the architecture's name says."""
    (tmp_path / "w.safetensors").touch()
    found = find_weights(f"file:{tmp_path}/w.safetensors#open_clip/{name}/{tag}")
    assert found.vision.activation == found.both_towers().text.activation == activation


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224"),
        ("vit_base_patch16_clip_224.dfn2b", "vit_base_patch16_clip_quickgelu_224"),
        ("vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_224"),
        ("vit_base_patch16_clip_224.openai_ft_in1k", "vit_base_patch16_clip_224"),
    ],
)
def test_the_activation_is_the_weights_in_timm(name, architecture, tmp_path):
    (tmp_path / "w.safetensors").touch()
    vision = find_weights(f"file:{tmp_path}/w.safetensors#timm/{name}").vision
    assert vision.timm_model == architecture


def test_preprocessing_of_an_architecture_named_alone(tmp_path):
    (tmp_path / "w.pt").touch()
    vision = find_weights(f"file:{tmp_path}/w.pt#open_clip/MobileCLIP-S1").vision
    assert (vision.mean, vision.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (vision.image_size, vision.interpolation, vision.head) == (256, "bilinear", "classifier")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("timm:vit_base_patch16_224x", "did you mean 'vit_base_patch16_224'"),
        ("timm:resnet18.a1_in1kk", "did you mean 'a1_in1k'"),
        ("timm:darknet17", "random:timm/darknet17"),
        ("open_clip:ViT-B-17/openai", "did you mean 'ViT-B-"),
        ("open_clip:ViT-B-16", "with one of openai, "),
        ("open_clip:ViT-B-16/opnai", "did you mean 'openai'"),
        ("open_clip:ViT-B-16//w.pt", "write file:/w.pt#open_clip/ViT-B-16"),
        ("open_clip:local-dir:/x/y", "write file:/x/y"),
        ("timm:local-dir:/x/y", "write file:/x/y"),
        ("hf:name", "hf:ORG/NAME"),
        ("hf:/x/y", "write file:/x/y"),
        ("random:ViT-B-16", "timm/NAME or open_clip/NAME"),
        ("opnclip:ViT-B-16/openai", "did you mean 'open_clip'"),
        ("weights.pt", "file:weights.pt"),
        ("random:open_clip/RN50", "ResNet"),
        ("random:open_clip/ViT-H-14-CLIPA", "pool_type='avg'"),
        ("", "empty"),
    ],
)
def test_addresses_that_mean_nothing(address, words):
    with pytest.raises(ConfigError) as caught:
        open_encoder(address)
    assert words in str(caught.value)


def test_a_folder_of_another_library_without_a_scheme(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=f"expected: file:{tmp_path}\n"):
        open_encoder(str(tmp_path))


def test_files_that_hold_nothing_or_something_else(tmp_path):
    with pytest.raises(NotFoundError, match="doesn't exist"):
        open_encoder(f"file:{tmp_path}/none.pt")
    with pytest.raises(NotFoundError, match=r"neither open_clip_config.json nor config.json"):
        open_encoder(f"file:{tmp_path}")
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="#LIBRARY/NAME"):
        open_encoder(f"file:{path}")
    model = timm.create_model("test_resnet", num_classes=0)
    save_file(model.state_dict(), path)
    for name, words in (("test_vit", "doesn't fit"), ("resnet18", "doesn't fit")):
        start = open_encoder(f"file:{path}#timm/{name}")
        with pytest.raises(ArtifactError, match=words):
            start.load_weights(build_dense(start.config))
    path.write_bytes(path.read_bytes()[:-100])
    start = open_encoder(f"file:{path}#timm/test_resnet")
    with pytest.raises(ArtifactError, match="can't be read as weights"):
        start.load_weights(build_dense(start.config))


def test_a_transformers_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov3_vit"}')
    with pytest.raises(ConfigError, match=r"timm:NAME.TAG"):
        open_encoder(f"file:{tmp_path}")


def test_timm_converts_files_of_the_weights_authors(tmp_path):
    """DINOv2's own files have other names; what they hold is timm's business."""
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=518)
    tensors = {k: v for k, v in model.state_dict().items() if "pos_embed" not in k}
    tensors = {k.replace("reg_token", "register_tokens"): v for k, v in tensors.items()}
    tensors = {k.replace(".ls1.gamma", ".ls1.gamma"): v for k, v in tensors.items()}
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), model.pos_embed], 1)
    tensors["mask_token"] = torch.zeros(1, 384)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "dinov2.safetensors")
    address = f"file:{tmp_path}/dinov2.safetensors#timm/vit_small_patch14_reg4_dinov2"
    found = find_weights(address).tensors()
    assert torch.equal(found["visual.trunk.reg_token"], model.reg_token)
    assert torch.equal(found["visual.trunk.pos_embed"], model.pos_embed)


def test_without_a_network_the_error_names_file_and_place(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError) as caught:
        open_encoder("open_clip:ViT-B-16/openai")
    message = str(caught.value)
    url = "https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/"
    assert f"{url}open_clip_model.safetensors" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "file:PATH#open_clip/ViT-B-16/openai" in message
    with pytest.raises(NotFoundError, match=r"file:PATH#timm/resnet18.a1_in1k"):
        open_encoder("timm:resnet18")
    with pytest.raises(NotFoundError, match=r"no-one/nothing/resolve/v2/open_clip_config.json"):
        open_encoder("hf:no-one/nothing@v2")


@torch.no_grad()
def test_a_cached_repository_is_used_offline(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--team--vit"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    saved = timm_folder(snapshot, "test_vit")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    for address in ("hf:team/vit", f"hf:team/vit@{commit}"):
        weights = find_weights(address)
        assert weights.revision == commit
    start = open_encoder("hf:team/vit")
    encoder = build_pooled(start.config).eval()
    start.load_weights(encoder)
    images = torch.rand(1, 3, saved.side, saved.side)
    torch.testing.assert_close(encoder(images), saved.pooled(normalized(saved, images)))


def test_an_unreachable_hub_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotFoundError, match=r"can't be downloaded: .*refused"):
        files.hub_file("team/vit", ("config.json",))


@torch.no_grad()
def test_imports_are_encoders(tmp_path):
    """Both towers where there are two, and the image tower alone elsewhere."""
    folder, store = tmp_path / "w", str(tmp_path / "out")
    folder.mkdir()
    saved = open_clip_vit(folder, quick_gelu=True, preprocess={"mean": HALF, "std": HALF})
    uri = import_weights(saved.address, store, report=no_progress)
    assert import_weights(saved.address, store, report=None) == uri
    node = lineage(uri)
    assert (node.kind, node.parents[0].role, node.parents[0].uri) == (
        "clip",
        "weights",
        saved.address,
    )
    sha256 = find_weights(saved.address).sha256
    assert node.parents[0].digest == node.detail["weights sha256"] == sha256
    assert node.detail["image size"] == "32 px, shortest, bicubic"
    assert node.detail["mean"] == "0.5 0.5 0.5"
    images = torch.rand(1, 3, 32, 32)
    start = open_encoder(uri)
    encoder = build_dense(start.config).eval()
    start.load_weights(encoder)
    expected = saved.dense(normalized(saved, images))
    torch.testing.assert_close(encoder(images)[-1], expected, rtol=1e-5, atol=1e-5)
    assert load_clip(uri).vision.activation == "quick_gelu"

    other = tmp_path / "t"
    other.mkdir()
    saved = timm_folder(other, "vit_small_patch16_dinov3", img_size=64, **TINY)
    uri = import_weights(saved.address, store, report=no_progress)
    assert lineage(uri).kind == "image"
    with pytest.raises(ArtifactError, match="of kind 'image'"):
        load_clip(uri)
    with pytest.raises(ArtifactError, match="no text tower"):
        load_clip(saved.address)
    start = open_encoder(uri)
    encoder = build_dense(start.config).eval()
    start.load_weights(encoder)
    images = torch.rand(1, 3, 64, 64)
    expected = saved.dense(normalized(saved, images))
    torch.testing.assert_close(encoder(images)[-1], expected, rtol=1e-5, atol=1e-5)


def test_only_public_weights_are_imported(tmp_path):
    for address in ("random:timm/test_vit", str(tmp_path)):
        with pytest.raises(ConfigError, match="isn't public weights"):
            import_weights(address, str(tmp_path), report=no_progress)


def test_another_artifact_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text('{"kind": "dataset", "digest": "x", "parents": []}')
    with pytest.raises(ArtifactError, match="is a dataset, not a checkpoint"):
        open_encoder(str(tmp_path))


def test_the_same_weights_as_another_model_are_another_parent(tmp_path):
    path = Path(tmp_path) / "w.safetensors"
    path.write_bytes(b"one")
    first = find_weights(f"file:{path}#open_clip/ViT-B-16")
    second = find_weights(f"file:{path}#open_clip/ViT-B-16-quickgelu")
    assert len({first.digest, second.digest, replace(first).digest}) == 2
    path.write_bytes(b"two")
    assert find_weights(f"file:{path}#open_clip/ViT-B-16").digest != first.digest
