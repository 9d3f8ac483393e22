"""Exported encoders, loaded by open_clip and timm themselves."""

from dataclasses import replace

import open_clip
import pytest
import timm
import torch
from tiny_towers import CLIP, COCA

from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import ModelCard, save_checkpoint
from clipmill.models.export import export
from clipmill.models.tokenizer import CLIP_VOCAB_SIZE
from clipmill.models.towers import CLIP_MEAN, VisionConfig, build_clip, build_coca

CONVOLUTIONAL = replace(CLIP, vision=VisionConfig(image_size=32, timm_model="test_resnet"))
NO_INPUT_NORM = replace(CLIP, vision=replace(CLIP.vision, has_input_norm=False))
SIGLIP = replace(CLIP, loss="sigmoid")
FULL_VOCABULARY = replace(CLIP, text=replace(CLIP.text, vocab_size=CLIP_VOCAB_SIZE))


def saved(folder, config, build=build_clip, kind="clip"):
    torch.manual_seed(0)
    model = build(config).eval()
    for parameter in model.parameters():  # a projection, a norm or a bias left out must show
        torch.nn.init.normal_(parameter.data, std=0.2)
    card = ModelCard(kind=kind, architecture=config.to_json(), recipe={})
    save_checkpoint(str(folder), card, model.state_dict())
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", [CLIP, CONVOLUTIONAL, FULL_VOCABULARY, NO_INPUT_NORM, SIGLIP])
def test_open_clip_loads_both_towers_with_equal_outputs(tmp_path, images, config):
    ours = saved(tmp_path / "ours", config)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "open_clip")
    theirs, preprocess = open_clip.create_model_from_pretrained(made.name)
    tokens = config.text.tokenizer(is_padded=True)(["a red cube", "two balls"])
    with torch.no_grad():
        found, expected = theirs.eval()(images, tokens), ours(images, tokens)
    names = ("image_features", "text_features", "logit_scale")
    found = list(found.values()) if isinstance(found, dict) else found
    for name, value in zip(names, found[:3], strict=True):
        assert torch.equal(expected[name], value), name
    assert tuple(preprocess.transforms[-1].mean) == CLIP_MEAN
    assert len(made.notes) == (config.text.vocab_size != CLIP_VOCAB_SIZE)


def test_open_clips_tokenizer_gives_our_ids_where_the_vocabulary_is_whole(tmp_path):
    saved(tmp_path / "ours", FULL_VOCABULARY)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "open_clip")
    texts = ["A red cube, on a blue ground.", "naïve café"]
    found = open_clip.get_tokenizer(made.name)(texts)
    assert torch.equal(found, FULL_VOCABULARY.text.tokenizer(is_padded=True)(texts))


@pytest.mark.parametrize("config", [CLIP, NO_INPUT_NORM])
def test_timm_loads_a_vit_with_equal_embeddings(tmp_path, images, config):
    ours = saved(tmp_path / "ours", config)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "timm")
    theirs = timm.create_model(made.name, pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours.encode_image(images), rtol=1e-5, atol=1e-5)
    assert timm.data.resolve_model_data_config(theirs)["mean"] == list(CLIP_MEAN)
    assert made.notes == ()


def test_timm_loads_its_own_tower_with_equal_features(tmp_path, images):
    ours = saved(tmp_path / "ours", CONVOLUTIONAL)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "timm")
    theirs = timm.create_model(made.name, pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(images), ours.visual.trunk(images))
    assert "the projection" in made.notes[0]


def test_a_format_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="'onnx' is no format"):
        export(str(tmp_path), tmp_path / "out", "onnx")


def test_a_checkpoint_that_is_no_clip(tmp_path):
    saved(tmp_path / "ours", COCA, build_coca, "coca")
    with pytest.raises(ArtifactError, match="of kind 'coca'"):
        export(str(tmp_path / "ours"), tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
