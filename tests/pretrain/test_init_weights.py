"""Starts of a CLIP run: our checkpoints, files that open_clip saved, and names."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import MaeConfig, TextConfig, VisionConfig
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip, text_kwargs, vision_kwargs
from clipmill.pretrain.init_weights import load_init_weights, resolve_init
from clipmill.pretrain.mae import MaskedAutoencoder
from helpers.tiny_clip import CLIP

VISION = replace(CLIP.vision, has_input_norm=False)
MAE = MaeConfig(vision=VISION, decoder_width=16, decoder_layers=1, decoder_heads=2)


def built(seed, config=CLIP):
    torch.manual_seed(seed)
    return build_clip(config)


def started(name, config=CLIP):
    """A model that began with this start."""
    made = built(1, config)
    load_init_weights(resolve_init(str(name)), made, config)
    return made


def assert_same(found, expected):
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def checkpoint(folder, kind, architecture, tensors):
    metadata = CheckpointMetadata(kind=kind, architecture=architecture.to_json(), recipe={})
    return save_checkpoint(str(folder / kind), metadata, tensors).uri


def beside_its_config(path, config=CLIP, **changed):
    """The address of a file of weights that has open_clip's config beside it."""
    value = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "vision_cfg": vision_kwargs(config.vision),
            "text_cfg": text_kwargs(config.text),
            **changed,
        }
    }
    (path.parent / "open_clip_config.json").write_text(json.dumps(value))
    return f"file:{path}"


def test_scratch():
    assert resolve_init("") is None


def test_our_checkpoint(tmp_path):
    expected = built(0)
    uri = checkpoint(tmp_path, "clip", CLIP, expected.state_dict())
    assert_same(started(uri), expected)
    parent = resolve_init(uri).parent
    assert (parent.role, parent.uri) == ("start", uri)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("form", ["plain", "training"])
def test_a_file_that_open_clip_saved(tmp_path, suffix, form):
    expected, path = built(0), tmp_path / f"open_clip_weights.{suffix}"
    tensors = dict(expected.state_dict())
    if form == "training":  # as its trainer writes them, under DDP
        tensors = {f"module.{k}": v for k, v in tensors.items()}
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"epoch": 3, "state_dict": tensors} if form == "training" else tensors, path)
    assert_same(started(beside_its_config(path)), expected)


def test_a_file_of_towers_with_their_text_apart(tmp_path):
    """As MobileCLIP's are in open_clip; the outputs are the same, too."""
    torch.manual_seed(0)
    text = replace(CLIP.text, is_causal=False)
    config = replace(CLIP, text=text)
    theirs = open_clip.CustomTextCLIP(
        embed_dim=CLIP.embed_dim,
        vision_cfg=vision_kwargs(CLIP.vision),
        text_cfg=text_kwargs(text),
    )
    path = tmp_path / "open_clip_model.safetensors"
    save_file(theirs.state_dict(), path)
    ours = started(beside_its_config(path, config, custom_text=True), config)
    images, tokens = (
        torch.randn(2, 3, 16, 16),
        Tokenizer.from_config(text)(["a cube", "two red hats"]),
    )
    torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens))
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images))


def test_an_image_tower_of_mae(tmp_path):
    mae = MaskedAutoencoder(MAE)
    uri = checkpoint(tmp_path, "mae", MAE, mae.state_dict())
    config = replace(CLIP, vision=VISION)
    found, fresh = started(uri, config).state_dict(), built(1, config).state_dict()
    for name, tensor in mae.visual.state_dict().items():
        assert torch.equal(found[f"visual.{name}"], tensor), name
    for name in ("visual.proj", "token_embedding.weight", "logit_scale"):
        assert torch.equal(found[name], fresh[name]), name
    assert not torch.equal(found["visual.conv1.weight"], fresh["visual.conv1.weight"])


def test_a_tower_without_input_norm_doesnt_fit_one_with_it(tmp_path):
    uri = checkpoint(tmp_path, "mae", MAE, MaskedAutoencoder(MAE).state_dict())
    with pytest.raises(ConfigError, match=r"--set model\.vision\.has_input_norm=false"):
        started(uri)


def test_softmax_and_sigmoid_start_from_one_another(tmp_path):
    siglip = replace(CLIP, loss="sigmoid")
    expected = built(0, siglip)
    uri = checkpoint(tmp_path, "clip", siglip, expected.state_dict())
    assert torch.equal(started(uri).visual.proj, expected.visual.proj)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(built(0).state_dict(), path)
    assert started(beside_its_config(path), siglip).logit_bias.item() == -10


def test_weights_of_another_size(tmp_path):
    uri = checkpoint(tmp_path, "clip", CLIP, built(0).state_dict())
    with pytest.raises(
        ConfigError, match=r"--set model\.text\.width=16 --set model\.text\.heads=2"
    ):
        started(uri, replace(CLIP, text=TextConfig(context_length=12, vocab_size=600, layers=1)))
    with pytest.raises(ConfigError, match=r"--set model\.vision\.timm_model="):
        started(uri, replace(CLIP, vision=VisionConfig(timm_model="test_resnet")))


def test_weights_of_another_activation_or_normalization(tmp_path):
    """Both would load, and compute something else."""
    path = tmp_path / "open_clip_model.safetensors"
    save_file(built(0).state_dict(), path)
    address = beside_its_config(path, quick_gelu=True)
    with pytest.raises(ConfigError, match=r"--set model\.vision\.activation=quick_gelu"):
        started(address)
    quick = CLIP.override(["vision.activation=quick_gelu", "text.activation=quick_gelu"])
    assert_same(started(address, quick), built(0))
    with pytest.raises(ConfigError, match=r"model\.vision\.mean=\[0\.48145466"):
        started(address, quick.override(["vision.mean=[0.5, 0.5, 0.5]"]))


def test_towers_of_two_activations():
    with pytest.raises(ConfigError, match="one activation for both towers"):
        built(0, CLIP.override(["vision.activation=quick_gelu"]))


def test_a_file_that_would_run_code(tmp_path):
    path = tmp_path / "open_clip_weights.pt"
    torch.save({"model": built(0)}, path)
    with pytest.raises(ArtifactError, match="can't be read as weights"):
        started(beside_its_config(path))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_cut_file(tmp_path, suffix):
    path = tmp_path / f"open_clip_weights.{suffix}"
    if suffix == "pt":
        torch.save(built(0).state_dict(), path)
    else:
        save_file(built(0).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ArtifactError, match="can't be read as weights"):
        started(beside_its_config(path))


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "open_clip_list.pt"
    torch.save([1, 2], path)
    with pytest.raises(ArtifactError, match="holds a list"):
        started(beside_its_config(path))


def test_what_isnt_there(tmp_path):
    for name in (f"file:{tmp_path}/none.pt", str(tmp_path / "none")):
        with pytest.raises(NotFoundError):
            resolve_init(name)
    with pytest.raises(ConfigError, match="the initial weights were random"):
        resolve_init("random:timm/test_vit")


def test_a_captioner_is_no_start(tmp_path):
    uri = checkpoint(tmp_path, "coca", CLIP, {})
    with pytest.raises(ArtifactError, match="of kind 'coca'"):
        resolve_init(uri)
