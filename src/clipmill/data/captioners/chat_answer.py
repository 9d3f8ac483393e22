"""What a chat endpoint answers: texts, how sure the model was of them, and what it cost."""

import json
from dataclasses import dataclass
from typing import Any

from clipmill.errors import BadSampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A chat completion, as far as captions need it."""

    texts: tuple[str, ...]
    """The text of each choice, in order; may be blank."""
    scores: tuple[float | None, ...]
    """Of each the mean log probability of its tokens; None where the endpoint didn't say."""
    num_tokens: int
    """Tokens of prompt and answer; 0 where the endpoint didn't say."""


class MalformedAnswerError(Exception):
    """An answer that isn't a chat completion."""


def parse_answer(text: str) -> Answer:
    """The answer in the body of a response.

    Raises MalformedAnswerError; BadSampleError (``refused``) where the endpoint's filter or the
    model's own refusal took all of the texts away.
    """
    try:
        value = json.loads(text)
        choices = value["choices"]
        texts = tuple(_text(choice) for choice in choices)
        scores = tuple(_score(choice) for choice in choices)
        num_tokens = int((value.get("usage") or {}).get("total_tokens") or 0)
        refused = [c for c in choices if _is_refused(c)]
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise MalformedAnswerError(f"{type(error).__name__}: {str(error)[:200]}") from error
    if not texts:
        raise MalformedAnswerError("there is no choice")
    if len(refused) == len(texts):
        raise BadSampleError("refused", "the model or its filter declined")
    return Answer(texts=texts, scores=scores, num_tokens=max(0, num_tokens))


def _text(choice: dict[str, Any]) -> str:
    content = choice["message"]["content"]
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError(f"content is of type {type(content).__name__}")
    # Half a surrogate pair is JSON, but no text that can be stored.
    return content.encode(errors="replace").decode()


def _is_refused(choice: dict[str, Any]) -> bool:
    return choice.get("finish_reason") == "content_filter" or bool(choice["message"].get("refusal"))


def _score(choice: dict[str, Any]) -> float | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    return sum(float(token["logprob"]) for token in tokens) / len(tokens)
