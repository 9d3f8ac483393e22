"""Fusing a tower's training-time branches into what computes the same at inference."""

from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def reparameterised(module: ModuleT) -> ModuleT:
    """A copy in evaluation mode whose branches, with their batch norms, are single convolutions.

    Outputs are equal up to rounding; there is nothing to train in it any more. A module without
    such branches comes back as a plain copy. MobileOne's and FastViT's blocks, and so the MCi
    encoders of MobileCLIP, are made of them.
    """
    from timm.utils import reparameterize_model

    was_training = module.training
    module.eval()  # fused branches hold running statistics, never a batch's
    try:
        fused: ModuleT = reparameterize_model(module, inplace=False)
    finally:
        module.train(was_training)
    return fused
