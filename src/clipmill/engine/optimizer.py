"""AdamW over groups: what decays, what doesn't, and how the rate falls with depth."""

import math

import torch

from clipmill.engine.config import AdamWConfig
from clipmill.engine.objective import Objective
from clipmill.errors import ConfigError


def build_optimizer(objective: Objective, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW whose groups carry ``rate_scale``; the loop sets each ``lr`` from it.

    Gains, biases, the logit scale and anything of one dimension don't decay.
    """
    if not 0 < config.layer_decay <= 1:
        raise ConfigError(
            f"layer_decay was {config.layer_decay}",
            expected="a number above 0, at most 1",
            action="use 1.0 for no layer-wise decay",
        )
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        layer = objective.layer_of(name)
        depth = 0 if layer is None else objective.num_layers - layer
        groups.setdefault((config.layer_decay**depth, decay), []).append(parameter)
    on_gpu = next(objective.parameters()).is_cuda
    return torch.optim.AdamW(
        [
            {"params": parameters, "rate_scale": scale, "weight_decay": decay, "lr": 0.0}
            for (scale, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        betas=config.betas,
        eps=config.epsilon,
        fused=True if on_gpu else None,
        foreach=None if on_gpu else True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def clip_gradients(objective: Objective, max_norm: float | None) -> float:
    """Clip in place if asked; the gradient's norm before."""
    norm = torch.nn.utils.clip_grad_norm_(
        objective.parameters(), math.inf if max_norm is None else max_norm
    )
    return float(norm)
