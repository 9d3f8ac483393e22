"""What every captioner takes and gives, whatever it is made of."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from clipmill.images import UNREADABLE_IMAGE
from clipmill.lineage import Parent

# Why a sample has no caption of the captioner's own, and what each reason means.
REASONS = {
    UNREADABLE_IMAGE: "the image can't be decoded",
    "empty": "the captioner said nothing",
    "failed": "the model raised an error on this sample alone",
    "refused": "the endpoint or its model declines this sample",
    "malformed": "the endpoint's answer isn't a chat completion, whatever was tried",
    "unavailable": "the endpoint answered with errors, late or not at all, whatever was tried",
    "no-label": "the labels say nothing of this sample",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionInput:
    """What a captioner may know of a sample."""

    uid: str
    """The sample's id, which also decides what is random about its captions."""
    caption: str
    """The real caption."""
    image: Image.Image | None = None
    """RGB and upright; None for a captioner that doesn't look at images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOutput:
    """What a captioner says of a sample."""

    texts: tuple[str, ...] = ()
    """Captions, none blank, no two equal, the best first where there are scores; may be empty."""
    scores: tuple[float | None, ...] = ()
    """Of each caption the mean log probability of its tokens; None where that isn't known."""
    reason: str = ""
    """One of REASONS where there is no caption, empty otherwise."""


class Captioner(Protocol):
    """What turns samples into captions.

    Making one is cheap and imports no model library; the first call of ``caption`` loads the
    model. ``caption`` yields the index of a sample with its output, in any order, each once; an
    error that stops it comes after the outputs that were made before, and leaves the rest unsaid.
    """

    looks_at_images: bool
    """Whether ``CaptionInput.image`` is needed."""
    is_costly: bool
    """Whether outputs are worth keeping before their shard is done."""
    identity: str
    """SHA-256 (hex) over all that decides what is said."""
    parents: tuple[Parent, ...]
    """What the captions are made from beside the dataset."""
    detail: Mapping[str, str]
    """Model, prompt, sampling parameters and seed, to be kept with the captions."""

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Each sample's captions."""
        ...

    def close(self) -> None:
        """Let go of connections; it can't be used any more."""
        ...


def output_of(texts: Sequence[str], scores: Sequence[float | None]) -> CaptionOutput:
    """An output of texts as a model wrote them: blank and repeated ones go, the best come first."""
    found: dict[str, float | None] = {}
    for text, score in zip(texts, scores, strict=True):
        plain = " ".join(text.split())
        if plain and plain not in found:
            found[plain] = score
    if not found:
        return CaptionOutput(reason="empty")
    ranked = list(found.items())
    if all(score is not None for _, score in ranked):
        ranked.sort(key=lambda pair: -(pair[1] or 0.0))
    return CaptionOutput(
        texts=tuple(text for text, _ in ranked), scores=tuple(score for _, score in ranked)
    )


def sample_seed(seed: int, uid: str) -> int:
    """A sample's own seed (63 bits), so that its captions depend on no other sample."""
    digest = hashlib.sha256(f"{seed}:{uid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
