"""Relevance of captions by a vision-language model at a chat endpoint, as a score layer.

The model sees an image with one caption and answers with a number. Requests, budget and retries
are those of captioners (:mod:`clipmill.data.captioners.chat_client`).

An answer's number is, after reasoning and Markdown are removed, the first of these:

1. the number after ``score``, ``rating`` or ``relevance`` and a colon, an equals sign or "is", also
   in JSON;
2. a number before ``/N`` or "out of N", if N is the scale;
3. the only number in the answer.

Numbers beyond the scale, and answers without such a number, are failures (``no_score``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from clipmill.config import Config
from clipmill.data.captioners.base import CaptionInput
from clipmill.data.captioners.chat import VlmCaptioner
from clipmill.data.captioners.config import ChatClientConfig, VlmConfig
from clipmill.data.retries import REASON_COLUMN
from clipmill.data.scoring.scorers import RowBatch
from clipmill.errors import BadSampleReason, ConfigError
from clipmill.lineage import Parent

_PROMPT = (
    "How well does the text below describe this image? Answer with one whole number from 0 to "
    "{scale} and nothing else. 0: the text has nothing to do with the image. Half of {scale}: it "
    "fits in part, or is vague. {scale}: all it says can be seen, and it names what matters.\n\n"
    "Text: {caption}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RelevanceScoreConfig(Config):
    """A vision-language model that judges captions."""

    url: str = ""
    """URL of the chat endpoint, such as ``http://host:8000/v1``; isn't stored with the scores."""
    scale: int = 100
    """The number that means a perfect fit; scores are stored from 0 to 1."""
    vlm: VlmConfig = VlmConfig(prompt=_PROMPT, max_tokens=64, temperature=0.0, logprobs=False)
    """The model and its prompt; ``{caption}`` and ``{scale}`` are replaced."""
    endpoint: ChatClientConfig = ChatClientConfig()
    """Access to the endpoint: key, rate, retries and budget."""

    def __post_init__(self) -> None:
        """Refuse a prompt without ``{caption}``, and values out of range (ConfigError)."""
        for name, actual, fits, expected in (
            ("scale", self.scale, self.scale >= 1, "at least 1"),
            (
                "vlm.prompt",
                self.vlm.prompt,
                "{caption}" in self.vlm.prompt,
                "a text with {caption} where the caption goes",
            ),
            ("vlm.num_captions", self.vlm.num_captions, self.vlm.num_captions == 1, "1"),
        ):
            if not fits:
                raise ConfigError(
                    f"relevance.{name} was {actual!r}",
                    expected=expected,
                    action=f"set relevance.{name} to such a value",
                )


@dataclass(frozen=True, slots=True)
class Judgment:
    """Scores of a sample's captions."""

    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """By caption kind, 0 to 1; None for a caption that couldn't be judged."""
    reason: str = ""
    """Why one couldn't be judged, of several the first; empty if all were."""


class RelevanceScorer:
    """A column a caption kind of float32 from 0 to 1, and ``reason``: empty, or why one is null."""

    needs_images = True
    needs_captions = True
    layers: tuple[str, ...] = ()

    def __init__(self, config: RelevanceScoreConfig) -> None:
        if not config.url:
            raise ConfigError(
                "relevance.url was empty",
                expected="the URL of a chat endpoint, such as http://host:8000/v1",
                action="give it with --set relevance.url=URL",
            )
        if not config.vlm.model:
            raise ConfigError(
                "relevance.vlm.model was empty",
                expected="the name of a model that the endpoint serves",
                action="give it with --set relevance.vlm.model=NAME",
            )
        prompt = config.vlm.prompt.replace("{scale}", str(config.scale))
        self._scale = config.scale
        self._judge = VlmCaptioner(config.url, replace(config.vlm, prompt=prompt), config.endpoint)
        self.parents: tuple[Parent, ...] = ()
        self.detail = dict(self._judge.detail)
        self.judgments: dict[str, Judgment] = {}
        """By uid, of the current shard; samples that have one aren't judged again."""

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above.

        Raises BudgetError and ServerError; ``judgments`` then has what was complete.
        """
        assert rows.images is not None
        places: list[tuple[int, str, int]] = []
        inputs: list[CaptionInput] = []
        texts = {kind: captions.lists() for kind, captions in rows.captions.items()}
        for row, (uid, image) in enumerate(zip(rows.uids, rows.images, strict=True)):
            if uid in self.judgments:
                continue
            if image is None:
                scores = {kind: [None] * len(lists[row]) for kind, lists in texts.items()}
                self.judgments[uid] = Judgment(scores, BadSampleReason.UNREADABLE_IMAGE)
                continue
            for kind, lists in texts.items():
                for number, text in enumerate(lists[row]):
                    places.append((row, kind, number))
                    inputs.append(CaptionInput(uid=uid, caption=text, image=image))
        answers: dict[tuple[int, str, int], tuple[float | None, str]] = {}
        try:
            for index, output in self._judge.caption(inputs):
                score = parse_score(output.texts[0], self._scale) if output.texts else None
                no_score = "" if score is not None else BadSampleReason.NO_SCORE
                answers[places[index]] = (score, output.reason or no_score)
        finally:
            for row in {row for row, _, _ in places}:
                expected = [place for place in places if place[0] == row]
                if all(place in answers for place in expected):
                    self.judgments[rows.uids[row]] = _judgment(expected, answers)
        return self._columns(rows)

    def close(self) -> None:
        """Close the connections."""
        self._judge.close()

    def _columns(self, rows: RowBatch) -> dict[str, pa.Array]:
        judgments = [self.judgments[uid] for uid in rows.uids]
        columns = {
            kind: captions.column(
                pa.array(
                    [score for judgment in judgments for score in judgment.scores.get(kind, ())],
                    pa.float32(),
                )
            )
            for kind, captions in rows.captions.items()
        }
        reasons = [judgment.reason for judgment in judgments]
        return {**columns, REASON_COLUMN: pa.array(reasons, pa.string())}


def _judgment(
    places: Sequence[tuple[int, str, int]],
    answers: Mapping[tuple[int, str, int], tuple[float | None, str]],
) -> Judgment:
    scores: dict[str, list[float | None]] = {}
    for place in places:
        scores.setdefault(place[1], []).append(answers[place][0])
    reasons = [answers[place][1] for place in places]
    return Judgment(scores, next(filter(None, reasons), ""))


_NUMBER = r"[-+]?\d+(?:[.,]\d+)?"
_LABELED = re.compile(
    rf"\b(?:score|rating|relevance)\b[\"'\s]*(?:[:=]|\bis\b)[\"'\s]*({_NUMBER})", re.IGNORECASE
)
_OF_SCALE = re.compile(rf"({_NUMBER})\s*(?:/|out of)\s*({_NUMBER})", re.IGNORECASE)


def parse_score(text: str, scale: int) -> float | None:
    """Return the number in a model's answer, from 0 to 1; None if there isn't one."""
    plain = re.sub(r"[*_`]", "", text)
    fractions = _OF_SCALE.findall(plain)
    if any(_number(whole) != scale for _, whole in fractions):
        return None
    if labeled := _LABELED.search(plain):
        number = _number(labeled[1])
    elif fractions:
        numbers = {_number(part) for part, _ in fractions}
        if len(numbers) > 1:
            return None
        (number,) = numbers
    else:
        numbers_in_text = re.findall(rf"(?<![\w.,])({_NUMBER})(?!\w)", plain)
        if len(numbers_in_text) != 1:
            return None
        number = _number(numbers_in_text[0])
    return float(np.float32(number / scale)) if 0 <= number <= scale else None


def _number(text: str) -> float:
    return float(text.replace(",", "."))
