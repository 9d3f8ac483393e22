"""Matching concepts against a search for substrings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.data.scoring.scorers import ConceptMatcher, parse_concepts
from clipmill.errors import ConfigError

words = st.sampled_from(["a", "dog", "hot", "Dog", "new york", "st.", ",", "", "café", "a dog"])
texts = st.lists(words, max_size=8).flatmap(
    lambda parts: st.sampled_from([" ", "  ", ",", ". ", "\n"]).map(lambda gap: gap.join(parts))
)
concepts_of = st.lists(words.filter(bool), min_size=1, max_size=6)


def by_search(text, concepts):
    """MetaCLIP's words: punctuation wrapped in spaces, entries too, then ``in``."""
    spaced = f" {text} "
    for mark in ",.;:?!`":
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return [number for number, entry in enumerate(concepts) if f" {entry} " in spaced]


@given(texts, concepts_of)
def test_it_finds_what_a_search_finds(text, concepts):
    assert ConceptMatcher(concepts)(text) == by_search(text, concepts)


@given(st.text(), st.lists(st.text(min_size=1).map(str.strip).filter(bool), max_size=4))
def test_it_finds_what_a_search_finds_in_any_text(text, concepts):
    assert ConceptMatcher(concepts)(text) == by_search(text, concepts)


def test_case_counts_unless_told_otherwise():
    concepts = ["New York", "dog"]
    assert ConceptMatcher(concepts)("a Dog in new york") == []
    assert ConceptMatcher(concepts, ignore_case=True)("a Dog in new york") == [0, 1]


def test_lists():
    assert parse_concepts(b"dog\nhot dog\n", "x") == ["dog", "hot dog"]
    assert parse_concepts(b'["dog", "a, b"]', "x") == ["dog", "a, b"]


@pytest.mark.parametrize("data", [b"", b"\xff", b"[1]", b'["a", " "]', b"[", b"a\n\nb"])
def test_what_is_no_list(data):
    with pytest.raises(ConfigError, match="isn't a list of concepts"):
        parse_concepts(data, "x")
