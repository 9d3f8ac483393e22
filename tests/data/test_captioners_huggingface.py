"""Tiny BLIP and GIT models in local folders, against transformers called by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GenerationConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from clipmill.data.captioners import CaptionersConfig, knows_photos, open_captioner
from clipmill.data.captioners.base import CaptionInput, CaptionOutput
from clipmill.data.captioners.config import HuggingFaceConfig
from clipmill.data.captioners.public import HuggingFaceCaptioner
from clipmill.errors import ArtifactError, ConfigError, NotFoundError

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "cube",
    "ball",
    "cone",
    "dog",
    "wall",
    "floor",
    "near",
    "behind",
    "on",
    "two",
    "large",
    "small",
]
CONFIG = HuggingFaceConfig(max_new_tokens=8, num_beams=3)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
PICTURES = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 20, 3), np.uint8))
    for k in range(6)
]


def tokenizer(folder):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\n".join(special + WORDS))
    made = BertTokenizer(str(folder / "vocab.txt"))
    made.add_special_tokens({"bos_token": "[DEC]"})
    return made


def save_blip(folder):
    text = tokenizer(folder)
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        # BLIP's own range is so small that no picture would differ from another.
        vision_config={**SIZES, "image_size": 16, "patch_size": 8, "initializer_range": 0.02},
        text_config={
            **SIZES,
            **ids,
            "vocab_size": len(text),
            "encoder_hidden_size": 32,
            "max_position_embeddings": 32,
        },
    )
    return BlipForConditionalGeneration(config), BlipProcessor(
        BlipImageProcessor(size={"height": 16, "width": 16}), text
    )


def save_git(folder):
    config = GitConfig(
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        **SIZES,
        vocab_size=len(tokenizer(folder)),
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    size = {"shortest_edge": 16}
    images = CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
    return GitForCausalLM(config), GitProcessor(images, tokenizer(folder))


def save_vit_gpt2(folder):
    """A VisionEncoderDecoder, whose image processor and tokenizer have no processor in common."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
    text = tokenizer(folder)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**SIZES, image_size=16, patch_size=8),
        GPT2Config(**sizes, **ids, vocab_size=len(text)),
        decoder_start_token_id=2,
        **ids,
    )
    model = VisionEncoderDecoderModel(config)
    model.generation_config = GenerationConfig(decoder_start_token_id=2, min_length=5, **ids)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model, text


@pytest.fixture(scope="module", params=["blip", "git", "vit-gpt2-"])
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model, processor = {
        "blip": save_blip,
        "git": save_git,
        "vit-gpt2-": save_vit_gpt2,
    }[request.param](made)
    with torch.no_grad():
        # So large that what is said depends on the picture.
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and ".ln_" not in name:
                parameter.mul_(40 if ".crossattention." in name else 8)
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return made


def inputs(pictures=PICTURES):
    return [CaptionInput(uid=f"u{i}", caption="x", image=p) for i, p in enumerate(pictures)]


def outputs(captioner, samples):
    found = dict(captioner.caption(samples))
    return [found[i] for i in range(len(samples))]


def image_processor(folder):
    kind = AutoImageProcessor if folder.name.startswith("vit") else AutoProcessor
    return kind.from_pretrained(folder)


def by_hand(folder, **options):
    """Texts by the model itself."""
    processor = image_processor(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    encoded = processor(images=PICTURES, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**encoded, max_new_tokens=8, **options)
    return AutoTokenizer.from_pretrained(folder).batch_decode(found, skip_special_tokens=True)


def test_captions_are_those_of_transformers(folder):
    found = outputs(HuggingFaceCaptioner(str(folder), CONFIG), inputs())
    assert [output.texts[0] for output in found] == by_hand(folder, num_beams=3)
    assert len({output.texts for output in found}) > 1
    assert all(-20 < output.scores[0] < 0 for output in found)


def test_several_captions_of_a_search_are_ranked(folder):
    captioner = HuggingFaceCaptioner(str(folder), CONFIG.override(["num_captions=3"]))
    expected = by_hand(folder, num_beams=3, num_return_sequences=3)
    for k, output in enumerate(outputs(captioner, inputs())):
        assert set(output.texts) == set(expected[3 * k : 3 * k + 3])
        assert list(output.scores) == sorted(output.scores, reverse=True)


def test_greedy_scores_are_mean_log_probabilities(folder):
    """Against one forward pass over the text that was said."""
    config = HuggingFaceConfig(max_new_tokens=6, num_beams=1)
    found = outputs(HuggingFaceCaptioner(str(folder), config), inputs())
    processor = image_processor(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for picture, output in zip(PICTURES, found, strict=True):
        pixels = processor(images=picture, return_tensors="pt").pixel_values
        with torch.no_grad():
            said = model.generate(
                pixel_values=pixels,
                max_new_tokens=6,
                return_dict_in_generate=True,
                output_scores=True,
            )
        logs = torch.stack(said.scores, dim=1)[0].log_softmax(-1)
        tokens = said.sequences[0, -len(logs) :]
        chosen = logs.gather(1, tokens[:, None]).mean().item()
        assert output.scores == (pytest.approx(chosen, abs=1e-4),)


def test_sampling_is_decided_by_seed_and_batch(folder):
    config = HuggingFaceConfig(method="top_p", top_p=1.0, num_captions=4, max_new_tokens=8)

    def sample(seed):
        captioner = HuggingFaceCaptioner(str(folder), config.override([f"seed={seed}"]))
        return outputs(captioner, inputs())

    first = sample(0)
    assert sample(0) == first
    assert sample(1) != first
    assert max(len(output.texts) for output in first) > 1


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (2000, 3)])
def test_odd_pictures(folder, size):
    captioner = HuggingFaceCaptioner(str(folder), CONFIG)
    (output,) = outputs(captioner, inputs([Image.new("RGB", size, "red")]))
    assert output.texts or output == CaptionOutput(reason="empty")


def test_a_prompt_begins_the_text_and_is_cut_off(folder):
    if folder.name.startswith("git"):
        pytest.skip("GIT's prompts are questions, of another form")
    if folder.name.startswith("vit"):
        captioner = HuggingFaceCaptioner(str(folder), CONFIG.override(["prompt=a red"]))
        with pytest.raises(ConfigError, match="takes none"):
            outputs(captioner, inputs())
        return
    captioner = HuggingFaceCaptioner(str(folder), CONFIG.override(["prompt=a red"]))
    plain = HuggingFaceCaptioner(str(folder), CONFIG)
    found = outputs(captioner, inputs())
    assert not any(t.startswith("a red") for output in found for t in output.texts)
    assert captioner.identity != plain.identity
    assert captioner.detail["prompt"] == "a red"


def test_kinds(folder):
    kind, captioner = open_captioner(f"file:{folder}", CaptionersConfig(huggingface=CONFIG))
    expected = folder.name.rstrip("0123456789")
    assert kind == ("huggingface" if expected == "vit-gpt2-" else expected)
    assert captioner.parents[0].uri == f"file:{folder}"
    assert captioner.identity == HuggingFaceCaptioner(folder, CONFIG).identity
    assert knows_photos(captioner)


def test_a_repository_in_the_cache(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--captions"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = CaptionersConfig(huggingface=CONFIG)
    for address in ("hf:org/captions", f"hf:org/captions@{commit}"):
        _, captioner = open_captioner(address, config)
        assert captioner.parents[0].uri == f"hf:org/captions@{commit}"
        assert captioner.identity == HuggingFaceCaptioner(folder, CONFIG).identity
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        open_captioner("hf:org/captions@v2", config)


def test_who_it_is_depends_on_the_files_and_what_decides_the_draw(folder, tmp_path):
    def identity(config=CONFIG, place=folder, **options):
        return HuggingFaceCaptioner(str(place), config, **options).identity

    assert identity(batch_size=9, num_threads=1) == identity()
    assert identity(CONFIG.override(["num_beams=2"])) != identity()
    nucleus = CONFIG.override(["method=top_p"])
    assert identity(nucleus, batch_size=9) != identity(nucleus, batch_size=8)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert identity(place=tmp_path) == identity()
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert identity(place=tmp_path) != identity()


def test_pickles_and_code_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ArtifactError, match="holds no safetensors"):
        HuggingFaceCaptioner(str(tmp_path), CONFIG)
    mark = tmp_path / "ran"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config["model_type"] = "foreign"
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ArtifactError, match="can't be loaded"):
        outputs(HuggingFaceCaptioner(str(tmp_path), CONFIG), inputs())
    assert not mark.exists()


def test_no_folder_of_a_model(tmp_path):
    with pytest.raises(ArtifactError, match="is not the folder of a model"):
        HuggingFaceCaptioner(str(tmp_path / "none"), CONFIG)


@pytest.mark.parametrize(
    "wrong", [{"num_captions": 4}, {"num_beams": 0}, {"top_p": 1.5}, {"max_new_tokens": 0}]
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(ConfigError, match=" was "):
        HuggingFaceConfig(**wrong)


def test_a_folder_that_lacks_a_tensor_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=f"lacks 1 tensors of its model, such as .*{name}"):
        outputs(HuggingFaceCaptioner(str(copy), CONFIG), inputs())
