"""Work that one rank does while the others wait, where ``torchrun`` runs a study."""

import os
from collections.abc import Callable
from typing import TypeVar

ValueT = TypeVar("ValueT")

_LONGEST_SECONDS = 7 * 24 * 3600.0


def num_ranks() -> int:
    """Processes that carry the study out together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_first_rank(make: Callable[[], ValueT]) -> ValueT:
    """What ``make`` gives on the first rank, on all of them: what it has saved is there then."""
    if num_ranks() == 1:
        return make()
    import torch

    from clipmill.engine.distributed import init_distributed

    with init_distributed(_LONGEST_SECONDS) as here:
        told = [None if here.rank else make()]
        torch.distributed.broadcast_object_list(told)
        (value,) = told
    assert value is not None
    return value
