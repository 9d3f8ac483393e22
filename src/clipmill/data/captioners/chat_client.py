"""A client of one chat endpoint that speaks OpenAI's protocol, such as vLLM's.

It keeps to a pace and a budget, tries again what may pass, and says of what can't whether the
sample is at fault (BadSampleError) or all of them would be (ServerError, BudgetError).
"""

import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event, Lock
from typing import Any, NoReturn
from urllib.parse import urlsplit

from clipmill.errors import BadSampleError, BudgetError, ConfigError, ServerError
from clipmill.telemetry import caption_metrics

_MOST_ANSWER_BYTES = 8 * 2**20

# Too early, too slow, too many: what a later attempt may pass, with all that is 5xx.
_PASSING = frozenset({408, 425, 429})

# A key, an address or a bill is wrong, not a sample.
_HOPELESS = frozenset({401, 402, 403, 404, 405, 407})


class StoppedError(Exception):
    """Another request of the same batch has ended the run."""


class MalformedAnswerError(Exception):
    """An answer that isn't a chat completion."""


class _BrokenOffError(Exception):
    """An attempt that ended without a whole answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A chat completion, as far as captions need it."""

    texts: tuple[str, ...]
    """The text of each choice, in order; may be blank."""
    scores: tuple[float | None, ...]
    """Of each the mean log probability of its tokens; None where the endpoint didn't say."""
    num_tokens: int
    """Tokens of prompt and answer; 0 where the endpoint didn't say."""


class Endpoint:
    """The endpoint below ``url``, such as ``http://host:8000/v1``; safe to use from many threads.

    Raises ConfigError where the key isn't where the config says.
    """

    def __init__(self, url: str, config: EndpointConfig) -> None:
        import httpx

        self.url = check_url(url)
        self._config = config
        self._key: Secret | None = read_key(config.key_variable, config.key_file)
        headers = {"Authorization": f"Bearer {self._key.reveal()}"} if self._key else {}
        self._client = httpx.Client(
            headers=headers,
            timeout=config.timeout_seconds,
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        # Otherwise it logs every request, a line a caption.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._pace = Pace(config.requests_per_minute)
        self._budget = Budget(config.max_requests, config.max_total_tokens)
        self._streak = Streak(config.max_failures_in_a_row)

    def ask(self, body: Mapping[str, Any], stop: Event) -> Answer:
        """The answer to a chat completion request; waits end early once ``stop`` is set.

        Raises:
            BadSampleError: this request can't be answered; the reason is one of ``REASONS``.
            BudgetError: the budget is spent; nothing was sent.
            ServerError: no request would be answered, or none was for too long.
            StoppedError: ``stop`` was set.
        """
        try:
            answer = self._try_often(body, stop)
        except BadSampleError as error:
            if self._streak.failed():
                self._give_up(f"{self._config.max_failures_in_a_row} samples in a row: {error}")
            raise
        self._streak.succeeded()
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _try_often(self, body: Mapping[str, Any], stop: Event) -> Answer:
        trouble = BadSampleError("unavailable", "not asked")
        least_wait = 0.0
        for attempt in range(self._config.attempts):
            if attempt:
                ceiling = self._config.backoff_seconds * 2 ** (attempt - 1)
                # Full jitter: those who failed together don't come back together.
                wait = least_wait + random.uniform(0, ceiling)  # noqa: S311
                _wait(min(wait, self._config.max_wait_seconds), stop)
            _wait(self._pace.reserve(), stop)
            with self._budget.request() as spent:
                try:
                    status, headers, text = self._post(body)
                    if status == 200:
                        answer = parse_answer(text)
                        spent.tokens(answer.num_tokens)
                        caption_metrics().requests.labels("answered").inc()
                        caption_metrics().tokens.inc(answer.num_tokens)
                        return answer
                except MalformedAnswerError as error:
                    trouble, least_wait = BadSampleError("malformed", str(error)), 0.0
                    caption_metrics().requests.labels("malformed").inc()
                    continue
                except _BrokenOffError as error:
                    trouble, least_wait = BadSampleError("unavailable", str(error)), 0.0
                    caption_metrics().requests.labels("broken-off").inc()
                    continue
            caption_metrics().requests.labels(str(status)).inc()
            said = f"status {status}: {' '.join(text.split())[:200]}"
            if status in _HOPELESS or status < 400:
                self._give_up(said)
            if status not in _PASSING and status < 500:
                raise BadSampleError("refused", said)
            trouble = BadSampleError("unavailable", said)
            least_wait = _retry_after(headers.get("retry-after", ""))
            if least_wait > self._config.max_wait_seconds:
                self._give_up(f"it asks to wait {least_wait:.0f} seconds; {said}")
            if least_wait:
                self._pace.hold(least_wait)
        raise trouble

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of one attempt; the key is blotted out wherever it's echoed."""
        import httpx

        deadline = time.monotonic() + self._config.timeout_seconds
        received = bytearray()
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                # httpx bounds the wait for each piece, not for all of them.
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > _MOST_ANSWER_BYTES:
                        raise MalformedAnswerError(f"more than {_MOST_ANSWER_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _BrokenOffError("the answer took too long")
        except httpx.DecodingError as error:
            raise MalformedAnswerError("the answer's compression is broken") from error
        except httpx.HTTPError as error:
            raise _BrokenOffError(f"{type(error).__name__}: {error}") from error
        text = received.decode(errors="replace")
        return response.status_code, response.headers, self._key.blot(text) if self._key else text

    def _give_up(self, trouble: str) -> NoReturn:
        raise ServerError(
            f"the endpoint {self.url} can't go on: {trouble}",
            expected="answers to POST /chat/completions, for this key and model",
            action="mend the endpoint, the key or the model's name, and run again: what was "
            "answered is kept",
        )


def _wait(seconds: float, stop: Event) -> None:
    if stop.wait(seconds) if seconds > 0 else stop.is_set():
        raise StoppedError


def _retry_after(value: str) -> float:
    """Seconds that the header asks for (RFC 9110, 10.2.3): a number or a date; 0 for neither."""
    if value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def check_url(url: str) -> str:
    """The URL without a trailing slash; ConfigError if it's none, or could carry a secret."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        fits = False
        parts = urlsplit("")
    if not fits or "@" in parts.netloc or parts.query or parts.fragment:
        # Not shown: it may hold a password.
        raise ConfigError(
            "the endpoint's URL isn't one that may be kept",
            expected="http://host:port/v1 or https://..., without user, password or query",
            action="correct it; the key goes into endpoint.key_variable or endpoint.key_file",
        )
    return url.rstrip("/")


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


class Pace:
    """Starts of requests, evenly apart: a burst would use up the endpoint's own window."""

    def __init__(self, requests_per_minute: float) -> None:
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()

    def reserve(self) -> float:
        """Take the next start; the seconds until it."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def hold(self, seconds: float) -> None:
        """Let no request that isn't under way start before so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Budget:
    """Requests and tokens that may be spent; 0 for no limit.

    A request under way counts as the dearest so far, so only one that is dearer than all before it
    can pass the limit.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._num_requests = 0
        self._num_tokens = 0
        self._under_way = 0
        self._dearest = 0
        self._lock = Lock()

    @contextmanager
    def request(self) -> Iterator["Spent"]:
        """Begin a request; raises BudgetError, before anything is sent, where it's one too many."""
        with self._lock:
            tokens = self._num_tokens + (self._under_way + 1) * self._dearest
            if self._max_requests and self._num_requests >= self._max_requests:
                raise _spent(f"{self._num_requests} requests", "endpoint.max_requests")
            if self._max_tokens and (
                self._num_tokens >= self._max_tokens or tokens > self._max_tokens
            ):
                raise _spent(f"{self._num_tokens} tokens", "endpoint.max_total_tokens")
            self._num_requests += 1
            self._under_way += 1
        spent = Spent()
        try:
            yield spent
        finally:
            with self._lock:
                self._under_way -= 1
                self._num_tokens += spent.num_tokens
                self._dearest = max(self._dearest, spent.num_tokens)


class Spent:
    """What one request has cost."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def tokens(self, count: int) -> None:
        """Note the tokens that the endpoint counted."""
        self.num_tokens = count


class Streak:
    """Failures one after the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._length = 0
        self._lock = Lock()

    def succeeded(self) -> None:
        """End the streak."""
        with self._lock:
            self._length = 0

    def failed(self) -> bool:
        """Lengthen the streak; whether it has reached its limit."""
        with self._lock:
            self._length += 1
            return self._length >= self._limit


def _spent(what: str, field: str) -> BudgetError:
    return BudgetError(
        f"the budget of this run is spent: {what}",
        expected=f"captions for all samples within {field}",
        action=f"run again to go on with a fresh budget, or raise {field}: what was answered "
        "is kept",
    )


class Secret:
    """A text that no printed form of it, or of what holds it, shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> tuple[object, ...]:
        """Stay in this process."""
        raise TypeError("a secret can't be pickled")

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def blot(self, text: str) -> str:
        """``text`` with each occurrence of the secret blotted out."""
        return text.replace(self._text, "[key]")


def read_key(variable: str, file: str) -> Secret | None:
    """The key in an environment variable or in a file; None where neither is named.

    Raises ConfigError where there is none, or it can't go into a header.
    """
    if variable:
        key, place = os.environ.get(variable, "").strip(), f"the environment variable {variable}"
    elif file:
        place = f"the file {file}"
        try:
            key = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{place} can't be read: {type(error).__name__}",
                expected="a file that holds the endpoint's key and nothing else",
                action="mount the secret there, or correct endpoint.key_file",
            ) from error
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{place} holds no key" if not key else f"{place} holds what can't be a key",
            expected="one line of ASCII characters",
            action="put the endpoint's key there",
        )
    return Secret(key)
