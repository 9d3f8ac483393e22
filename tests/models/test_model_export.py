"""Exported encoders, loaded by the libraries themselves, with equal outputs."""

import json
import os
import sys
from dataclasses import replace

import open_clip
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.coca import build_coca
from clipmill.models.config import CLIP_MEAN, CLIP_VOCAB_SIZE, VisionConfig
from clipmill.models.execution import fuse_branches
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from clipmill.storage import write_json
from clipmill.tasks.export import export
from helpers.tiny_towers import CLIP, COCA

CONVOLUTIONAL = replace(CLIP, vision=VisionConfig(image_size=32, timm_model="test_resnet"))
NO_INPUT_NORM = replace(CLIP, vision=replace(CLIP.vision, has_input_norm=False))
SIGLIP = replace(CLIP, loss="sigmoid")
QUICK_GELU = replace(
    CLIP,
    vision=replace(CLIP.vision, activation="quick_gelu", mlp_ratio=2.0),
    text=replace(CLIP.text, activation="quick_gelu"),
)
FULL_VOCABULARY = replace(CLIP, text=replace(CLIP.text, vocab_size=CLIP_VOCAB_SIZE))


def saved(folder, config, build=build_clip, kind="clip"):
    torch.manual_seed(0)
    model = build(config).eval()
    for parameter in model.parameters():  # a projection, a norm or a bias left out must show
        torch.nn.init.normal_(parameter.data, std=0.2)
    metadata = CheckpointMetadata(kind=kind, architecture=config.to_json(), recipe={})
    save_checkpoint(str(folder), metadata, model.state_dict())
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config", [CLIP, CONVOLUTIONAL, FULL_VOCABULARY, NO_INPUT_NORM, QUICK_GELU, SIGLIP]
)
def test_open_clip_loads_both_towers_with_equal_outputs(tmp_path, images, config):
    ours = saved(tmp_path / "ours", config)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "open_clip")
    theirs, preprocess = open_clip.create_model_from_pretrained(made.name)
    tokens = Tokenizer.from_config(config.text, is_padded=True)(["a red cube", "two balls"])
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
    assert torch.equal(found, Tokenizer.from_config(FULL_VOCABULARY.text, is_padded=True)(texts))


@pytest.mark.parametrize("config", [CLIP, NO_INPUT_NORM, QUICK_GELU])
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


@pytest.mark.parametrize("config", [CLIP, QUICK_GELU])
def test_transformers_loads_both_towers_with_equal_embeddings(tmp_path, images, config):
    from transformers import CLIPModel

    ours = saved(tmp_path / "ours", config)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "transformers")
    theirs, loading = CLIPModel.from_pretrained(made.name, output_loading_info=True)
    assert not any(loading.values())
    tokens = Tokenizer.from_config(config.text, is_padded=True)(
        ["a red cube", "two balls on blue ground"]
    )
    with torch.no_grad():
        found = theirs.eval()(input_ids=tokens, pixel_values=images)
        expected = ours(images, tokens)
    for theirs_BD, name in (
        (found.image_embeds, "image_features"),
        (found.text_embeds, "text_features"),
    ):
        torch.testing.assert_close(theirs_BD, expected[name], rtol=1e-5, atol=1e-5)
    logits_BB = expected["logit_scale"] * expected["image_features"] @ expected["text_features"].T
    torch.testing.assert_close(found.logits_per_image, logits_BB, rtol=1e-4, atol=1e-4)
    assert "CLIPTokenizer" in made.notes[0]


def test_transformers_processor_prepares_what_open_clip_does(tmp_path):
    from transformers import CLIPImageProcessor, CLIPTokenizer, CLIPTokenizerFast

    saved(tmp_path / "ours", FULL_VOCABULARY)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "transformers")
    assert made.notes == ()
    theirs = export(str(tmp_path / "ours"), tmp_path / "open_clip", "open_clip")
    texts = ["A red cube, on a blue ground.", "naïve café", "a photo of 12 dogs!"]
    expected = open_clip.get_tokenizer(theirs.name)(texts)
    for kind in (CLIPTokenizer, CLIPTokenizerFast):
        tokenizer = kind.from_pretrained(made.name)
        assert tokenizer.model_max_length == FULL_VOCABULARY.text.context_length
        for ids, row in zip(tokenizer(texts, truncation=True)["input_ids"], expected, strict=True):
            assert ids == row[: len(ids)].tolist()
            assert not row[len(ids) :].any()
    picture = Image.effect_noise((64, 48), 80).convert("RGB")
    _, preprocess = open_clip.create_model_from_pretrained(theirs.name)
    found = CLIPImageProcessor.from_pretrained(made.name)(picture, return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"][0], preprocess(picture), atol=1e-5, rtol=1e-5)


def test_transformers_has_no_other_towers(tmp_path):
    for config, word in ((CONVOLUTIONAL, "test_resnet"), (NO_INPUT_NORM, "norm")):
        saved(tmp_path / word, config)
        with pytest.raises(ArtifactError, match=word) as error:
            export(str(tmp_path / word), tmp_path / "out", "transformers")
        assert "--to open_clip" in error.value.action
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_the_model_was_made_from(tmp_path):
    dataset = {"kind": "dataset", "digest": "d" * 64, "parents": [], "summary": {"license": "mit"}}
    write_json(str(tmp_path / "data" / "dataset.json"), dataset)
    metadata = CheckpointMetadata(
        kind="clip",
        architecture=CLIP.to_json(),
        recipe={"train": {"steps": 7}},
        parents=(Parent(role="dataset", uri=str(tmp_path / "data"), digest="d" * 64),),
        metrics={"loss": 1.25},
        summary={"captions": "both"},
    )
    save_checkpoint(str(tmp_path / "ours"), metadata, build_clip(CLIP).state_dict())
    made = export(str(tmp_path / "ours"), tmp_path / "out", "open_clip")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith('---\nlibrary_name: "open_clip"\n')
    for line in (
        'license: "mit"',
        "- captions: both",
        "- loss: 1.25",
        f"dataset: dataset {tmp_path / 'data'} (dddddddddddd)",
        '"steps": 7',
        "- size: 32",
        made.name,
    ):
        assert line in text, line


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    saved(tmp_path / "ours", CLIP)
    before = os.umask(0o022)
    try:
        export(str(tmp_path / "ours"), tmp_path / "out", "open_clip")
        saved(tmp_path / "again", CLIP)
    finally:
        os.umask(before)
    for path in (*(tmp_path / "out").iterdir(), *(tmp_path / "again").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644, path


@pytest.mark.filterwarnings("ignore")  # of coremltools and the versions that it was tested with
def test_core_ml_has_one_image_in_and_one_embedding_out(tmp_path):
    coremltools = pytest.importorskip("coremltools")
    config = replace(CONVOLUTIONAL, vision=replace(CONVOLUTIONAL.vision, timm_model="fastvit_mci0"))
    config = replace(config, vision=replace(config.vision, image_size=64))
    ours = saved(tmp_path / "ours", config)
    made = export(str(tmp_path / "ours"), tmp_path / "out", "coreml")
    program = coremltools.models.MLModel(made.name, skip_model_load=True)
    spec = program.get_spec()
    (image,), (embedding,) = spec.description.input, spec.description.output
    assert (image.name, embedding.name) == ("image", "embedding")
    assert (image.type.imageType.width, image.type.imageType.height) == (64, 64)
    kinds = [o.type for f in spec.mlProgram.functions.values() for b in f.block_specializations
             .values() for o in b.operations]  # fmt: skip
    fused = fuse_branches(ours.visual)
    assert kinds.count("conv") == sum(isinstance(m, nn.Conv2d) for m in fused.modules())
    assert program.user_defined_metadata["clipmill.uri"] == str(tmp_path / "ours")
    if sys.platform == "darwin":
        picture = Image.effect_noise((64, 64), 80).convert("RGB")
        found = coremltools.models.MLModel(made.name).predict({"image": picture})["embedding"]
        _, preprocess = open_clip.create_model_from_pretrained(
            export(str(tmp_path / "ours"), tmp_path / "open_clip", "open_clip").name
        )
        with torch.no_grad():
            expected = ours.encode_image(preprocess(picture)[None])
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-3, atol=1e-3)


def test_a_format_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="'onnxx' isn't a format"):
        export(str(tmp_path), tmp_path / "out", "onnxx")


def test_an_artifact_of_another_kind_is_called_by_its_kind(tmp_path):
    saved(tmp_path / "ours", COCA, build_coca, "coca")
    with pytest.raises(ArtifactError, match="is a coca, not an encoder or a task model"):
        export(str(tmp_path / "ours"), tmp_path / "out", "timm")
    value = {"kind": "dataset", "digest": "d" * 64, "parents": []}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match="is a dataset, not an encoder or a task model"):
        export(str(tmp_path / "data"), tmp_path / "out", "timm")
    saved(tmp_path / "clip", CLIP)
    with pytest.raises(ArtifactError, match="is an encoder, and onnx takes a task model"):
        export(str(tmp_path / "clip"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
