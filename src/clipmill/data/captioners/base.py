"""Interface of captioners: their inputs, outputs and the reasons for a missing caption."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from clipmill.errors import BadSampleReason
from clipmill.lineage import Parent

REASONS: Mapping[str, str] = {
    BadSampleReason.UNREADABLE_IMAGE: "the image can't be decoded",
    BadSampleReason.EMPTY: "the captioner returned no text",
    BadSampleReason.FAILED: "the model raised an error on this sample alone",
    BadSampleReason.REFUSED: "the endpoint or its model declines this sample",
    BadSampleReason.TRUNCATED: "the answer was cut at max_tokens before its first sentence ended",
    BadSampleReason.MALFORMED: "no attempt got a chat completion from the endpoint",
    BadSampleReason.UNAVAILABLE: "the endpoint failed, timed out or didn't respond at each attempt",
    BadSampleReason.MISSING_LABEL: "the labels have no entry for this sample",
}
"""Reasons for a missing synthetic caption, with their meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionInput:
    """A sample as a captioner sees it."""

    uid: str
    """The sample's id, which also seeds its captions."""
    caption: str
    """The real caption."""
    image: Image.Image | None = None
    """RGB and upright; None for a captioner that doesn't need images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOutput:
    """Captions of a sample, or the reason why there are none."""

    texts: tuple[str, ...] = ()
    """Captions, none blank, no two equal, the best first where there are scores; may be empty."""
    scores: tuple[float | None, ...] = ()
    """Of each caption the mean log probability of its tokens; None where that isn't known."""
    reason: str = ""
    """One of REASONS where there is no caption, empty otherwise."""


class Captioner(Protocol):
    """Turns samples into captions.

    Making one is cheap and imports no model library; the first call of ``caption`` loads the
    model. ``caption`` yields the index of a sample with its output, in any order, each once; an
    error that stops it is raised after the outputs so far; the rest are missing.
    """

    needs_images: bool
    """True if ``CaptionInput.image`` is needed."""
    checkpoint_outputs: bool
    """True if outputs are expensive enough to be saved before their shard is complete."""
    identity: str
    """SHA-256 (hex) over everything that determines the captions."""
    parents: tuple[Parent, ...]
    """Inputs of the captions in addition to the dataset, for lineage."""
    detail: Mapping[str, str]
    """Model, prompt, sampling parameters and seed, stored with the captions."""

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Yield each sample's index and captions."""
        ...

    def close(self) -> None:
        """Release connections and models."""
        ...


def make_output(texts: Sequence[str], scores: Sequence[float | None]) -> CaptionOutput:
    """Return generated texts as an output, without blank and repeated ones, the best first."""
    by_text: dict[str, float | None] = {}
    for text, score in zip(texts, scores, strict=True):
        plain = " ".join(text.split())
        if plain and plain not in by_text:
            by_text[plain] = score
    if not by_text:
        return CaptionOutput(reason=BadSampleReason.EMPTY)
    ranked = list(by_text.items())
    if all(score is not None for _, score in ranked):
        ranked.sort(key=lambda pair: -(pair[1] or 0.0))
    return CaptionOutput(
        texts=tuple(text for text, _ in ranked), scores=tuple(score for _, score in ranked)
    )


def sample_seed(seed: int, uid: str) -> int:
    """Return a sample's own seed (63 bits), so that its captions depend on no other sample."""
    digest = hashlib.sha256(f"{seed}:{uid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
