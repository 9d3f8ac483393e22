"""Which concepts of a given list a caption names: MetaCLIP's substring matching.

Xu et al. 2024, "Demystifying CLIP Data", section 3.2 and algorithm 1: an entry matches where it
stands in the text as whole words, with the usual punctuation set apart.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clipmill.config import Config
from clipmill.data.scoring.contract import Captions, Rows
from clipmill.digest import sha256_bytes
from clipmill.errors import ConfigError
from clipmill.storage import Parent, read_bytes

_SET_APART = str.maketrans({mark: f" {mark} " for mark in ",.;:?!`"} | dict.fromkeys("\t\n\r", " "))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptScoreConfig(Config):
    """Which concepts captions are matched with."""

    concepts: str = ""
    """URI of the list: UTF-8 text with a concept a line, or a JSON array of strings."""
    ignore_case: bool = False
    """Whether capital letters match small ones; MetaCLIP's published code says no."""


class ConceptScorer:
    """A column a caption kind: the list of numbers of the concepts that the caption names.

    Numbers count the entries of the list from 0, and ascend.
    """

    wants_images = False

    def __init__(self, config: ConceptScoreConfig) -> None:
        if not config.concepts:
            raise ConfigError(
                "concepts.concepts was empty",
                expected="the URI of a list of concepts, one a line",
                action="give it with --set concepts.concepts=URI",
            )
        data = read_bytes(config.concepts)
        concepts = parse_concepts(data, config.concepts)
        parent = Parent(role="concepts", uri=config.concepts, digest=sha256_bytes(data))
        self.parents: tuple[Parent, ...] = (parent,)
        self.detail = {"concepts": str(len(concepts))}
        self._matcher = ConceptMatcher(concepts, ignore_case=config.ignore_case)

    def score(self, rows: Rows) -> dict[str, pa.Array]:
        """The columns above."""
        return {kind: c.column(self._match(c)) for kind, c in rows.captions.items()}

    def _match(self, captions: Captions) -> pa.Array:
        found = [self._matcher(text) for text in captions.texts]
        offsets = np.cumsum([0, *map(len, found)]).astype(np.int32)
        numbers = pa.array([number for row in found for number in row], pa.int32())
        return pa.ListArray.from_arrays(pa.array(offsets), numbers)


class ConceptMatcher:
    """Maps a text to the numbers of the concepts that stand in it, ascending."""

    def __init__(self, concepts: Sequence[str], *, ignore_case: bool = False) -> None:
        self._fold = str.casefold if ignore_case else str
        self._numbers: dict[str, list[int]] = {}
        # By first word, how many words the entries have: most words begin none.
        self._lengths: dict[str, list[int]] = {}
        for number, concept in enumerate(concepts):
            entry = self._fold(concept)
            self._numbers.setdefault(entry, []).append(number)
            words = entry.split(" ")
            lengths = self._lengths.setdefault(words[0], [])
            if len(words) not in lengths:
                lengths.append(len(words))

    def __call__(self, text: str) -> list[int]:
        """The concepts that stand in ``text`` between spaces, once its punctuation has some."""
        # An entry with a space on each side is a run of whole words: cutting at each single space
        # and looking runs up in a dict finds what a search for substrings would.
        words = self._fold(f" {text} ").translate(_SET_APART).split(" ")[1:-1]
        found: set[int] = set()
        for start, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                found.update(self._numbers.get(" ".join(words[start : start + length]), ()))
        return sorted(found)


def parse_concepts(data: bytes, uri: str) -> list[str]:
    """The entries of a list, as they stand; raises ConfigError if it isn't one."""
    try:
        text = data.decode()
        value: object = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise _not_a_list(uri, str(error)) from error
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _not_a_list(uri, "not an array of strings")
    concepts = [entry.strip() for entry in value]
    if not concepts or not all(concepts):
        raise _not_a_list(uri, "a blank entry" if concepts else "no entry")
    return concepts


def _not_a_list(uri: str, trouble: str) -> ConfigError:
    return ConfigError(
        f"{uri} isn't a list of concepts: {trouble}",
        expected="UTF-8 text with a concept a line, or a JSON array of strings",
        action="correct the list, or give another one",
    )
