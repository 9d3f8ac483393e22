"""Measures of the captions: length in words and characters, and language."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from clipmill.config import Config
from clipmill.data.scoring.contract import Captions, Rows
from clipmill.storage import Parent

# A little above what each of py3langid's languages gets for a text without any feature.
_LEAST_CONFIDENCE = 0.02

_TYPE = pa.struct(
    {
        "words": pa.int32(),
        "characters": pa.int32(),
        "language": pa.string(),
        "confidence": pa.float32(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScoreConfig(Config):
    """Measures of the captions."""

    language: bool = True
    """Whether the language is told, which takes nearly all of the time; else it is null."""
    longest: int = 1000
    """Characters of a caption that its language is told from."""


class TextScorer:
    """A column a caption kind, of structs: ``words`` (divided by white space, as DataComp counts
    them), ``characters`` (code points), ``language`` (ISO 639 code, by py3langid) and
    ``confidence`` (its probability, 0..1).
    """  # noqa: D205  # a list of columns has no shorter form

    wants_images = False
    parents: tuple[Parent, ...] = ()

    def __init__(self, config: TextScoreConfig) -> None:
        self._config = config
        self.detail = {"measures": "words, characters" + ", language" * config.language}

    def score(self, rows: Rows) -> dict[str, pa.Array]:
        """The columns above."""
        return {kind: c.column(self._measure(c)) for kind, c in rows.captions.items()}

    def _measure(self, captions: Captions) -> pa.Array:
        texts = captions.texts
        told = [self._tell(text) for text in texts]
        columns = [
            pa.array([len(text.split()) for text in texts], pa.int32()),
            pa.array([len(text) for text in texts], pa.int32()),
            pa.array([language for language, _ in told], pa.string()),
            pa.array([confidence for _, confidence in told], pa.float32()),
        ]
        return pa.StructArray.from_arrays(columns, fields=list(_TYPE))

    def _tell(self, text: str) -> tuple[str | None, float | None]:
        if not self._config.language:
            return None, None
        return language_of(text[: self._config.longest])


def language_of(text: str) -> tuple[str, float]:
    """ISO 639 code of a text's language, and its probability among those that py3langid knows.

    ``und`` where the text says next to nothing, as a file's name does.
    """
    return _identifier()(text)


@cache
def _identifier() -> Callable[[str], tuple[str, float]]:
    # Its model lies in its wheel, and takes some seconds to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classify: Callable[[str], tuple[str, float]] = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=_LEAST_CONFIDENCE
    ).classify
    return classify
