"""CoCa as a captioner: open_clip's generation, as text."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipmill.data.augmentation import center_resize
from clipmill.data.captioners import CocaCaptioner, GenerateConfig
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.checkpoint import ModelCard, save_checkpoint
from clipmill.models.normalization import Normalize
from clipmill.models.towers import ClipConfig, CocaConfig, TextConfig, VisionConfig, build_coca

COCA = CocaConfig(
    clip=ClipConfig(
        embed_dim=32,
        vision=VisionConfig(image_size=16, patch_size=8, width=32, layers=1, head_width=16),
        text=TextConfig(context_length=20, vocab_size=1024, width=32, heads=2, layers=1),
    ),
    decoder_layers=1,
    num_queries=4,
)
TEXTS = {(255, 0, 0): "a red cube on the floor", (0, 0, 255): "two blue balls near a wall"}
PICTURES = [Image.new("RGB", (20, 16), colour) for colour in TEXTS]
GREEDY = GenerateConfig(method="top_k", top_k=1, max_tokens=19)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A CoCa that has learnt two pictures by heart."""
    torch.manual_seed(0)
    coca = build_coca(COCA)
    pixels = np.stack([center_resize(picture, 16) for picture in PICTURES])
    images = Normalize()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    tokens = COCA.clip.text.tokenizer()(list(TEXTS.values()))
    optimizer = torch.optim.Adam(coca.parameters(), 1e-2)
    for _ in range(80):
        found = coca(images, tokens)
        loss = F.cross_entropy(found["logits"].transpose(1, 2), found["labels"], ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    card = ModelCard(kind="coca", architecture=COCA.to_json(), recipe={})
    return save_checkpoint(str(tmp_path_factory.mktemp("coca")), card, coca.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        GenerateConfig(method="top_p", top_p=0.5, max_tokens=19),
        GenerateConfig(method="beam_search", num_beams=4, num_beam_groups=2, max_tokens=19),
    ],
)
def test_what_was_learnt_is_said(checkpoint, config):
    captioner = CocaCaptioner(checkpoint.uri, config)
    assert captioner.caption(PICTURES, seed=0) == list(TEXTS.values())
    assert captioner.caption(PICTURES[::-1], seed=0) == list(TEXTS.values())[::-1]
    assert captioner.caption(PICTURES[:1], seed=0) == list(TEXTS.values())[:1]


def test_sampling_is_decided_by_seeds(tmp_path):
    """Of a model that has learnt nothing, for which all is as likely."""
    torch.manual_seed(0)
    card = ModelCard(kind="coca", architecture=COCA.to_json(), recipe={})
    uri = save_checkpoint(str(tmp_path), card, build_coca(COCA).state_dict()).uri

    def sample(config_seed, seed):
        config = GenerateConfig(method="top_k", top_k=600, max_tokens=19, seed=config_seed)
        return tuple(CocaCaptioner(uri, config).caption(PICTURES, seed))

    assert sample(0, 0) == sample(0, 0)
    assert len({sample(0, 0), sample(0, 1), sample(1, 0)}) == 3


def test_captions_end_where_they_must(checkpoint):
    config = GenerateConfig(method="top_k", top_k=1, max_tokens=7)
    found = CocaCaptioner(checkpoint.uri, config).caption(PICTURES, seed=0)
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
    assert len(CocaCaptioner(checkpoint.uri, config).caption(PICTURES, seed=0)) == 2


def test_it_is_the_layers_parent(checkpoint):
    assert CocaCaptioner(checkpoint.uri, GREEDY).parent == checkpoint.as_parent("captioner")


def test_a_checkpoint_of_another_kind(tmp_path):
    save_checkpoint(str(tmp_path), ModelCard(kind="clip", architecture={}, recipe={}), {})
    with pytest.raises(ArtifactError, match="of kind 'clip'"):
        CocaCaptioner(str(tmp_path), GREEDY)


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        CocaCaptioner(str(tmp_path), GREEDY)
