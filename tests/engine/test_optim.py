"""AdamW's groups: what decays, and at which rate each layer learns."""

import pytest
import torch
from torch import nn

from clipmill.engine.config import AdamWConfig
from clipmill.engine.objective import Objective
from clipmill.engine.optim import build_optimizer, clip_gradients, set_lr
from clipmill.errors import ConfigError


class Layered(Objective):
    """Layers 0 and 1, and a head that isn't scaled."""

    def __init__(self):
        super().__init__()
        self.layer0 = nn.Linear(2, 2)
        self.layer1 = nn.Linear(2, 2)
        self.norm1 = nn.LayerNorm(2)
        self.head = nn.Linear(2, 1)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, batch):
        del batch
        return {"sum": torch.stack([p.sum() for p in self.parameters()]).sum()}

    def layer_id(self, parameter):
        return {"layer0": 0, "layer1": 1, "norm1": 1}.get(parameter.split(".")[0])

    @property
    def num_layers(self):
        return 2


def groups_of(objective, config):
    """By parameter name: its share of the rate, and its decay."""
    optimizer = build_optimizer(objective, config)
    set_lr(optimizer, 2.0)
    names = {id(p): name for name, p in objective.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_groups():
    # Halves, so that their products are exact.
    assert groups_of(Layered(), AdamWConfig(weight_decay=0.3, layer_decay=0.5)) == {
        "layer0.weight": (0.5, 0.3),
        "layer0.bias": (0.5, 0.0),
        "layer1.weight": (1.0, 0.3),
        "layer1.bias": (1.0, 0.0),
        "norm1.weight": (1.0, 0.0),
        "norm1.bias": (1.0, 0.0),
        "head.weight": (2.0, 0.3),
        "head.bias": (2.0, 0.0),
        "logit_scale": (2.0, 0.0),
    }


def test_without_layer_decay_all_learn_alike():
    found = groups_of(Layered(), AdamWConfig())
    assert {rate for rate, _ in found.values()} == {2.0}


def test_constants_reach_adamw():
    config = AdamWConfig(betas=(0.8, 0.9), epsilon=1e-5)
    optimizer = build_optimizer(Layered(), config)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-5


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.1])
def test_layer_decay_out_of_range(layer_decay):
    with pytest.raises(ConfigError, match="layer_decay was"):
        build_optimizer(Layered(), AdamWConfig(layer_decay=layer_decay))


@pytest.mark.parametrize(("max_norm", "after"), [(None, 1.0), (100.0, 1.0), (0.5, 0.125)])
def test_clipping(max_norm, after):
    """16 gradients of 1: norm 4."""
    objective = Layered()
    for module in (objective.layer0, objective.layer1, objective.norm1):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
    assert clip_gradients(objective, max_norm) == pytest.approx(4.0)
    assert objective.layer0.weight.grad.flatten().tolist() == pytest.approx([after] * 4)
