"""Retrieval and zero-shot accuracy while a run lasts."""

import pytest
import torch
from PIL import Image

from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader
from clipmill.data.loading.mixture import Mixture
from clipmill.data.loading.view import View, ViewConfig, in_subset
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.trainer import train
from clipmill.errors import ConfigError
from clipmill.models.retrieval import recall
from clipmill.models.tokenizer import Tokenizer
from clipmill.pretrain.clip import ClipObjective
from clipmill.pretrain.config import ValidationConfig
from clipmill.pretrain.validation import build_validators
from helpers.tiny_clip import CLIP


def test_recall_by_hand():
    """Texts of the first two pairs are exchanged; the third is its image's second best."""
    image = torch.eye(3)
    text = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0.9, 0.8]])
    found = recall(image, text)
    assert found["image_to_text_r1"] == pytest.approx(1 / 3)
    assert found["text_to_image_r1"] == 0
    assert found["text_to_image_r5"] == found["image_to_text_r10"] == 1


def test_a_model_that_maps_all_to_one_place_finds_nothing():
    same = torch.ones(20, 4)
    assert set(recall(same, same).values()) == {0.0}


def test_pairs_that_training_does_not_see_are_judged(dataset_uri, tmp_path):
    dataset = Dataset.open(dataset_uri)
    view = View(dataset, ViewConfig(subset_fraction=0.5))
    uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
    held_out = sum(not in_subset(uid, 0.5) for uid in uids)
    assert 0 < held_out < 12
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (20, 16), color).save(tmp_path / "classes" / name / "1.png")
    config = ValidationConfig(
        every=2, zero_shot_dataset=str(tmp_path / "classes"), templates=("a {}", "{} things")
    )
    tokenizer = Tokenizer.from_config(CLIP.text)
    evaluations = build_validators(config, Mixture.of_view(view), tokenizer, CLIP.vision)
    config_of_run = TrainConfig(steps=4, batch_size=4, log_every=4)
    trained = train(
        lambda dist: ClipObjective(CLIP, dist),
        lambda cursor, dist: iter(
            PairDataLoader(
                view,
                DataLoaderConfig(num_workers=0),
                batch_size=config_of_run.batch_size,
                seed=config_of_run.seed,
                transform=CropTransform(16, RandomResizedCropConfig()),
                tokenize=tokenizer,
                rank=dist.rank,
                world_size=dist.world_size,
                start_step=cursor,
            )
        ),
        config_of_run,
        name="clip",
        checkpoint_uri=str(tmp_path / "state"),
        report=lambda *_: None,
        validators=evaluations,
    )
    assert [record["step"] for record in trained.log] == [2, 4]
    for record in trained.log:
        assert record["zero_shot/top1"] in {0, 0.5, 1}
        assert round(record["retrieval/image_to_text_r1"] * held_out, 4) % 1 == 0
        assert record["retrieval/text_to_image_r10"] >= min(10, held_out) / held_out - 0.5
        assert 0 <= record["retrieval/pair_accuracy"] <= 1
        assert record["retrieval/pair_accuracy_error"] > 0


def test_held_out_pairs_that_the_model_knows_and_that_it_does_not(dataset_uri):
    """A model of given embeddings; a share of a half is chance."""
    view = View(Dataset.open(dataset_uri), ViewConfig(subset_fraction=0.5))
    number = sum(
        not in_subset(u, 0.5) for i in range(len(view.dataset.shards)) for u in view.dataset.uids(i)
    )

    class Knowing(torch.nn.Module):
        clip = normalize = property(lambda self: self)

        def __init__(self, text):
            super().__init__()
            self.text = text

        def __call__(self, images):
            return images

        def encode_image(self, images, normalize):
            return torch.eye(number)

        def encode_text(self, tokens, normalize):
            return self.text

    (validator,) = build_validators(
        ValidationConfig(), Mixture.of_view(view), Tokenizer.from_config(CLIP.text), CLIP.vision
    )
    texts = {
        1.0: torch.eye(number),
        0.5: torch.ones(number, number),
        0.0: torch.eye(number) * -1,
    }
    for share, text in texts.items():
        found = validator.compute(Knowing(text), DistributedContext())
        assert found["pair_accuracy"] == share
        assert found["pair_accuracy_error"] == 0
        assert found["image_to_text_r1"] == (share == 1)


def test_a_color_that_the_model_knows_is_named(tmp_path):
    """A model whose embeddings are told what to be."""
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (16, 16), color).save(tmp_path / name / f"{number}.png")

    class Knowing(torch.nn.Module):
        clip = normalize = property(lambda self: self)

        def __call__(self, images):
            return images

        def encode_image(self, images, normalize):
            return images.mean((2, 3))

        def encode_text(self, tokens, normalize):
            return torch.tensor([[0.0, 0, 1], [1, 0, 0]])  # classes in the order of their names

    config = ValidationConfig(num_pairs=0, zero_shot_dataset=str(tmp_path))
    (validator,) = build_validators(
        config, Mixture(()), Tokenizer.from_config(CLIP.text), CLIP.vision
    )
    assert validator.compute(Knowing(), DistributedContext()) == {"top1": 1.0}


def test_a_view_that_holds_nothing_out(dataset_uri):
    view = View(Dataset.open(dataset_uri), ViewConfig())
    with pytest.raises(ConfigError, match="no pair is held out"):
        build_validators(
            ValidationConfig(), Mixture.of_view(view), Tokenizer.from_config(CLIP.text), CLIP.vision
        )


def test_a_folder_without_pictures(tmp_path):
    config = ValidationConfig(num_pairs=0, zero_shot_dataset=str(tmp_path))
    with pytest.raises(ConfigError, match="has no image"):
        build_validators(config, Mixture(()), Tokenizer.from_config(CLIP.text), CLIP.vision)


def test_none_are_wanted():
    config = ValidationConfig(every=0)
    assert (
        build_validators(config, Mixture(()), Tokenizer.from_config(CLIP.text), CLIP.vision) == ()
    )
