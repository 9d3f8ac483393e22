"""AdamW over groups: what decays, what doesn't, and how the rate falls with depth."""

import torch
from torch import Tensor
from clipmill.engine.config import AdamWConfig
from clipmill.engine.objective import Objective
from clipmill.engine.fsdp import is_sharded, norm_of
from clipmill.errors import ConfigError


def build_optimizer(objective: Objective, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW whose groups carry ``rate_scale``; the loop sets each ``lr`` from it.

    Gains, biases, the logit scale and anything of one dimension don't decay. The fused kernel
    takes a step, or none, as ``found_inf`` on its device says; on a CPU it is also several times
    as fast as the others.
    """
    if not 0 < config.layer_decay <= 1:
        raise ConfigError(
            f"layer_decay was {config.layer_decay}",
            expected="a number above 0, at most 1",
            action="use 1.0 for no layer-wise decay",
        )
    groups: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        layer = objective.layer_id(name)
        depth = 0 if layer is None else objective.num_layers - layer
        # The kernel takes sharded parameters or whole ones, not both at once.
        key = (config.layer_decay**depth, decay, is_sharded(parameter))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "rate_scale": scale, "weight_decay": decay, "lr": 0.0}
            for (scale, decay, _), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def clip_gradients(objective: Objective, max_norm: float | None) -> Tensor:
    """Clip in place if asked; the gradient's norm before, a scalar on the device."""
    trained = [p for p in objective.parameters() if p.grad is not None]
    norm = norm_of(p.grad for p in trained if p.grad is not None)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm
