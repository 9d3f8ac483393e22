"""The tokenizer against open_clip's, and what holds at any size of vocabulary."""

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import ConfigError
from clipmill.models import tokenizer as tokenizer_module
from clipmill.models.config import CLIP_VOCAB_SIZE
from clipmill.models.tokenizer import Tokenizer

SIZES = [514, 600, 2048, 4096, CLIP_VOCAB_SIZE]
CAPTIONS = [
    "a photo of a cat",
    "Two  RED cubes,\tand a dog's ball!",
    "naïve café über 漢字 🙂",
    "&amp; 3.14 (really?) -- #tag",
    "",
    "word " * 100,
]
words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
captions = st.lists(words, min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("context_length", [77, 16])
def test_full_size_gives_open_clips_ids(context_length):
    found = Tokenizer(context_length=context_length)(CAPTIONS)
    expected = open_clip.SimpleTokenizer(context_length=context_length)(CAPTIONS)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("vocab_size", SIZES)
@settings(max_examples=40, deadline=None)
@given(text=captions)
def test_plain_captions_come_back(vocab_size, text):
    tokenizer = Tokenizer(vocab_size=vocab_size, context_length=120)
    (tokens,) = tokenizer([text])
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("vocab_size", SIZES)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=40), context_length=st.integers(2, 20))
def test_any_text_lies_between_start_and_end(vocab_size, text, context_length):
    tokenizer = Tokenizer(vocab_size=vocab_size, context_length=context_length)
    (tokens,) = tokenizer([text]).tolist()
    assert len(tokens) == context_length
    assert tokens[0] == tokenizer.start_id == vocab_size - 2
    end = tokens.index(tokenizer.end_id)
    assert tokenizer.end_id == vocab_size - 1
    assert all(0 <= token < vocab_size - 2 for token in tokens[1:end])
    assert tokens[end + 1 :] == [tokenizer.pad_id] * (context_length - end - 1)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_a_long_text_is_cut_and_still_ends(vocab_size):
    tokenizer = Tokenizer(vocab_size=vocab_size, context_length=8)
    (tokens,) = tokenizer(["a b c d e f g h i j k"])
    assert tokens[-1] == tokenizer.end_id
    assert tokenizer.decode(tokens) == "a b c d e f"


@pytest.mark.parametrize(("num_words", "length"), [(1, 8), (6, 8), (7, 16), (40, 20)])
def test_trimmed_a_batch_is_as_long_as_its_longest_text(num_words, length):
    texts = ["a", " ".join("a" * num_words), ""]
    whole = Tokenizer(vocab_size=600, context_length=20)(texts)
    trimmed = Tokenizer(vocab_size=600, context_length=20, is_trimmed=True)(texts)
    assert torch.equal(trimmed, whole[:, :length])
    assert not whole[:, length:].any()


def test_fewer_merges_need_more_tokens():
    lengths = []
    for size in SIZES:
        tokenizer = Tokenizer(vocab_size=size)
        (tokens,) = tokenizer(["a photograph of something remarkable"])
        lengths.append(tokens.tolist().index(tokenizer.end_id) - 1)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == len("aphotographofsomethingremarkable")
    assert lengths[-1] == 5


def test_decoding_stops_at_the_end_and_leaves_out_the_start():
    tokenizer = Tokenizer(vocab_size=600)
    (tokens,) = tokenizer(["red cube"])
    end = tokens.tolist().index(tokenizer.end_id)
    tokens[end + 1 :] = tokens[1]
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens[1:end]) == "red cube"


def test_pickled_it_gives_the_same():
    tokenizer = Tokenizer(vocab_size=600, context_length=9)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(again(CAPTIONS), tokenizer(CAPTIONS))


@pytest.mark.parametrize("vocab_size", [513, CLIP_VOCAB_SIZE + 1])
def test_size_out_of_range(vocab_size):
    with pytest.raises(ConfigError, match=f"vocab_size was {vocab_size}"):
        Tokenizer(vocab_size=vocab_size)


def test_memory_for_words_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_MAX_CACHED_WORDS", 12)
    tokenizer = Tokenizer(vocab_size=1000)
    texts = [f"{a}{b}word {a}{b} <end_of_text>" for a in "abcdef" for b in "uvwxyz"]
    first = tokenizer(texts)
    assert len(tokenizer_module._bpe(1000).cache) <= 12
    assert torch.equal(tokenizer(texts[::-1]), first.flip(0))
    monkeypatch.setattr(tokenizer_module, "_MAX_CACHED_WORDS", 10**6)
    tokenizer_module._bpe.cache_clear()
    assert torch.equal(tokenizer(texts), first)
