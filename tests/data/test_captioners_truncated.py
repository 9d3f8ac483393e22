"""Answers that the limit of tokens cuts end with their last complete sentence, or are counted."""

import json

import pytest

from clipmill.data.captioners.chat_client import parse_completion
from clipmill.errors import BadSampleError


def body(*choices: tuple[str, str]) -> str:
    return json.dumps(
        {"choices": [{"message": {"content": t}, "finish_reason": why} for t, why in choices]}
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog. It runs on the", "A dog."),
        ("A dog.", "A dog."),
        ('It says "stop!" and then', 'It says "stop!"'),
        ("Two of 3.5 m. Then 4.", "Two of 3.5 m. Then 4."),
        ("Version 3.5 of the", ""),
        ("一只狗。它在跑", "一只狗。"),
        ("<think>It is a dog. So", "<think>It is a dog."),
        ("A dog?\nA cat", "A dog?"),
    ],
)
def test_the_last_complete_sentence_ends_it(text: str, kept: str) -> None:
    if kept:
        assert parse_completion(body((text, "length"))).texts == (kept,)
    else:
        with pytest.raises(BadSampleError, match="truncated"):
            parse_completion(body((text, "length")))
    assert parse_completion(body((text, "stop"))).texts == (text,)


def test_another_choice_is_taken() -> None:
    parsed = parse_completion(body(("a dog on the", "length"), ("a dog", "stop")))
    assert parsed.texts == ("", "a dog")
