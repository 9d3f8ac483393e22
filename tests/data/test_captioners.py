"""The registry of captioners, and what they have in common."""

import pytest

from clipmill.data.captioners import CAPTIONERS, CaptionersConfig, open_captioner
from clipmill.data.captioners.contract import CaptionOutput, output_of, sample_seed
from clipmill.errors import ArtifactError, ConfigError, NotFoundError


def test_kinds():
    assert set(CAPTIONERS) == {
        "blip",
        "coca",
        "git",
        "huggingface",
        "rewrite",
        "template",
        "vlm",
    }
    with pytest.raises(ConfigError, match=r"kind 'clip'[\s\S]*one of blip, coca"):
        open_captioner("clip:http://host/v1", CaptionersConfig())


@pytest.mark.parametrize("name", ["no/such/folder", "file:///no/such/folder", "coca:no/such"])
def test_a_uri_alone_is_that_of_a_coca(name):
    with pytest.raises(NotFoundError):
        open_captioner(name, CaptionersConfig())


def test_a_folder_of_another_kind(tmp_path):
    with pytest.raises(ArtifactError):
        open_captioner(f"blip:{tmp_path}", CaptionersConfig())


def test_an_output_has_no_blank_and_no_equal_texts_and_the_best_first():
    assert output_of([" a\n cube ", "", "two balls", "a cube"], [-2.0, -1.0, -0.5, -3.0]) == (
        CaptionOutput(texts=("two balls", "a cube"), scores=(-0.5, -2.0))
    )
    assert output_of(["b", "a"], [None, -1.0]).texts == ("b", "a")
    assert output_of([" ", ""], [0.0, 0.0]) == CaptionOutput(reason="empty")


def test_a_samples_seed_is_its_own():
    assert sample_seed(0, "a") == sample_seed(0, "a")
    assert len({sample_seed(seed, uid) for seed in range(5) for uid in "abcde"}) == 25
    assert all(0 <= sample_seed(0, str(k)) < 2**63 for k in range(50))
