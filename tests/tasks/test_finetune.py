"""From an encoder to a promoted model, on a few real scenes."""

from pathlib import Path

import pytest
import torch

from clipmill.errors import GateError
from clipmill.models.checkpoint import ModelCard, has_checkpoint, load_checkpoint, save_checkpoint
from clipmill.models.towers import ClipConfig, TextConfig, VisionConfig, build_clip
from clipmill.recipes.registry import recipe
from clipmill.storage import lineage, put_tree
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.promotion import GateConfig, promote

TINY = ["train.steps=2", "train.batch_size=2", "model.crop_size=32", "train.log_steps=1"]


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
    config = recipe("upernet-miniature", FinetuneConfig, TINY)
    model = finetune(config, "timm:test_resnet", ade20k, store, report=quiet)
    assert finetune(config, "timm:test_resnet", ade20k, store, report=fail) == model
    judged = evaluate(model, ade20k, store, report=quiet)
    assert evaluate(model, ade20k, store, report=fail) == judged
    found = read_evaluation(judged)
    assert 0 <= found.metrics["mIoU"] <= 100
    with pytest.raises(GateError, match="at least 101"):
        promote(GateConfig(task="segmentation", threshold=101), [judged], store)
    promoted = promote(GateConfig(task="segmentation", threshold=0), [judged], store)
    assert promoted.replaced
    assert promoted.evaluation.model.uri == model
    again = promote(GateConfig(task="segmentation", threshold=101), [judged], store)
    assert not again.replaced


@pytest.mark.parametrize("task", ["upernet", "depth"])
def test_a_run_is_resumed_with_equal_weights(task, ade20k, nyu, tmp_path):
    """Drop path, and the dropout of UPerHead, go on where they were."""
    data = nyu if task == "depth" else ade20k
    steps = ["train.steps=3", "train.checkpoint_steps=1", "model.drop_path=0.5"]
    config = recipe(f"{task}-miniature", FinetuneConfig, [*TINY, *steps])

    def stop_after_two(done, total, words):
        if done == 2:
            raise KeyboardInterrupt

    straight = finetune(config, "timm:test_vit", data, str(tmp_path / "a"), report=quiet)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, "timm:test_vit", data, str(tmp_path / "b"), report=stop_after_two)
    resumed = finetune(config, "timm:test_vit", data, str(tmp_path / "b"), report=quiet)
    assert Predictor(resumed).card.digest == Predictor(straight).card.digest


def test_a_prediction_has_its_images_size(nyu, tmp_path):
    config = recipe("depth-miniature", FinetuneConfig, TINY)
    model = finetune(config, "timm:test_resnet", nyu, str(tmp_path), report=quiet)
    images = [torch.randint(0, 255, size, dtype=torch.uint8).numpy() for size in SIZES]
    found = [p["depth_metres"] for p in Predictor(model).predict(images)]
    assert [f.shape for f in found] == [size[:2] for size in SIZES]
    assert all((f > 0).all() and (f < 10).all() for f in found)


@pytest.mark.parametrize("task", ["upernet", "depth"])
def test_from_a_pretrained_vit_on_data_packed_in_a_store(task, ade20k, nyu, tmp_path, s3):
    """The encoder's weights are where training starts; all else is in its lineage."""
    store = f"s3://tests/{tmp_path.name}"
    data = f"{store}/data.tar"
    put_tree(Path(nyu if task == "depth" else ade20k), data)
    vision = VisionConfig(image_size=32, patch_size=8, width=16, layers=2, head_width=8)
    clip = ClipConfig(embed_dim=8, vision=vision, text=TextConfig(width=8, heads=2, layers=1))
    weights = build_clip(clip).state_dict()
    card = ModelCard(kind="clip", architecture=clip.to_json(), recipe={})
    encoder = save_checkpoint(f"{store}/encoder", card, weights).uri

    # Of a frozen encoder, what is saved is what training began with.
    config = recipe(f"{task}-miniature", FinetuneConfig, [*TINY, "model.is_frozen=true"])
    model = finetune(config, encoder, data, store, report=quiet)
    assert finetune(config, encoder, data, store, report=fail) == model
    card, tensors = load_checkpoint(model)
    assert torch.equal(tensors["encoder.trunk.conv1.weight"], weights["visual.conv1.weight"])
    assert torch.equal(tensors["encoder.norm.weight"], weights["visual.ln_post.weight"])
    assert card.architecture["task"] == ("depth" if task == "depth" else "segmentation")
    roles = {parent.role: parent.uri for parent in lineage(model).parents}
    assert roles == {"encoder": encoder, "data": data}
    judged = lineage(evaluate(model, data, store, report=quiet))
    assert {parent.role: parent.uri for parent in judged.parents} == {"model": model, "data": data}


def test_other_work_goes_elsewhere(nyu, tmp_path):
    """A changed setting, encoder or data makes another model, and leaves the first alone."""
    config = recipe("depth-miniature", FinetuneConfig, [*TINY, "train.steps=1"])
    changed = config.override(["train.seed=1"])
    store = str(tmp_path)
    uris = {
        finetune(config, "timm:test_resnet", nyu, store, report=quiet),
        finetune(changed, "timm:test_resnet", nyu, store, report=quiet),
        finetune(config, "timm:test_vit", nyu, store, report=quiet),
    }
    assert len(uris) == 3
    assert all(has_checkpoint(uri) for uri in uris)


SIZES = [(32, 32, 3), (50, 41, 3), (32, 32, 3)]
