"""Recipes by name, with overrides."""

import pytest
import torch

from clipmill.config import Config, digest_json
from clipmill.data.captioners import CaptionersConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.errors import ConfigError
from clipmill.models.coca import build_coca
from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.encoders import build_dense
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import ClipObjective
from clipmill.pretrain.config import CocaTrainConfig, PretrainConfig
from clipmill.recipes.registry import RECIPES, get_recipe
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves_and_says_where_it_comes_from(name):
    config = get_recipe(name, Config)
    assert get_recipe(name, type(config)) == config
    assert name.replace("-", "_").replace(".", "_") == RECIPES[name].__name__
    assert "Source:" in RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_through_json(name):
    """And keeps its digest: an address mustn't depend on whether 1 or 1.0 was written."""
    config = get_recipe(name, Config)
    value = config.to_json()
    again = type(config).from_json(value)
    assert again == config
    assert again.digest == config.digest


def test_no_two_recipes_are_the_same():
    digests = {digest_json([type(make()).__name__, make().to_json()]) for make in RECIPES.values()}
    assert len(digests) == len(RECIPES)


def test_overrides():
    config = get_recipe(
        "clip-vit-b16-12.8b", PretrainConfig, ["train.steps=9", "train.schedule.lr=1e-2"]
    )
    assert (config.train.steps, config.train.schedule.lr) == (9, 0.01)
    assert config.override(["train.steps=200000", "train.schedule.lr=1e-3"]) == get_recipe(
        "clip-vit-b16-12.8b", PretrainConfig
    )


@pytest.mark.parametrize("assignment", ["model.crop_size=64", "model.scale=[1, 1]"])
def test_a_tasks_own_config_can_be_overridden(assignment):
    config = get_recipe("upernet-vit-b16", FinetuneConfig, [assignment])
    assert config.model != get_recipe("upernet-vit-b16", FinetuneConfig).model


def test_a_wrong_override_of_a_task_lists_its_fields():
    with pytest.raises(
        ConfigError, match=r"one of model\.head, .*model\.crop_size, model\.photometric"
    ):
        get_recipe("depth-vit-b16", FinetuneConfig, ["model.crop=1"])


def test_a_recipe_of_another_command():
    with pytest.raises(ConfigError, match="one of recaption-beam, recaption-blip, recaption-coca"):
        get_recipe("clip-vit-b16-12.8b", CaptionersConfig)
    with pytest.raises(ConfigError, match="one of shards, shards-tiny"):
        get_recipe("no-such-recipe", ShardConfig)


@pytest.mark.parametrize(
    "name", [n for n in RECIPES if isinstance(RECIPES[n](), PretrainConfig | CocaTrainConfig)]
)
def test_towers_can_be_built(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        if isinstance(config, CocaTrainConfig):
            build_coca(config.model)
        else:
            build_clip(config.model)
    assert config.train.batch_size % config.train.grad_accum_steps == 0


def test_tiny_towers_are_as_small_as_their_recipes_say():
    sizes = {
        "clip-vit-tiny": ("visual", 0.9e6),
        "clip-tiny": ("visual", 0.23e6),
        "coca-tiny": ("", 1.5e6),
    }
    for name, (part, expected) in sizes.items():
        config = RECIPES[name]()
        with torch.device("meta"):
            model = (build_coca if "coca" in name else build_clip)(config.model)
        module = model.get_submodule(part)
        found = sum(p.numel() for p in module.parameters())
        assert found == pytest.approx(expected, rel=0.15), (name, found)


def test_tiny_clip_can_learn_a_batch():
    """A few steps at the recipe's own rate bring the loss of one batch down."""
    config = get_recipe("clip-tiny", PretrainConfig)
    torch.manual_seed(0)
    objective = ClipObjective(config.model, DistributedContext())
    optimizer = torch.optim.AdamW(objective.parameters(), config.train.schedule.lr)
    from clipmill.data.loading.dataloader import PairBatch

    texts = [f"a {color} thing" for color in ("red", "blue", "green", "gray")]
    batch = PairBatch(
        images_B3HW=torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
        real_BT=Tokenizer.from_config(config.model.text)(texts),
        synthetic_BT=None,
        uids=("a", "b", "c", "d"),
    )
    losses = []
    for _ in range(12):
        loss = objective(batch)["real"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["upernet-vit-b16", "depth-vit-b16"])
def test_dense_networks_can_be_built_on_the_full_encoder(name):
    config = get_recipe(name, FinetuneConfig)
    task = get_task(config.task)
    encoder = EncoderConfig(vision=VisionConfig())
    with torch.device("meta"):
        assert build_dense(encoder).channels == (768,)
        network = task.build_inference_model(config.model, encoder, ("a", "b"))
    assert sum(p.numel() for p in network.parameters()) > 86e6
