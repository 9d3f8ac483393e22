"""What a loop minimises."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., dict[str, Tensor]]


def synchronizing(forward: Forward, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Where gradients are averaged over ranks, do so only with a step's last backward pass."""
    if hasattr(forward, "set_requires_gradient_sync"):  # sharded by FSDP2
        forward.set_requires_gradient_sync(last)
    if last or not isinstance(forward, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    unsynchronized: contextlib.AbstractContextManager[None] = forward.no_sync()
    return unsynchronized


class Objective(nn.Module, ABC):
    """A module whose forward turns a batch into losses by name; their sum is minimised."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Losses by name, each a scalar averaged over the batch."""

    def accumulate(self, micro_batches: Sequence[Any], forward: Forward) -> dict[str, Tensor]:
        """Add the gradients of the whole batch, given in equal pieces, and return its losses.

        ``forward`` is this module's, by way of whatever averages gradients over ranks. The default
        averages the pieces, which is exact for losses that are means over samples.
        """
        totals: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            with synchronizing(forward, last=number == len(micro_batches)):
                losses = {k: v / len(micro_batches) for k, v in forward(micro_batch).items()}
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
            for name, value in losses.items():
                totals[name] = totals.get(name, value.new_zeros(())) + value.detach()
        return totals

    def after_step(self) -> None:
        """What must hold after each update (a clamp, say); nothing by default."""

    def gauges(self) -> dict[str, Tensor]:
        """Numbers to watch beside the losses, by name: the logit scale of a contrastive model."""
        found = [p for name, p in self.named_parameters() if name.endswith("logit_scale")]
        return {"logit_scale": found[0].detach().exp()} if found else {}

    def layer_of(self, parameter: str) -> int | None:
        """Layer of a parameter for layer-wise decay; None where the rate isn't scaled."""
        del parameter
        return None

    @property
    def num_layers(self) -> int:
        """The layer number at which layer-wise decay leaves the rate as it is."""
        return 0

    def trained_tensors(self) -> Mapping[str, Tensor]:
        """What training changes: parameters and buffers, by name."""
        return self.state_dict()
