"""The registry of captioners, and what they have in common."""

import pytest

from clipmill.data.captioners import CaptionersConfig, captioner_kind, open_captioner
from clipmill.data.captioners.base import CaptionOutput, make_output, sample_seed
from clipmill.errors import ArtifactError, ConfigError, NotFoundError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("out/captioners/coca-1", ("clipmill", "out/captioners/coca-1")),
        ("s3://bucket/coca-1", ("clipmill", "s3://bucket/coca-1")),
        ("open_clip:coca_ViT-L-14/x", ("open_clip", "coca_ViT-L-14/x")),
        ("hf:org/name@v1", ("hf", "org/name@v1")),
        ("file:a b/c.pt#open_clip/coca_ViT-L-14", ("file", "a b/c.pt#open_clip/coca_ViT-L-14")),
        ("vlm:http://host/v1", ("vlm", "http://host/v1")),
        ("rewrite:https://host/v1", ("rewrite", "https://host/v1")),
        ("template:labels.parquet", ("template", "labels.parquet")),
    ],
)
def test_addresses(name, kind):
    assert captioner_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("clip:http://host/v1", r"unknown scheme 'clip'[\s\S]*vlm:URL"),
        ("random:open_clip/coca_ViT-B-32", "writes no captions"),
        ("timm:vit_base_patch16_224", "writes no captions"),
        ("hf:name", "isn't a complete address"),
        ("coca:s3://b/captioners/c", r"write s3://b/captioners/c in place"),
        ("coca:coca_ViT-L-14@w.pt", r"write file:w\.pt#open_clip/coca_ViT-L-14 in place"),
        ("blip:/models/blip", r"write file:/models/blip in place"),
        ("git:/models/git", r"write file:/models/git in place"),
        ("huggingface:/models/x", r"write file:/models/x in place"),
    ],
)
def test_what_is_no_captioners_address(name, problem):
    with pytest.raises(ConfigError, match=problem):
        open_captioner(name, CaptionersConfig())


@pytest.mark.parametrize("name", ["no/such/folder", "file:///no/such/folder"])
def test_a_uri_alone_is_that_of_a_coca(name):
    with pytest.raises(NotFoundError):
        open_captioner(name, CaptionersConfig())


def test_a_folder_of_another_kind(tmp_path):
    with pytest.raises(ArtifactError, match="not the folder of a model"):
        open_captioner(f"file:{tmp_path}", CaptionersConfig())


def test_an_output_has_no_blank_and_no_equal_texts_and_the_best_first():
    assert make_output([" a\n cube ", "", "two balls", "a cube"], [-2.0, -1.0, -0.5, -3.0]) == (
        CaptionOutput(texts=("two balls", "a cube"), scores=(-0.5, -2.0))
    )
    assert make_output(["b", "a"], [None, -1.0]).texts == ("b", "a")
    assert make_output([" ", ""], [0.0, 0.0]) == CaptionOutput(reason="empty")


def test_a_samples_seed_is_its_own():
    assert sample_seed(0, "a") == sample_seed(0, "a")
    assert len({sample_seed(seed, uid) for seed in range(5) for uid in "abcde"}) == 25
    assert all(0 <= sample_seed(0, str(k)) < 2**63 for k in range(50))
