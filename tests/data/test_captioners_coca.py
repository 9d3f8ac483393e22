"""CoCa as a captioner, against open_clip's own generation."""

import json
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import TopPLogitsWarper

from clipmill.data.captioners import CaptionersConfig, knows_photos, open_captioner
from clipmill.data.captioners.base import CaptionInput, CaptionOutput
from clipmill.data.captioners.coca import CocaCaptioner
from clipmill.data.captioners.coca_generation import CaptionGenerator, sample_token
from clipmill.data.captioners.config import GenerateConfig
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import Parent, read_artifact
from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from clipmill.models.coca import build_coca, coca_forward
from clipmill.models.encoders import Normalize
from clipmill.models.preprocess import center_crop_resize, tower_image
from clipmill.models.tokenizer import Tokenizer
from clipmill.scenes.source import CAPTIONING, ScenesSourceConfig, draw_source
from clipmill.storage import join, unpack_dir
from helpers.open_clip_captions import (
    CASES,
    COCA,
    FILE,
    MAX_TOKENS,
    TINY,
    draw_pixels,
    drawn_coca,
    tiny_model,
)

TOKENIZER = Tokenizer.from_config(COCA.clip.text)
OPEN_CLIPS = json.loads(FILE.read_text())
TEXTS = {(255, 0, 0): "a red cube on the floor", (0, 0, 255): "two blue balls near a wall"}
PICTURES = [Image.new("RGB", (20, 16), color) for color in TEXTS]
GREEDY = GenerateConfig(method="top_k", top_k=1, max_tokens=19)
NUCLEUS = GenerateConfig(method="top_p", top_p=0.9, num_captions=3, max_tokens=12)


def inputs(pictures=PICTURES):
    return [CaptionInput(uid=f"{i:02d}", caption="x", image=p) for i, p in enumerate(pictures)]


def outputs(captioner, samples):
    found = dict(captioner.caption(samples))
    return [found[i] for i in range(len(samples))]


def firsts(captioner, samples):
    return [output.texts[0] for output in outputs(captioner, samples)]


def random_coca(seed, config=COCA):
    """Weights so large that texts differ between pictures, and beams from one another."""
    torch.manual_seed(seed)
    coca = build_coca(config).eval()
    with torch.no_grad():
        for name, parameter in coca.named_parameters():
            if "ln_" not in name:
                parameter.mul_(3)
    return coca


def save_coca(folder, coca, config=COCA):
    metadata = CheckpointMetadata(kind="coca", architecture=config.to_json(), recipe={})
    return save_checkpoint(str(folder), metadata, coca.state_dict())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A CoCa that has learnt two pictures by heart."""
    torch.manual_seed(0)
    coca = build_coca(COCA)
    pixels = np.stack([center_crop_resize(picture, 16) for picture in PICTURES])
    images = Normalize()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    tokens = TOKENIZER(list(TEXTS.values()))
    optimizer = torch.optim.Adam(coca.parameters(), 5e-3)
    for _ in range(80):
        logits = coca_forward(coca, images, tokens).logits_BTV
        loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return save_coca(tmp_path_factory.mktemp("coca"), coca)


@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        GenerateConfig(method="top_p", top_p=0.5, max_tokens=19),
        GenerateConfig(method="beam_search", num_beams=4, num_beam_groups=2, max_tokens=19),
        GenerateConfig(method="top_k", precision="bf16", max_tokens=19),
    ],
)
def test_what_was_learnt_is_said(checkpoint, config):
    captioner = CocaCaptioner(checkpoint.uri, config)
    said = list(TEXTS.values())
    assert firsts(captioner, inputs()) == said
    assert firsts(captioner, inputs(PICTURES[::-1])) == said[::-1]
    assert firsts(captioner, inputs(PICTURES[:1])) == said[:1]
    for output in outputs(captioner, inputs()):
        assert -0.2 < output.scores[0] < 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_those_of_open_clip(case):
    seed, method, num_beams, num_beam_groups = case
    config = GenerateConfig(
        method=method,
        num_beams=num_beams,
        num_beam_groups=num_beam_groups,
        top_k=1,
        max_tokens=MAX_TOKENS,
    )
    generator = CaptionGenerator(drawn_coca(seed), TOKENIZER, Normalize(), config)
    found = generator.generate(draw_pixels(seed), seeds=range(8))
    expected = OPEN_CLIPS[" ".join(map(str, case))]
    assert [texts[0][0] for texts in found] == [TOKENIZER.decode(torch.tensor(t)) for t in expected]
    assert len({texts[0][0] for texts in found}) > 1


def test_scores_are_mean_log_probabilities(checkpoint):
    """Against the plain model, told the text that it said."""
    coca = build_coca(COCA).eval()
    coca.load_state_dict(load_checkpoint(checkpoint.uri)[1])
    pixels = np.stack([center_crop_resize(picture, 16) for picture in PICTURES])
    images = Normalize()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    for config in (GREEDY, GenerateConfig(num_beams=4, num_beam_groups=2, max_tokens=19)):
        found = outputs(CocaCaptioner(checkpoint.uri, config), inputs())
        for k, output in enumerate(found):
            tokens = TOKENIZER(output.texts)
            tokens = tokens[:, : int((tokens != 0).sum())]
            with torch.no_grad():
                logits = coca_forward(coca, images[k : k + 1], tokens).logits_BTV
            logs = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])
            assert output.scores == (pytest.approx(logs.mean().item(), abs=1e-5),)


def test_several_captions_are_decided_by_seed_and_sample_alone(tmp_path):
    uri = save_coca(tmp_path, random_coca(0)).uri

    def sample(samples, seed=0):
        captioner = CocaCaptioner(uri, NUCLEUS.override([f"seed={seed}"]))
        return {s.uid: o.texts for s, o in zip(samples, outputs(captioner, samples), strict=True)}

    samples = inputs(PICTURES * 3)
    found = sample(samples)
    assert sample(samples) == found
    assert len(set(found.values())) == 6
    assert all(len(texts) == 3 for texts in found.values())
    scores = [output.scores for output in outputs(CocaCaptioner(uri, NUCLEUS), samples)]
    assert scores == [tuple(sorted(found, reverse=True)) for found in scores]
    for part in (samples[:1], samples[4:1:-1]):
        assert sample(part) == {s.uid: found[s.uid] for s in part}
    assert sample(samples, seed=1) != found


@pytest.mark.parametrize(("method", "top"), [("top_p", 0.7), ("top_k", 5)])
def test_drawing_keeps_what_transformers_keeps_and_as_often(method, top):
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 40)
    config = GenerateConfig(method=method, temperature=1.5, **{method: top})
    if method == "top_p":
        kept = TopPLogitsWarper(top)(None, logits)
    else:
        kept = logits.masked_fill(logits < logits.topk(5)[0][:, -1:], -torch.inf)
    expected = (kept / 1.5).softmax(-1)[0]
    count = 20_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = sample_token(logits.expand(count, -1), u, config)
    assert drawn.bincount(minlength=40) / count == pytest.approx(expected, abs=2e-4)


def test_captions_end_where_they_must(checkpoint):
    config = GenerateConfig(method="top_k", top_k=1, max_tokens=7)
    found = firsts(CocaCaptioner(checkpoint.uri, config), inputs())
    assert all(whole.startswith(part) for part, whole in zip(found, TEXTS.values(), strict=True))
    assert all(part != whole for part, whole in zip(found, TEXTS.values(), strict=True))


@pytest.mark.parametrize("max_tokens", [5, 21])
def test_a_length_that_the_model_cannot_have(checkpoint, max_tokens):
    with pytest.raises(ConfigError, match=f"max_tokens was {max_tokens}"):
        CocaCaptioner(checkpoint.uri, GenerateConfig(max_tokens=max_tokens))


@pytest.mark.parametrize("method", ["top_k", "beam_search"])
@pytest.mark.parametrize("max_tokens", [6, 20])
def test_shortest_and_longest(checkpoint, max_tokens, method):
    config = GenerateConfig(method=method, max_tokens=max_tokens)
    assert len(firsts(CocaCaptioner(checkpoint.uri, config), inputs())) == 2


def test_a_model_that_says_nothing(tmp_path):
    """Its likeliest token is always the padding, which ends a text."""
    coca = random_coca(0)
    with torch.no_grad():
        coca.text_decoder.ln_final.weight.zero_()
        coca.text_decoder.ln_final.bias.fill_(1.0)
        coca.text_decoder.text_projection.zero_()
        coca.text_decoder.text_projection[:, 0] = 1.0
    found = outputs(CocaCaptioner(save_coca(tmp_path, coca).uri, GREEDY), inputs())
    assert found == [CaptionOutput(reason="empty")] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_captions": 2},
        {"num_captions": 0},
        {"method": "top_k", "top_k": 1, "num_captions": 2},
        {"num_beams": 4, "num_beam_groups": 3},
        {"num_beams": 1, "num_beam_groups": 1},
        {"top_p": 0.0},
        {"top_k": 0},
        {"temperature": 0.0},
    ],
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(ConfigError, match=" was "):
        GenerateConfig(**wrong)


def test_it_is_the_layers_parent(checkpoint):
    captioner = CocaCaptioner(checkpoint.uri, GREEDY)
    assert captioner.parents == (checkpoint.as_parent("captioner"),)
    assert json.loads(captioner.detail["sampling"])["top_k"] == 1


def test_a_checkpoint_of_another_kind(tmp_path):
    save_checkpoint(str(tmp_path), CheckpointMetadata(kind="clip", architecture={}, recipe={}), {})
    with pytest.raises(ArtifactError, match="of kind 'clip'"):
        CocaCaptioner(str(tmp_path), GREEDY)


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        CocaCaptioner(str(tmp_path), GREEDY)


def test_asking_who_it_is_imports_no_model_library(checkpoint):
    code = (
        "import sys\n"
        "from clipmill.data.captioners import CaptionersConfig, open_captioner\n"
        f"kind, captioner = open_captioner('{checkpoint.uri}', CaptionersConfig.from_json("
        "{'generate': {'max_tokens': 12}}))\n"
        "print(kind, captioner.identity)\n"
        "sys.exit(bool({'torch', 'open_clip', 'transformers', 'httpx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or done.stdout
    config = GenerateConfig(max_tokens=12)
    assert done.stdout.split() == ["coca", CocaCaptioner(checkpoint.uri, config).identity]


@pytest.fixture
def tiny(tmp_path):
    """An open_clip model named ``coca_tiny``, known for one test."""
    folder = tmp_path / "configs"
    folder.mkdir()
    yield tiny_model(folder)
    (folder / "coca_tiny.json").unlink()
    open_clip.factory._MODEL_CONFIGS.pop("coca_tiny")


def open_public(address, config):
    kind, captioner = open_captioner(address, CaptionersConfig(generate=config))
    assert kind == "coca"
    return captioner


def tiny_texts(method):
    tokenizer = Tokenizer(context_length=16)
    return [tokenizer.decode(torch.tensor(tokens)) for tokens in OPEN_CLIPS[f"tiny {method}"]]


TINY_GREEDY = GenerateConfig(method="top_k", max_tokens=12)
TINY_PICTURES = [Image.fromarray(pixels) for pixels in draw_pixels(7)]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("method", ["top_k", "beam_search"])
def test_a_file_of_an_architecture_of_open_clips(tiny, tmp_path, suffix, method):
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": tiny.state_dict(), "epoch": 3}, file)
    else:
        save_file(tiny.state_dict(), file)
    config = GenerateConfig(method=method, max_tokens=12)
    address = f"file:{file}#open_clip/coca_tiny"
    captioner = open_public(address, config)
    assert firsts(captioner, inputs(TINY_PICTURES)) == tiny_texts(method)
    assert captioner.detail["model"] == captioner.parents[0].uri == address
    assert open_public(address, config).identity == captioner.identity
    assert knows_photos(captioner)


def test_a_folder_as_open_clip_pushes_it(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "open_clip_model.safetensors")
    written = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    captioner = open_public(f"file:{tmp_path}", TINY_GREEDY)
    other = firsts(captioner, inputs(TINY_PICTURES))
    assert other != tiny_texts("top_k")  # of other mean and std
    written["preprocess_cfg"] = {}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    again = open_public(f"file:{tmp_path}/open_clip_model.safetensors", TINY_GREEDY)
    assert firsts(again, inputs(TINY_PICTURES)) == tiny_texts("top_k")
    assert again.identity != captioner.identity


@pytest.mark.parametrize("length", [16, 40])
def test_a_folder_as_mobileclip2s_captioners_are_published(tiny, tmp_path, length):
    """``config.json`` is the architecture, of a context of its own, and the weights are a .pt."""
    tensors = tiny.state_dict()
    positions = torch.zeros(length + 1, 32)
    positions[:17] = tensors["text.positional_embedding"]
    torch.save({**tensors, "text.positional_embedding": positions}, tmp_path / "coca.pt")
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for tower in ("text_cfg", "multimodal_cfg"):
        config[tower]["context_length"] = length
    (tmp_path / "config.json").write_text(json.dumps(config))
    captioner = open_public(f"file:{tmp_path}", TINY_GREEDY)
    assert firsts(captioner, inputs(TINY_PICTURES)) == tiny_texts("top_k")
    longest = TINY_GREEDY.override([f"max_tokens={length}"])
    assert len(firsts(open_public(f"file:{tmp_path}", longest), inputs(TINY_PICTURES))) == 8
    with pytest.raises(ConfigError, match="max_tokens was"):
        open_public(f"file:{tmp_path}", TINY_GREEDY.override([f"max_tokens={length + 1}"]))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_prepares_them(tiny, tmp_path, mode):
    save_file(tiny.state_dict(), tmp_path / "open_clip_model.safetensors")
    preprocessing = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.9, 0.8, 0.7),
        "interpolation": "bilinear",
        "resize_mode": mode,
    }
    written = {"model_cfg": TINY, "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    captioner = open_public(f"file:{tmp_path}", TINY_GREEDY)
    expected = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=16, **preprocessing), is_train=False
    )
    wide = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    image, vision = Image.fromarray(wide), captioner._vision
    pixels = torch.from_numpy(tower_image(image, vision).copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(
        Normalize(vision.mean, vision.std)(pixels), expected(image), atol=1e-5, rtol=0
    )


def fake_hub(monkeypatch, cache, repository):
    """A cache of the hub's that holds a repository; returns its snapshot. There is no network."""
    from huggingface_hub import constants

    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_pretrained_weights_of_open_clips_from_the_cache(tiny, tmp_path, monkeypatch):
    known = {"coca_tiny": {"scenes": {"hf_hub": "org/tiny/", "mean": (0.5, 0.5, 0.5)}}}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", known)
    snapshot = fake_hub(monkeypatch, tmp_path / "hub", "org/tiny")
    with pytest.raises(NotFoundError, match=r"org/tiny.*open_clip_model.safetensors"):
        open_public("open_clip:coca_tiny/scenes", TINY_GREEDY)
    save_file(tiny.state_dict(), snapshot / "open_clip_model.safetensors")
    captioner = open_public("open_clip:coca_tiny/scenes", TINY_GREEDY)
    assert len(firsts(captioner, inputs(TINY_PICTURES))) == 8
    assert captioner._vision.mean == (0.5, 0.5, 0.5)
    assert captioner.parents[0].uri == f"open_clip:coca_tiny/scenes@{snapshot.name}"
    with pytest.raises(ConfigError, match="no weights 'scene' of coca_tiny; did you mean"):
        open_public("open_clip:coca_tiny/scene", TINY_GREEDY)


def test_a_coca_on_the_hub_from_the_cache(tiny, tmp_path, monkeypatch):
    snapshot = fake_hub(monkeypatch, tmp_path / "hub", "org/tiny")
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    save_file(tiny.state_dict(), snapshot / "open_clip_model.safetensors")
    captioner = open_public("hf:org/tiny", TINY_GREEDY)
    assert firsts(captioner, inputs(TINY_PICTURES)) == tiny_texts("top_k")
    assert captioner.parents[0].uri == f"hf:org/tiny@{snapshot.name}"
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        open_public("hf:org/other", TINY_GREEDY)


def test_weights_that_cannot_be_had(tiny, tmp_path):
    with pytest.raises(NotFoundError, match=r"none\.safetensors"):
        open_public(f"file:{tmp_path}/none.safetensors", GREEDY)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ConfigError, match=r"which CoCa's[\s\S]*#open_clip/coca_ViT-L-14"):
        open_public(f"file:{foreign}", GREEDY)
    address = f"file:{foreign}#open_clip/coca_tiny"
    with pytest.raises(ArtifactError, match="doesn't fit the model"):
        outputs(open_public(address, TINY_GREEDY), inputs())
    with pytest.raises(ConfigError, match="max_tokens was 19"):
        open_public(address, GREEDY)
    for name, reason in (
        ("ViT-B-32", "a CLIP, which can't write"),
        ("coca_roberta-ViT-B-32", "doesn't read CLIP's tokens"),
        ("coca_base", "doesn't read CLIP's tokens"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_public(f"file:{foreign}#open_clip/{name}", GREEDY)
    with pytest.raises(ConfigError, match="a CLIP, which can't write"):
        open_public("open_clip:ViT-B-32/openai", GREEDY)


@pytest.mark.parametrize("is_stage", [True, False])
def test_a_captioner_of_scenes_knows_no_photos(tmp_path, is_stage):
    """Whether its dataset names the scenes' source or only the folder of pairs in it."""
    config = ScenesSourceConfig(
        size=32, num_pairs=2, num_captioner_pairs=2, num_labeled=1, num_test=1
    )
    scenes = draw_source(config, str(tmp_path / "scenes"), report=lambda *_: None)
    pairs = unpack_dir(join(scenes, CAPTIONING), tmp_path / "copies") if is_stage else None
    parents = (Parent(role="source", uri=scenes, digest=read_artifact(scenes)["digest"]),)
    dataset = write_dataset(
        ShardConfig(),
        str(pairs or join(scenes, CAPTIONING)),
        str(tmp_path),
        source_parents=parents if is_stage else (),
    )
    assert not knows_photos(CocaCaptioner(save_trained(tmp_path / "coca", dataset), GREEDY))


def test_a_captioner_of_ones_own_images_knows_photos(tmp_path, write_pairs):
    photos = write_pairs(tmp_path / "photos", 3)
    dataset = write_dataset(ShardConfig(), str(photos), str(tmp_path))
    captioner = CocaCaptioner(save_trained(tmp_path / "coca", dataset), GREEDY)
    assert knows_photos(captioner)
    shutil.rmtree(photos)  # now nothing says what it was trained on
    assert not knows_photos(captioner)


def save_trained(folder, dataset):
    parents = View(Dataset.open(dataset), ViewConfig(captions="real")).parents
    metadata = CheckpointMetadata(
        kind="coca", architecture=COCA.to_json(), recipe={}, parents=parents
    )
    return save_checkpoint(str(folder), metadata, random_coca(0).state_dict()).uri


def test_weights_that_are_no_numbers(tmp_path):
    coca = random_coca(0)
    with torch.no_grad():
        coca.text_decoder.ln_final.weight.fill_(torch.nan)
    for config in (GREEDY, GenerateConfig(max_tokens=19)):
        with pytest.raises(ArtifactError, match="aren't finite"):
            outputs(CocaCaptioner(save_coca(tmp_path, coca).uri, config), inputs())


class _Ran:
    """What a pickle runs when it's read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused(tiny, tmp_path):
    file, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"x": _Ran(str(mark))}, file)
    captioner = open_public(f"file:{file}#open_clip/coca_tiny", TINY_GREEDY)
    with pytest.raises(ArtifactError, match="can't be read as weights"):
        outputs(captioner, inputs())
    assert not mark.exists()
