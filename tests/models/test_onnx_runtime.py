"""ONNX Runtime as a backend: the answers of PyTorch, or a refusal before anything is served."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from clipmill.errors import ConfigError, MissingExtraError
from clipmill.models.clip import ClipEmbedder
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.onnx_runtime import TOLERANCE, OnnxModule
from clipmill.models.towers import build_clip
from clipmill.serve.client import Client
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from helpers.small_models import save_model

CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, vocab_size=1000, width=32, heads=2, layers=2),
)
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    for seed, size in enumerate([(48, 64, 3), (48, 64, 3), (70, 40, 3)])
]


@pytest.mark.parametrize("task", ["classification", "depth", "detection"])
def test_a_task_model_predicts_as_with_torch(task, tmp_path):
    """Detection's encoder attends within windows, the other dense one globally."""
    uri = save_model(str(tmp_path), task)
    expected = Predictor.open(uri).predict(IMAGES)
    predictor = Predictor.open(uri, backend="onnx")
    embeddings = []
    predictor.add_embedding_hook(embeddings.append)
    for one, other in zip(expected, predictor.predict(IMAGES), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"masks"}:
            atol = 0.05 if name == "boxes" else 1e-3  # of boxes pixels
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=atol)
    assert sum(len(batch) for batch in embeddings) == len(IMAGES)


def test_a_clip_embeds_as_with_torch_for_any_batch():
    torch.manual_seed(0)
    tensors = build_clip(CLIP).state_dict()
    images = [image[:32, :32] for image in IMAGES]
    expected = ClipEmbedder(CLIP, tensors).encode_images(images)
    embedder = ClipEmbedder(CLIP, tensors, backend="onnx")
    for batch in (images[:1], images):
        np.testing.assert_allclose(embedder.encode_images(batch), expected[: len(batch)], atol=1e-5)
    assert embedder.encode_texts(["a ball"]).shape == (1, 16)


def test_a_server_answers_with_it(tmp_path):
    uri = save_model(str(tmp_path / "model"), "classification")
    config = ServingConfig().override(["backend=onnx"])
    log_path = tmp_path / "server.log"
    with ServerProcess(
        {"classes": uri}, log_path=log_path, config=config, start_seconds=600
    ) as server:
        answer = Client(server.url).infer("classes", images=IMAGES)["probabilities"]
    expected = [each["probabilities"] for each in Predictor.open(uri).predict(IMAGES)]
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert f"{uri} runs with ONNX Runtime" in log_path.read_text()


class Eigenvalues(nn.Module):
    """An operator that ONNX has no equal of."""

    def forward(self, images):
        return torch.linalg.eigvals(images @ images.mT).real


class Random(nn.Module):
    """A module whose outputs no graph repeats."""

    def forward(self, images):
        return images + torch.rand_like(images)


def test_an_operator_that_cant_be_exported_is_an_error_that_names_it():
    message = "s3://m can't run with backend=onnx: .*linalg_eig"
    with pytest.raises(ConfigError, match=message) as told:
        OnnxModule(Eigenvalues().eval(), "s3://m", side=8)
    assert "backend=torch" in told.value.action


def test_outputs_beyond_the_tolerance_are_refused():
    with pytest.raises(ConfigError, match="s3://m differs by") as told:
        OnnxModule(Random().eval(), "s3://m", side=8)
    assert f"{TOLERANCE:g}" in told.value.expected


def test_a_machine_with_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="on a machine with a GPU"):
        OnnxModule(nn.Identity(), "s3://m", side=8)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnxruntime isn't installed") as told:
        OnnxModule(nn.Identity(), "s3://m", side=8)
    assert "clipmill[onnx]" in told.value.action
