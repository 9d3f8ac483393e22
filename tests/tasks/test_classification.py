"""Classification: figures, crops, linear probe, and a run from an encoder to a judged model."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.errors import SourceError
from clipmill.models.checkpoint import load_checkpoint, read_embedding
from clipmill.recipes.registry import get_recipe
from clipmill.storage import read_bytes
from clipmill.tasks.classification.training import (
    ClassificationConfig,
    ClassificationTraining,
    TopKAccuracy,
)
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from helpers.tiny_tasks import CONV, VIT

TASK = ClassificationTraining()
CONFIG = ClassificationConfig(
    image_size=32, test_size=32, test_crop=1.0, scale=(0.5, 1.0), drop_path=0.0, num_workers=0
)
CLASSES = ("blue", "green", "red")


def silent(done, total, words):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of one color a class, with a little noise."""
    root = tmp_path_factory.mktemp("colors")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 60, (36, 40, 3), dtype=np.uint8)
                picture[..., channel] += 150
                Image.fromarray(picture).save(root / split / name / f"{number}.png")
    return root


def top(k, *pairs):
    metrics = TopKAccuracy((k,))
    for probabilities, label in pairs:
        metrics.update(np.array(probabilities, np.float32), label)
    return metrics.compute()[f"top{k}"]


def test_accuracy_by_hand():
    pairs = [([0.5, 0.3, 0.2], 0), ([0.5, 0.3, 0.2], 1), ([0.5, 0.3, 0.2], 2), ([0.1, 0.2, 0.7], 2)]
    assert top(1, *pairs) == 50
    assert top(2, *pairs) == 75
    assert top(5, *pairs) == 100


def test_equally_likely_classes_count_once():
    """A model that says the same of all classes is right by chance, not always."""
    assert top(1, ([0.25] * 4, 0), ([0.25] * 4, 1), ([0.25] * 4, 2), ([0.25] * 4, 3)) == 25


def test_accuracy_equals_torchs():
    torch.manual_seed(0)
    probabilities, labels = torch.rand(50, 10), torch.randint(10, (50,))
    for k in (1, 5):
        hits = (probabilities.topk(k).indices == labels[:, None]).any(1).float().mean()
        found = top(k, *zip(probabilities.numpy(), labels.tolist(), strict=True))
        assert found == pytest.approx(100 * hits.item(), abs=1e-5)


def test_nothing_to_judge():
    with pytest.raises(SourceError, match="no image to evaluate"):
        TopKAccuracy((1,)).compute()


def test_batches(folder):
    options = {"batch_size": 9, "seed": 0, "rank": 0, "world_size": 1}
    found = list(
        itertools.islice(TASK.train_dataloader(CONFIG, folder, start_step=0, **options), 2)
    )
    assert found[0]["images"].shape == (9, 32, 32, 3)
    for batch in found:
        colors = batch["images"].float().mean((1, 2)).argmax(1)
        assert (colors == 2 - batch["labels"]).all()
    (again,) = itertools.islice(TASK.train_dataloader(CONFIG, folder, start_step=1, **options), 1)
    assert torch.equal(again["images"], found[1]["images"])


@torch.no_grad()
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_probabilities_at_any_size(encoder):
    torch.manual_seed(0)
    for size in (32, 48):
        network = TASK.build_inference_model(
            CONFIG.override([f"test_size={size}"]), encoder, CLASSES
        ).eval()
        for shape in ((32, 32), (50, 41), (9, 90)):
            found = network(torch.rand(2, 3, *shape))
            assert found.shape == (2, 3)
            torch.testing.assert_close(found.sum(1), torch.ones(2))


@torch.no_grad()
def test_the_center_is_seen():
    network = TASK.build_inference_model(CONFIG, VIT, CLASSES).eval()
    images = torch.rand(1, 3, 32, 64)
    changed = images.clone()
    changed[..., :16] = 0
    changed[..., 48:] = 1
    torch.testing.assert_close(network(images), network(changed))


@pytest.mark.parametrize("encoder", [VIT, CONV])
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_gradients(encoder, freeze_encoder):
    config = CONFIG.override([f"freeze_encoder={str(freeze_encoder).lower()}", "drop_path=0.5"])
    objective = TASK.build_objective(config, encoder, CLASSES).train()
    before = {k: v.clone() for k, v in objective.encoder.state_dict().items()}
    batch = {
        "images": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 2, 0]),
    }
    objective(batch)["classification"].backward()
    grads = [p.grad is not None for p in objective.encoder.parameters()]
    assert not any(grads) if freeze_encoder else all(grads)
    assert objective.head.weight.grad is not None
    if freeze_encoder:
        # Neither drop path nor batch statistics move a frozen encoder.
        after = objective.encoder.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert objective(batch)["classification"] == objective(batch)["classification"]


def test_smooth_labels_by_hand():
    """Of an untrained, zero classifier every target costs log C."""
    objective = TASK.build_objective(CONFIG, VIT, CLASSES)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    batch = {"images": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "labels": torch.tensor([0])}
    logs = torch.tensor([2.0, 0, 0]).log_softmax(0)
    expected = -(0.9 * logs[0] + 0.1 * logs.mean())
    torch.testing.assert_close(objective(batch)["classification"], expected)


TINY = ["model.image_size=32", "model.test_size=32", "train.batch_size=9", "train.log_every=1"]


@pytest.mark.parametrize("name", ["classification-tiny", "linear-probe-tiny"])
def test_from_an_encoder_to_a_judged_model(name, folder, tmp_path):
    steps = ["train.steps=40", "train.schedule.lr=1e-2"]
    config = get_recipe(name, FinetuneConfig, [*TINY, *steps])
    model = finetune(config, "random:timm/test_vit", str(folder), str(tmp_path), report=silent)
    found = read_evaluation(evaluate(model, str(folder), str(tmp_path), report=silent))
    assert found.metrics["top1"] > 60
    assert found.metrics["top5"] == 100
    table = read_bytes(f"{found.uri}/confusion_matrix.csv").decode().splitlines()
    assert table[0] == ",".join(["true class", *CLASSES])
    metadata, tensors = load_checkpoint(model)
    assert metadata.architecture["classes"] == list(CLASSES)
    assert tensors["head.weight"].shape[0] == 3
    assert read_embedding(metadata).num_images == 18


def test_drawing():
    image = np.zeros((160, 200, 3), np.uint8)
    probabilities = np.array([0.1, 0.7, 0.2], np.float32)
    drawn = TASK.visualize({"probabilities": probabilities}, image, CLASSES)
    assert drawn.shape == image.shape
    assert not drawn[:124].any()
    blue = (drawn == (46, 134, 171)).all(-1).sum(1)
    likeliest = blue[124:136].max()
    assert 0.5 * 200 < likeliest <= 0.7 * 200 + 1  # names cover some of the bar
    tiny = TASK.visualize({"probabilities": probabilities}, image[:8, :8], ())
    assert tiny.shape == (160, 160, 3)
