"""Image-text retrieval: how often an embedding's partner is among its nearest.

Shapes: B images, C captions, D embedding width.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RANKS = (1, 5, 10)
_BLOCK_ROWS = 1024


def recall(
    image_BD: "Tensor", text_CD: "Tensor", owner_C: "Tensor | None" = None
) -> dict[str, float]:
    """R@1, R@5 and R@10 both ways, as shares: ``image_to_text_r1``, ``text_to_image_r1``, ...

    ``owner_C`` says to which image a caption belongs; without it caption i is image i's. An image
    is found by the nearest of its captions (as on COCO's five captions an image, Karpathy and
    Fei-Fei 2015). An image without a caption isn't asked for, but it can be found in error.
    A tie counts against: a model that maps everything to one place finds nothing.
    """
    return recall_of_ranks(ranks(image_BD, text_CD, owner_C))


def ranks(
    image_BD: "Tensor", text_CD: "Tensor", owner_C: "Tensor | None" = None
) -> "dict[str, Tensor]":
    """Rank of each query's nearest partner, 0 the best, both ways; as for :func:`recall`.

    ``image_to_text`` has one rank per image that has captions, ``text_to_image`` one per caption.
    """
    import torch

    if owner_C is None:
        owner_C = torch.arange(len(text_CD))
    owner_C = owner_C.to(text_CD.device)
    queries_B = torch.unique(owner_C)
    return {
        "image_to_text": torch.cat(list(_text_ranks(image_BD, text_CD, owner_C, queries_B))),
        "text_to_image": torch.cat(list(_image_ranks(image_BD, text_CD, owner_C))),
    }


def recall_of_ranks(ranks: "Mapping[str, Tensor]") -> dict[str, float]:
    """R@1, R@5 and R@10 as shares, of the ranks of :func:`ranks`."""
    return {
        f"{way}_r{k}": float((ranks_N < k).double().mean())
        for way, ranks_N in ranks.items()
        for k in RANKS
    }


def pair_accuracy(image_BD: "Tensor", text_BD: "Tensor") -> dict[str, float]:
    """Return the share of captions nearer to their own image than another caption, and vice versa.

    ``pair_accuracy`` is a share, 0.5 for guessing and for a model that maps everything to one
    place; ``pair_accuracy_error`` is its standard error over pairs. Unlike a loss it doesn't depend
    on the logit scale, which overfits where captions are noise.
    """
    import torch

    similarity_BB = (image_BD @ text_BD.T).double()
    own_B = similarity_BB.diagonal()
    number = len(own_B)
    shares = []
    for rows_BB in (similarity_BB, similarity_BB.T):
        below_B = (rows_BB < own_B[:, None]).sum(1)
        tied_B = (rows_BB == own_B[:, None]).sum(1) - 1
        shares.append((below_B + tied_B / 2) / max(number - 1, 1))
    share_B = torch.stack(shares).mean(0)
    return {
        "pair_accuracy": float(share_B.mean()),
        "pair_accuracy_error": float(share_B.std() / number**0.5) if number > 1 else 0.5,
    }


def _text_ranks(
    image_BD: "Tensor", text_CD: "Tensor", owner_C: "Tensor", queries_B: "Tensor"
) -> "Iterator[Tensor]":
    """For each image that has captions, how many foreign ones are as near as its nearest."""
    import torch

    for rows in torch.split(queries_B, _BLOCK_ROWS):
        similarity_RC = image_BD[rows] @ text_CD.T
        own_RC = owner_C[None] == rows[:, None]
        best_R1 = similarity_RC.masked_fill(~own_RC, -float("inf")).amax(1, keepdim=True)
        yield ((similarity_RC >= best_R1) & ~own_RC).sum(1)


def _image_ranks(image_BD: "Tensor", text_CD: "Tensor", owner_C: "Tensor") -> "Iterator[Tensor]":
    """For each caption, how many other images are as near as its own."""
    import torch

    for texts_RD, owners_R in zip(
        torch.split(text_CD, _BLOCK_ROWS), torch.split(owner_C, _BLOCK_ROWS), strict=True
    ):
        similarity_RB = texts_RD @ image_BD.T
        own_R1 = similarity_RB.gather(1, owners_R[:, None])
        yield (similarity_RB >= own_R1).sum(1) - 1
