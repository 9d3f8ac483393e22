"""Client of one chat endpoint with OpenAI's protocol, such as vLLM's.

It limits the rate and the budget of a run, retries transient failures, and separates permanent
failures of one sample (BadSampleError) from those of all (ServerError, BudgetError).

tenacity would replace the loop and its wait, 7 of the 50 lines of ``_post_with_retries``; the rest
decides which responses to retry. The openai client retries unseen, so that neither the budget nor
the rate limit would count its attempts, and has no deadline for a whole response.
"""

import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, NoReturn
from urllib.parse import urlsplit

from clipmill.data.captioners.config import ChatClientConfig
from clipmill.data.http import retry_after_seconds
from clipmill.errors import BadSampleError, BadSampleReason, BudgetError, ConfigError, ServerError
from clipmill.telemetry import RequestOutcome, ResponseFault, caption_metrics

_LOG = logging.getLogger(__name__)

_MAX_RESPONSE_BYTES = 8 * 2**20

# No caption, whatever the endpoint makes of its limit of tokens; reasoning may precede one.
_MAX_TEXT_CHARACTERS = 100_000

# All complete sentences of a text: up to the last mark that white space or the end follows, or
# one of those that need none.
_SENTENCES = re.compile(
    r".*(?:[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f\u0964])", re.DOTALL
)

# A server that starts again, or a proxy before it.
_DOWN_STATUSES = frozenset({502, 503, 504})

_MAX_OUTAGE_WAIT_SECONDS = 15.0

# Too early, too slow, too many: worth a retry, as is any 5xx.
_RETRYABLE_STATUSES = frozenset({408, 425, 429})

# The key, the address or the payment is at fault, not a sample.
_FATAL_STATUSES = frozenset({401, 402, 403, 404, 405, 407})


class CancelledBatchError(Exception):
    """Another request of the same batch has ended the run."""


class MalformedResponseError(Exception):
    """A response that isn't a chat completion."""


class _IncompleteResponseError(Exception):
    """An attempt that ended without a complete response."""


class _NotListeningError(_IncompleteResponseError):
    """An attempt that found nothing listening at the address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCompletion:
    """The parts of a chat completion that captions need."""

    texts: tuple[str, ...]
    """The text of each choice, in order; may be blank."""
    scores: tuple[float | None, ...]
    """Mean log probability of each text's tokens; None if the endpoint doesn't return it."""
    num_tokens: int
    """Tokens of prompt and completion; 0 if the endpoint doesn't return it."""


class ChatClient:
    """Client of the endpoint at ``url``, such as ``http://host:8000/v1``; thread-safe.

    Raises ConfigError if the key can't be read.
    """

    def __init__(self, url: str, config: ChatClientConfig) -> None:
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
        # Otherwise it logs a line per caption.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._rate_limiter = RateLimiter(config.requests_per_minute)
        self._budget = Budget(config.max_requests, config.max_total_tokens)
        self._circuit_breaker = CircuitBreaker(config.max_consecutive_failures)
        self._has_answered = False
        self._is_warned = False

    def complete(self, body: Mapping[str, Any], stop: Event) -> ChatCompletion:
        """Return the completion of a request; waits end early once ``stop`` is set.

        Raises:
            BadSampleError: this request failed permanently; the reason is one of ``REASONS``.
            BudgetError: the budget is spent; nothing was sent.
            ServerError: no request would succeed, or too many failed in a row.
            CancelledBatchError: ``stop`` was set.
        """
        try:
            completion = self._post_with_retries(body, stop)
        except BadSampleError as error:
            if self._circuit_breaker.record_failure():
                limit = self._config.max_consecutive_failures
                self._raise_permanent_failure(
                    f"{limit} samples in a row (endpoint.max_consecutive_failures): {error}"
                )
            raise
        self._circuit_breaker.record_success()
        return completion

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _post_with_retries(self, body: Mapping[str, Any], stop: Event) -> ChatCompletion:
        failure = BadSampleError(BadSampleReason.UNAVAILABLE, "no attempt was made")
        min_wait = 0.0
        outage = _Outage(self._config.max_outage_seconds if self._has_answered else 0.0)
        attempt = -1
        while outage.is_waiting or attempt + 1 < self._config.max_attempts:
            if outage.is_waiting:
                _wait(outage.wait_seconds(), stop)
            else:
                attempt += 1
            is_last = attempt + 1 == self._config.max_attempts
            failed = RequestOutcome.FAILURE if is_last else RequestOutcome.RETRY
            if attempt and not outage.is_waiting:
                ceiling = self._config.backoff_seconds * 2 ** (attempt - 1)
                # Full jitter: requests that failed together aren't retried together.
                wait = min_wait + random.uniform(0, ceiling)  # noqa: S311
                _wait(min(wait, self._config.max_wait_seconds), stop)
            _wait(self._rate_limiter.acquire(), stop)
            with self._budget.request() as usage:
                result = self._attempt(body, usage, failed, outage)
            if isinstance(result, ChatCompletion):
                return result
            if isinstance(result, BadSampleError):
                failure, min_wait = result, 0.0
                continue
            status, headers, text = result
            message = f"status {status}: {' '.join(text.split())[:200]}"
            min_wait = retry_after_seconds(headers.get("retry-after", ""))
            outage.update(self.url, is_down=status in _DOWN_STATUSES and not min_wait)
            is_retryable = status in _RETRYABLE_STATUSES or status >= 500
            is_too_late = min_wait > self._config.max_wait_seconds
            if not is_retryable or is_too_late:
                failed = RequestOutcome.FAILURE
            _count_request(failed, status)
            if status in _FATAL_STATUSES or status < 400:
                self._raise_permanent_failure(message)
            if not is_retryable:
                raise BadSampleError(BadSampleReason.REFUSED, message)
            failure = BadSampleError(BadSampleReason.UNAVAILABLE, message)
            if is_too_late:
                self._raise_permanent_failure(f"Retry-After is {min_wait:.0f} seconds; {message}")
            if min_wait:
                self._rate_limiter.back_off(min_wait)
        raise failure

    def _attempt(
        self,
        body: Mapping[str, Any],
        usage: "RequestUsage",
        failed: RequestOutcome,
        outage: "_Outage",
    ) -> ChatCompletion | BadSampleError | tuple[int, Mapping[str, str], str]:
        """Return a completion, why there is none, or another response than status 200."""
        try:
            status, headers, text = self._post(body)
            if status != 200:
                return status, headers, text
            completion = parse_completion(text)
        except _NotListeningError as error:
            outage.update(self.url, is_down=True)
            _count_request(failed, ResponseFault.INCOMPLETE)
            return BadSampleError(BadSampleReason.UNAVAILABLE, str(error))
        except MalformedResponseError as error:
            outage.update(self.url, is_down=False)
            _count_request(failed, ResponseFault.MALFORMED)
            return BadSampleError(BadSampleReason.MALFORMED, str(error))
        except _IncompleteResponseError as error:
            outage.update(self.url, is_down=False)
            _count_request(failed, ResponseFault.INCOMPLETE)
            return BadSampleError(BadSampleReason.UNAVAILABLE, str(error))
        self._has_answered = True
        self._warn_without_usage(completion)
        usage.num_tokens = completion.num_tokens
        _count_request(RequestOutcome.SUCCESS, status)
        caption_metrics().tokens.inc(completion.num_tokens)
        return completion

    def _warn_without_usage(self, completion: ChatCompletion) -> None:
        if self._config.max_total_tokens and not completion.num_tokens and not self._is_warned:
            self._is_warned = True
            _LOG.warning(
                "the endpoint %s doesn't count tokens, so endpoint.max_total_tokens has no effect: "
                "set endpoint.max_requests instead",
                self.url,
            )

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], str]:
        """Return status, headers and text of one attempt; an echoed key is redacted."""
        import httpx

        deadline = time.monotonic() + self._config.timeout_seconds
        received = bytearray()
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                # httpx bounds the wait for each piece, not for all of them.
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > _MAX_RESPONSE_BYTES:
                        raise MalformedResponseError(f"more than {_MAX_RESPONSE_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _IncompleteResponseError("the response took too long")
        except httpx.DecodingError as error:
            raise MalformedResponseError("the response's compression is broken") from error
        except httpx.ConnectError as error:
            raise _NotListeningError(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise _IncompleteResponseError(f"{type(error).__name__}: {error}") from error
        text = received.decode(errors="replace")
        return response.status_code, response.headers, self._key.redact(text) if self._key else text

    def _raise_permanent_failure(self, reason: str) -> NoReturn:
        raise ServerError(
            f"the endpoint {self.url} failed permanently: {reason}",
            expected="responses to POST /chat/completions, for this key and model",
            action="fix the endpoint, the key or the model's name; where it refuses a parameter, "
            "set endpoint.renamed_parameters or endpoint.omitted_parameters; "
            "and run again: completed captions are kept",
        )


class _Outage:
    """Time for which nothing answers an endpoint that did before."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._started: float | None = None
        self._wait_seconds = 1.0
        self.is_waiting = False

    def update(self, url: str, *, is_down: bool) -> None:
        """Note an attempt: whether it met nothing that answers."""
        if not is_down:
            self._started, self.is_waiting, self._wait_seconds = None, False, 1.0
            return
        now = time.monotonic()
        if self._started is None:
            self._started = now
            if self._max_seconds:
                _LOG.warning(
                    "the endpoint %s is down: waiting up to %.0f s for it", url, self._max_seconds
                )
        self.is_waiting = now - self._started < self._max_seconds

    def wait_seconds(self) -> float:
        """Return the wait before the next attempt, which doubles."""
        wait, self._wait_seconds = (
            self._wait_seconds,
            min(2 * self._wait_seconds, _MAX_OUTAGE_WAIT_SECONDS),
        )
        return wait


def _count_request(outcome: RequestOutcome, status: int | ResponseFault) -> None:
    caption_metrics().requests.labels(outcome=outcome, status=str(status)).inc()


def _wait(seconds: float, stop: Event) -> None:
    if stop.wait(seconds) if seconds > 0 else stop.is_set():
        raise CancelledBatchError


def check_url(url: str) -> str:
    """Return the URL without trailing slash; ConfigError if invalid, or it may hold a secret."""
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
            "the endpoint's URL can't be stored",
            expected="http://host:port/v1 or https://..., without user, password or query",
            action="correct it; the key goes into endpoint.key_variable or endpoint.key_file",
        )
    return url.rstrip("/")


def parse_completion(text: str) -> ChatCompletion:
    """Parse the body of a response.

    A text that the limit of tokens cut (``finish_reason: length``) ends with its last complete
    sentence. Raises MalformedResponseError; BadSampleError (``refused``) if the endpoint's filter
    or the model itself refused all texts, ``truncated`` if none has a complete sentence.
    """
    try:
        value = json.loads(text)
        choices = value["choices"]
        texts = tuple(_text(choice) for choice in choices)
        scores = tuple(_score(choice) for choice in choices)
        num_tokens = int((value.get("usage") or {}).get("total_tokens") or 0)
        refused = [c for c in choices if _is_refused(c)]
        is_cut = [_is_cut(c) and not text for c, text in zip(choices, texts, strict=True)]
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise MalformedResponseError(f"{type(error).__name__}: {str(error)[:200]}") from error
    if not texts:
        raise MalformedResponseError("there is no choice")
    if len(refused) == len(texts):
        raise BadSampleError(BadSampleReason.REFUSED, "the model or its filter declined")
    if all(is_cut):
        raise BadSampleError(
            BadSampleReason.TRUNCATED, "no sentence ended within the parameter max_tokens"
        )
    return ChatCompletion(texts=texts, scores=scores, num_tokens=max(0, num_tokens))


def _text(choice: dict[str, Any]) -> str:
    content = choice["message"]["content"]
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(f"content is of type {type(content).__name__}")
    if len(content) > _MAX_TEXT_CHARACTERS:
        raise ValueError(f"a text of {len(content)} characters")
    if _is_cut(choice):
        sentences = _SENTENCES.match(content)
        content = sentences[0] if sentences else ""
    # Half a surrogate pair is JSON, but no text that can be stored.
    return content.encode(errors="replace").decode()


def _is_cut(choice: dict[str, Any]) -> bool:
    return choice.get("finish_reason") == "length"


def _is_refused(choice: dict[str, Any]) -> bool:
    return choice.get("finish_reason") == "content_filter" or bool(choice["message"].get("refusal"))


def _score(choice: dict[str, Any]) -> float | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    score = sum(float(token["logprob"]) for token in tokens) / len(tokens)
    # Some servers give NaN or -Infinity, which JSON can't store.
    return score if math.isfinite(score) else None


class RateLimiter:
    """Spaces out the starts of requests: a burst would use up the endpoint's own window."""

    def __init__(self, requests_per_minute: float) -> None:
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()

    def acquire(self) -> float:
        """Reserve the next start, and return the seconds until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def back_off(self, seconds: float) -> None:
        """Delay all requests that haven't started by at least ``seconds``."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Budget:
    """Requests and tokens that a run may use; 0 for no limit.

    A request in flight counts as the most expensive so far, so only one that exceeds all before it
    can pass the limit.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._num_requests = 0
        self._num_tokens = 0
        self._in_flight = 0
        self._max_tokens_per_request = 0
        self._lock = Lock()

    @contextmanager
    def request(self) -> Iterator["RequestUsage"]:
        """Start a request; raises BudgetError, before it is sent, if it exceeds the budget."""
        with self._lock:
            tokens = self._num_tokens + (self._in_flight + 1) * self._max_tokens_per_request
            if self._max_requests and self._num_requests >= self._max_requests:
                raise _budget_error(f"{self._num_requests} requests", "endpoint.max_requests")
            if self._max_tokens and (
                self._num_tokens >= self._max_tokens or tokens > self._max_tokens
            ):
                raise _budget_error(f"{self._num_tokens} tokens", "endpoint.max_total_tokens")
            self._num_requests += 1
            self._in_flight += 1
        usage = RequestUsage()
        try:
            yield usage
        finally:
            with self._lock:
                self._in_flight -= 1
                self._num_tokens += usage.num_tokens
                self._max_tokens_per_request = max(self._max_tokens_per_request, usage.num_tokens)


class RequestUsage:
    """Tokens that one request has used; set by the caller."""

    def __init__(self) -> None:
        self.num_tokens = 0


class CircuitBreaker:
    """Counts consecutive failures."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_failures = 0
        self._lock = Lock()

    def record_success(self) -> None:
        """Reset the count."""
        with self._lock:
            self._num_failures = 0

    def record_failure(self) -> bool:
        """Count a failure, and return whether the limit is reached."""
        with self._lock:
            self._num_failures += 1
            return self._num_failures >= self._limit


def _budget_error(what: str, field: str) -> BudgetError:
    return BudgetError(
        f"the budget of this run is spent: {what}",
        expected=f"captions for all samples within {field}",
        action=f"run again to resume with a fresh budget, or raise {field}: completed "
        "captions are kept",
    )


class Secret:
    """A text that isn't shown when it, or an object that holds it, is printed."""

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

    def redact(self, text: str) -> str:
        """Return ``text`` with each occurrence of the secret replaced."""
        return text.replace(self._text, "[key]")


def read_key(variable: str, file: str) -> Secret | None:
    """Read the key from an environment variable or a file; None if neither is named.

    Raises ConfigError if there is none, or it can't be sent in a header.
    """
    if variable:
        key, origin = os.environ.get(variable, "").strip(), f"the environment variable {variable}"
    elif file:
        origin = f"the file {file}"
        try:
            key = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{origin} can't be read: {type(error).__name__}",
                expected="a file that holds the endpoint's key and nothing else",
                action="mount the secret there, or correct endpoint.key_file",
            ) from error
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{origin} holds no key" if not key else f"{origin} holds what can't be a key",
            expected="one line of ASCII characters",
            action="put the endpoint's key there",
        )
    return Secret(key)
