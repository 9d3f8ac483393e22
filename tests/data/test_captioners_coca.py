"""CoCa as a captioner, against open_clip's own generation."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from make_open_clip_captions import (
    CASES,
    COCA,
    FILE,
    MAX_TOKENS,
    TINY,
    draw_pixels,
    drawn_coca,
    tiny_model,
)
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import TopPLogitsWarper

from clipmill.data.captioners.coca import CocaCaptioner, GenerateConfig
from clipmill.data.captioners.coca_decoding import Decoder, draw
from clipmill.data.captioners.contract import CaptionInput, CaptionOutput
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.center_resize import center_resize
from clipmill.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from clipmill.models.coca import coca_forward
from clipmill.models.normalization import Normalize
from clipmill.models.towers import build_coca

TOKENIZER = COCA.clip.text.tokenizer()
OPEN_CLIPS = json.loads(FILE.read_text())
TEXTS = {(255, 0, 0): "a red cube on the floor", (0, 0, 255): "two blue balls near a wall"}
PICTURES = [Image.new("RGB", (20, 16), colour) for colour in TEXTS]
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
    card = ModelCard(kind="coca", architecture=config.to_json(), recipe={})
    return save_checkpoint(str(folder), card, coca.state_dict())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A CoCa that has learnt two pictures by heart."""
    torch.manual_seed(0)
    coca = build_coca(COCA)
    pixels = np.stack([center_resize(picture, 16) for picture in PICTURES])
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
    decoder = Decoder(drawn_coca(seed), TOKENIZER, Normalize(), config, image_size=16)
    found = decoder.decode(draw_pixels(seed), seeds=range(8))
    expected = OPEN_CLIPS[" ".join(map(str, case))]
    assert [texts[0][0] for texts in found] == [TOKENIZER.decode(torch.tensor(t)) for t in expected]
    assert len({texts[0][0] for texts in found}) > 1


def test_scores_are_mean_log_probabilities(checkpoint):
    """Against the plain model, told the text that it said."""
    coca = build_coca(COCA).eval()
    coca.load_state_dict(load_checkpoint(checkpoint.uri)[1])
    pixels = np.stack([center_resize(picture, 16) for picture in PICTURES])
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
    drawn = draw(logits.expand(count, -1), u, config)
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
    save_checkpoint(str(tmp_path), ModelCard(kind="clip", architecture={}, recipe={}), {})
    with pytest.raises(ArtifactError, match="of kind 'clip'"):
        CocaCaptioner(str(tmp_path), GREEDY)


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        CocaCaptioner(str(tmp_path), GREEDY)


def test_asking_who_it_is_imports_no_model_library(checkpoint):
    code = (
        "import sys\n"
        "from clipmill.data.captioners import CaptionersConfig, open_captioner\n"
        f"kind, captioner = open_captioner('coca:{checkpoint.uri}', CaptionersConfig.from_json("
        "{'generate': {'max_tokens': 12}}))\n"
        "print(kind, captioner.identity)\n"
        "sys.exit(bool({'torch', 'open_clip', 'transformers', 'httpx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or done.stdout
    config = GenerateConfig(max_tokens=12)
    assert done.stdout.split() == ["coca", CocaCaptioner(checkpoint.uri, config).identity]


@pytest.fixture
def small_open_clip(tmp_path):
    """An open_clip model named ``coca_tiny``, known for one test."""
    name = "coca_tiny"
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {
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
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    yield name
    (tmp_path / f"{name}.json").unlink()
    open_clip.factory._MODEL_CONFIGS.pop(name)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_model_of_open_clips_by_name(small_open_clip, tmp_path, suffix):
    torch.manual_seed(1)
    model = open_clip.create_model(small_open_clip, load_weights=False).eval()
    torch.nn.init.normal_(model.text_decoder.text_projection)
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, file)
    else:
        save_file(model.state_dict(), file)
    config = GenerateConfig(method="top_k", max_tokens=10)
    captioner = CocaCaptioner(f"{small_open_clip}@{file}", config)
    found = firsts(captioner, inputs())
    pixels = np.stack([center_resize(picture, 16) for picture in PICTURES])
    images = Normalize()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    tokens = model.generate(images, seq_len=10, generation_type="top_k", top_k=1)
    texts = [open_clip.decode(t).split("<start_of_text>")[1] for t in tokens]
    assert found == [" ".join(text.split("<end_of_text>")[0].split()) for text in texts]
    assert captioner.detail["model"] == small_open_clip
    again = CocaCaptioner(f"{small_open_clip}@{file}", config)
    assert (again.identity, again.parents[0].uri) == (captioner.identity, str(file))


def test_weights_that_cannot_be_had(small_open_clip, tmp_path):
    with pytest.raises(NotFoundError, match=r"none\.safetensors"):
        CocaCaptioner(f"{small_open_clip}@{tmp_path}/none.safetensors", GREEDY)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    config = GenerateConfig(max_tokens=10)
    with pytest.raises(ArtifactError, match="doesn't hold weights of coca_tiny"):
        outputs(CocaCaptioner(f"{small_open_clip}@{foreign}", config), inputs())
    with pytest.raises(ConfigError, match=r"one of .*coca_ViT-B-32, coca_ViT-L-14"):
        outputs(CocaCaptioner(f"coca_roberta-ViT-B-32@{foreign}", config), inputs())
    with pytest.raises(ConfigError, match="max_tokens was 19"):
        outputs(CocaCaptioner(f"{small_open_clip}@{foreign}", GREEDY), inputs())


class _Ran:
    """What a pickle runs when it's read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused(small_open_clip, tmp_path):
    file, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"x": _Ran(str(mark))}, file)
    config = GenerateConfig(max_tokens=10)
    with pytest.raises(ArtifactError, match="doesn't hold weights"):
        outputs(CocaCaptioner(f"{small_open_clip}@{file}", config), inputs())
    assert not mark.exists()
