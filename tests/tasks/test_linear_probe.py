"""Linear heads on frozen features: what is trained is what serves, cached or not."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from clipmill.data.labeled.dense import DepthFolder, SegmentationFolder
from clipmill.errors import ConfigError
from clipmill.scenes import CLASSES as SCENE_CLASSES
from clipmill.tasks.depth.objective import silog
from clipmill.tasks.training_registry import get_training_task
from helpers.tiny_tasks import CLASSES, CONV, DEPTH, SEGMENTATION, VIT

PROBE = {"head": "linear", "freeze_encoder": True, "cache_features": True}
CONFIGS = {
    "segmentation": replace(SEGMENTATION, **PROBE),
    "depth": replace(DEPTH, **PROBE, position_side=4, flip_augment_test=False, num_test_windows=1),
}


@pytest.fixture
def folders(ade20k_folder, nyu_folder):
    return {"segmentation": ade20k_folder, "depth": nyu_folder}


def batches(task, folder, config, **changes):
    options = {"batch_size": 3, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, **changes}
    return get_training_task(task).train_dataloader(config, folder, **options)


def classes(task):
    return SCENE_CLASSES if task == "segmentation" else ()


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_cached_training_is_uncached_training(task, encoder, folders):
    """Ten steps on the same images, with the encoder called on each anew, or once."""
    torch.manual_seed(0)
    cached = get_training_task(task).build_objective(CONFIGS[task], encoder, classes(task)).train()
    plain = copy.deepcopy(cached)
    start = {name: tensor.clone() for name, tensor in cached.state_dict().items()}
    seen = {"cached": 0, "plain": 0}
    for name, objective in (("cached", cached), ("plain", plain)):
        objective.encoder.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: seen[name] + len(given[0])})
        )
        optimizer = torch.optim.SGD(
            [p for p in objective.parameters() if p.requires_grad], lr=0.05, momentum=0.9
        )
        for batch in itertools.islice(batches(task, folders[task], CONFIGS[task]), 10):
            if name == "plain":
                del batch["keys"]
            (loss,) = objective(batch).values()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert seen["plain"] == 30
    assert 4 <= seen["cached"] <= 6  # four scenes; one may be new twice in a batch
    moved = set()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
        if not torch.equal(tensor, start[name]):
            moved.add(name.split(".")[0])
    assert moved == {"heads" if task == "segmentation" else "decoder"}


@torch.no_grad()
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_served_segmentation_equals_the_trained_head(encoder):
    torch.manual_seed(0)
    task, config = get_training_task("segmentation"), CONFIGS["segmentation"]
    objective = task.build_objective(config, encoder, CLASSES).eval()
    for projection in objective.heads.decode_head.projections:
        projection.weight.normal_()
    served = task.build_inference_model(config, encoder, CLASSES).eval()
    served.load_state_dict({task.inference_key(k): v for k, v in objective.state_dict().items()})
    images = torch.rand(2, 3, 32, 32)
    coarse = objective.heads.decode_head(objective.encoder(images))
    logits = F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(served(images), logits.argmax(1).to(torch.uint8))
    assert len(served(images).unique()) > 1


@torch.no_grad()
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_served_depth_equals_the_trained_head(encoder):
    torch.manual_seed(0)
    task, config = get_training_task("depth"), CONFIGS["depth"]
    objective = task.build_objective(config, encoder, ()).eval()
    objective.decoder.head.position.normal_()
    served = task.build_inference_model(config, encoder, ()).eval()
    served.load_state_dict({task.inference_key(k): v for k, v in objective.state_dict().items()})
    images = torch.rand(2, 3, 32, 32)
    coarse = torch.sigmoid(objective.decoder.head(objective.encoder(images))) * 10
    expected = F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(served(images), expected[:, 0], rtol=1e-5, atol=1e-5)
    assert served(images).std() > 0.1


@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_losses_are_at_the_features_places(encoder):
    """Of the pixel in the middle of each place: a stride apart, from half a stride on."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "labels": torch.randint(0, 5, (2, 32, 32), generator=generator).to(torch.uint8),
        "depth": 1 + 8 * torch.rand(2, 32, 32, generator=generator),
    }
    batch["labels"][:, :6] = 255
    batch["depth"][:, :6] = 0
    torch.manual_seed(0)
    for task, truth in (("segmentation", "labels"), ("depth", "depth")):
        objective = get_training_task(task).build_objective(CONFIGS[task], encoder, CLASSES).train()
        stride = objective.encoder.strides[0]
        places = batch[truth][:, stride // 2 :: stride, stride // 2 :: stride]
        (loss,) = objective(batch).values()
        maps = objective.feature_maps(batch)
        if task == "segmentation":
            logits = objective.heads.decode_head(maps)
            expected = F.cross_entropy(logits, places.long(), ignore_index=255)
        else:
            expected = silog(objective.decoder.coarse(maps)[:, 0], places, 0.5)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", CONFIGS)
def test_equal_keys_are_equal_images(task, folders):
    """Whole images with their labels; nothing else is drawn."""
    name = "labels" if task == "segmentation" else "depth"
    seen = {}
    for batch in itertools.islice(batches(task, folders[task], CONFIGS[task]), 20):
        for key, image, label in zip(batch["keys"], batch["images"], batch[name], strict=True):
            pair = (image.numpy().tobytes(), label.numpy().tobytes())
            assert seen.setdefault(int(key), pair) == pair
    assert set(seen) == set(range(4))
    if task == "segmentation":
        data = SegmentationFolder.open(folders[task], "training")
        truths = [data.classes_HW(i) for i in range(4)]
    else:
        data = DepthFolder.open(folders[task], "train")
        truths = [data.depth_HW(i) for i in range(4)]
    for index, truth in enumerate(truths):
        assert seen[index] == (data.image_HW3(index).tobytes(), truth.tobytes())


def test_what_is_trained_can_not_be_cached():
    for config in (SEGMENTATION, DEPTH):
        with pytest.raises(ConfigError, match="cache_features was true") as found:
            replace(config, cache_features=True)
        assert "freeze_encoder=true" in str(found.value)
