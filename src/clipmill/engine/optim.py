"""AdamW with parameter groups by weight decay and by layer-wise learning-rate decay."""

import torch
from torch import Tensor

from clipmill.engine.config import AdamWConfig
from clipmill.engine.distributed import is_sharded, total_norm
from clipmill.engine.objective import Objective
from clipmill.errors import ConfigError


def build_optimizer(objective: Objective, config: AdamWConfig) -> torch.optim.AdamW:
    """Build AdamW, whose groups carry ``lr_scale``; the trainer sets each ``lr`` from it.

    Gains, biases, the logit scale and anything of one dimension don't decay. The fused kernel
    skips a step where ``found_inf`` on its device is set; on a CPU it is also several times
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
        # The kernel takes sharded or replicated parameters, not both at once.
        key = (config.layer_decay**depth, decay, is_sharded(parameter))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay, "lr": 0.0}
            for (scale, decay, _), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's learning rate to its share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def clip_gradients(objective: Objective, max_norm: float | None) -> Tensor:
    """Clip gradients in place if ``max_norm`` is given; return their norm before, on the device."""
    parameters = [p for p in objective.parameters() if p.grad is not None]
    norm = total_norm(p.grad for p in parameters if p.grad is not None)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
