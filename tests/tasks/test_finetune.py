"""From an encoder to a promoted model, on a few real scenes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipmill.data.labeled.dense import DepthFolder
from clipmill.errors import GateError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import (
    CheckpointMetadata,
    has_checkpoint,
    load_checkpoint,
    read_embedding,
    save_checkpoint,
)
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.recipes.registry import get_recipe
from clipmill.storage import pack_dir
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune, training_embedding
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.promotion import PromotionConfig, promote

TINY = ["train.steps=2", "train.batch_size=2", "model.crop_size=32", "train.log_every=1"]


def quiet(done, total, words):
    assert 0 <= done <= total
    assert words


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture
def ade20k(ade20k_folder):
    return str(ade20k_folder)


@pytest.fixture
def nyu(nyu_folder):
    return str(nyu_folder)


def test_segmentation_from_scratch_to_a_gate(ade20k, tmp_path):
    store = str(tmp_path / "store")
    config = get_recipe("upernet-tiny", FinetuneConfig, TINY)
    model = finetune(config, "random:timm/test_resnet", ade20k, store, report=quiet)
    assert finetune(config, "random:timm/test_resnet", ade20k, store, report=fail) == model
    judged = evaluate(model, ade20k, store, report=quiet)
    assert evaluate(model, ade20k, store, report=fail) == judged
    found = read_evaluation(judged)
    assert 0 <= found.metrics["mIoU"] <= 100
    with pytest.raises(GateError, match="at least 101"):
        promote(PromotionConfig(task="segmentation", threshold=101), [judged], store)
    promoted = promote(PromotionConfig(task="segmentation", threshold=0), [judged], store)
    assert promoted.replaced
    assert promoted.evaluation.model.uri == model
    again = promote(PromotionConfig(task="segmentation", threshold=101), [judged], store)
    assert not again.replaced


@pytest.mark.parametrize("task", ["upernet", "depth"])
def test_a_run_is_resumed_with_equal_weights(task, ade20k, nyu, tmp_path):
    """Drop path, and the dropout of UPerHead, go on where they were."""
    data = nyu if task == "depth" else ade20k
    steps = ["train.steps=3", "train.checkpoint_every=1", "model.drop_path=0.5"]
    config = get_recipe(f"{task}-tiny", FinetuneConfig, [*TINY, *steps])

    def stop_after_two(done, total, words):
        if done == 2:
            raise KeyboardInterrupt

    straight = finetune(config, "random:timm/test_vit", data, str(tmp_path / "a"), report=quiet)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, "random:timm/test_vit", data, str(tmp_path / "b"), report=stop_after_two)
    resumed = finetune(config, "random:timm/test_vit", data, str(tmp_path / "b"), report=quiet)
    cards = [Predictor.open(uri).metadata for uri in (straight, resumed)]
    assert cards[0].digest == cards[1].digest
    assert read_embedding(cards[0]) == read_embedding(cards[1])


def test_embeddings_of_training_images_are_kept(nyu, tmp_path, caplog):
    """As the served network makes them; an image that broke after training is passed over."""
    config = get_recipe("depth-tiny", FinetuneConfig, TINY)
    predictor = Predictor.open(
        finetune(config, "random:timm/test_vit", nyu, str(tmp_path / "store"), report=quiet)
    )
    kept = read_embedding(predictor.metadata)
    found = []
    predictor.add_embedding_hook(found.append)
    data = DepthFolder.open(Path(nyu), "train")
    predictor.predict([data.image_HW3(index) for index in range(len(data))])
    embeddings_NC = np.concatenate(found)
    assert embeddings_NC.shape == (kept.num_images, len(kept.mean)) == (4, 64)
    np.testing.assert_allclose(embeddings_NC.mean(0), kept.mean, rtol=1e-3, atol=1e-5)

    broken = tmp_path / "broken"
    shutil.copytree(nyu, broken)
    DepthFolder.open(broken, "train").images[1].write_bytes(b"broken")
    fewer = training_embedding(Predictor.open(predictor.metadata.uri), broken)
    assert fewer.num_images == 3
    assert "no embedding of training image 1" in caplog.text


def test_a_prediction_has_its_images_size(nyu, tmp_path):
    config = get_recipe("depth-tiny", FinetuneConfig, TINY)
    model = finetune(config, "random:timm/test_resnet", nyu, str(tmp_path), report=quiet)
    images = [torch.randint(0, 255, size, dtype=torch.uint8).numpy() for size in SIZES]
    found = [p["depth_meters"] for p in Predictor.open(model).predict(images)]
    assert [f.shape for f in found] == [size[:2] for size in SIZES]
    assert all((f > 0).all() and (f < 10).all() for f in found)


@pytest.mark.parametrize("task", ["upernet", "depth"])
def test_from_a_pretrained_vit_on_data_packed_in_a_store(task, ade20k, nyu, tmp_path, s3):
    """The encoder's weights are where training starts; all else is in its lineage."""
    store = f"s3://tests/{tmp_path.name}"
    data = f"{store}/data.tar"
    pack_dir(Path(nyu if task == "depth" else ade20k), data)
    vision = VisionConfig(image_size=32, patch_size=8, width=16, layers=2, head_width=8)
    clip = ClipConfig(embed_dim=8, vision=vision, text=TextConfig(width=8, heads=2, layers=1))
    weights = build_clip(clip).state_dict()
    metadata = CheckpointMetadata(kind="clip", architecture=clip.to_json(), recipe={})
    encoder = save_checkpoint(f"{store}/encoder", metadata, weights).uri

    # Of a frozen encoder, what is saved is what training began with.
    config = get_recipe(f"{task}-tiny", FinetuneConfig, [*TINY, "model.freeze_encoder=true"])
    model = finetune(config, encoder, data, store, report=quiet)
    assert finetune(config, encoder, data, store, report=fail) == model
    metadata, tensors = load_checkpoint(model)
    assert torch.equal(tensors["encoder.trunk.conv1.weight"], weights["visual.conv1.weight"])
    assert torch.equal(tensors["encoder.norm.weight"], weights["visual.ln_post.weight"])
    assert metadata.architecture["task"] == ("depth" if task == "depth" else "segmentation")
    roles = {parent.role: parent.uri for parent in lineage(model).parents}
    assert roles == {"encoder": encoder, "data": data}
    judged = lineage(evaluate(model, data, store, report=quiet))
    assert {parent.role: parent.uri for parent in judged.parents} == {"model": model, "data": data}


def test_other_work_goes_elsewhere(nyu, tmp_path):
    """A changed setting, encoder or data makes another model, and leaves the first alone."""
    config = get_recipe("depth-tiny", FinetuneConfig, [*TINY, "train.steps=1"])
    changed = config.override(["train.seed=1"])
    store = str(tmp_path)
    uris = {
        finetune(config, "random:timm/test_resnet", nyu, store, report=quiet),
        finetune(changed, "random:timm/test_resnet", nyu, store, report=quiet),
        finetune(config, "random:timm/test_vit", nyu, store, report=quiet),
    }
    assert len(uris) == 3
    assert all(has_checkpoint(uri) for uri in uris)


SIZES = [(32, 32, 3), (50, 41, 3), (32, 32, 3)]
