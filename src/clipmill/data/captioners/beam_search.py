"""The beam search of open_clip's ``CoCa.generate``, up to its version 3.3.

It differs from the textbook's in two ways, which captions published with it depend on: a text's
score is the sum of its tokens' *logits*, not of their log probabilities, divided by its length;
and groups of beams know nothing of each other, so that all find the same texts (open_clip has no
diversity penalty). One group is therefore all that is searched here.

Shapes: B images, K beams an image, N = B * K texts, T text length, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Step a text in each beam: tokens (N,) and, but for the first step, parents (N,) to logits (N, V).
Step = Callable[[Tensor, Tensor | None], Tensor]


def beam_search(
    step: Step,
    *,
    num_images: int,
    num_beams: int,
    start_id: int,
    end_id: int,
    pad_id: int,
    min_tokens: int,
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """Return each image's best text: token ids (B, T), start and end included, then ``pad_id``.

    No text ends before ``min_tokens``; at ``max_tokens`` it is cut without an end.
    """
    first_B1 = torch.arange(num_images, device=device)[:, None] * num_beams
    text_NT = torch.full((num_images * num_beams, 1), start_id, device=device)
    # All beams begin as one.
    score_BK = torch.full((num_images, num_beams), -1e9, device=device)
    score_BK[:, 0] = 0.0
    finished = _Finished(num_images, num_beams, max_tokens, pad_id, device)
    done_B = torch.zeros(num_images, dtype=torch.bool, device=device)
    parent_N: Tensor | None = None
    while text_NT.shape[1] < max_tokens and not done_B.all():
        length = text_NT.shape[1] + 1
        logits_NV = step(text_NT[:, -1], parent_N).float()
        if length <= min_tokens:
            logits_NV[:, end_id] = -torch.inf
        vocab_size = logits_NV.shape[1]
        scores_BKV = score_BK[:, :, None] + logits_NV.view(num_images, num_beams, vocab_size)
        # At most one ending a beam, so that as many beams as ever go on.
        top_BJ, place_BJ = scores_BKV.flatten(1).topk(2 * num_beams)
        parent_BJ, token_BJ = first_B1 + place_BJ // vocab_size, place_BJ % vocab_size
        ends_BJ = token_BJ == end_id
        for rank in range(num_beams):
            text_BT = torch.cat([text_NT[parent_BJ[:, rank]], token_BJ[:, rank, None]], dim=1)
            finished.add(text_BT, top_BJ[:, rank].double() / length, ends_BJ[:, rank] & ~done_B)
        done_B = done_B | finished.is_complete(top_BJ[:, 0].double() / length)
        going_BK = ends_BJ.byte().argsort(dim=1, stable=True)[:, :num_beams]
        score_BK = top_BJ.gather(1, going_BK)
        parent_N = parent_BJ.gather(1, going_BK).flatten()
        token_N = token_BJ.gather(1, going_BK).flatten()
        text_NT = torch.cat([text_NT[parent_N], token_N[:, None]], dim=1)
    length = text_NT.shape[1]
    for beam in range(num_beams):
        text_BT = text_NT.view(num_images, num_beams, length)[:, beam]
        finished.add(text_BT, score_BK[:, beam].double() / length, ~done_B)
    return finished.best()[:, :length]


class _Finished:
    """The K best texts of each image so far that are at their end."""

    def __init__(
        self, num_images: int, num_beams: int, max_tokens: int, pad_id: int, device: torch.device
    ) -> None:
        self._text_BKT = torch.full((num_images, num_beams, max_tokens), pad_id, device=device)
        self._score_BK = torch.full(
            (num_images, num_beams), -torch.inf, dtype=torch.float64, device=device
        )
        self._rows_B = torch.arange(num_images, device=device)
        self._pad_id = pad_id

    def add(self, text_BT: Tensor, score_B: Tensor, wanted_B: Tensor) -> None:
        """Put a text in the place of the worst, where it is wanted and better."""
        worst_B, place_B = self._score_BK.min(dim=1)
        better_B = wanted_B & (score_B > worst_B)
        rows_b, place_b = self._rows_B[better_B], place_B[better_B]
        self._text_BKT[rows_b, place_b] = self._pad_id
        self._text_BKT[rows_b, place_b, : text_BT.shape[1]] = text_BT[better_B]
        self._score_BK[rows_b, place_b] = score_B[better_B]

    def is_complete(self, attainable_B: Tensor) -> Tensor:
        """Whether (B,) there are K texts, and none that goes on would be better now."""
        worst_B = self._score_BK.min(dim=1).values
        return worst_B.isfinite() & (worst_B >= attainable_B)

    def best(self) -> Tensor:
        """The best text (B, max_tokens) of each image."""
        return self._text_BKT[self._rows_B, self._score_BK.argmax(dim=1)]
