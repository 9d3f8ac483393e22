"""The error hierarchy.

ClipmillError
├── UserError               the caller can mend it: exit code 2
│   ├── ConfigError         an unknown field, a wrong type, a value out of range
│   ├── SourceError         a folder or list of samples that can't be used at all
│   ├── StorageError        a store that is missing or refuses us
│   │   ├── NotFoundError   nothing lies at that URI
│   │   └── StoreUnavailableError   it doesn't answer, or fails: exit code 1, a retry may succeed
│   ├── ArtifactError       a dataset, layer or checkpoint that is cut, foreign or inconsistent
│   ├── GateError           a model that may not be promoted
│   ├── ServerError         a server that can't start or doesn't answer
│   ├── ClusterError        a Kubernetes API that isn't there, or refuses us
│   ├── MissingExtraError   an optional dependency that isn't installed
│   ├── BudgetError         a limit on cost that was reached
│   ├── LostWorkerError     a worker process was killed, and a rerun resumes: exit code 1
│   └── TrainingError       a run that can't go on
│       └── LostRankError   another rank is gone, and a restart resumes: exit code 1
├── StoppedError            a run that was told to stop, and did, its state saved: exit code 75
└── BadSampleError          one sample that can't be used: counted by reason, never fatal
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

EXIT_USER_ERROR: Final = 2
"""Exit code of a command for an error that the caller can fix, and no retry does."""
EXIT_PREEMPTED: Final = 75
"""Exit code of a run that stopped on SIGTERM and saved a checkpoint; sysexits.h's EX_TEMPFAIL."""


class ClipmillError(Exception):
    """Root of every error that clipmill raises on purpose."""


class UserError(ClipmillError):
    """Something the caller can mend, said as: what it was, what was expected, what to do."""

    def __init__(self, what: str, *, expected: str, action: str) -> None:
        self.what = what
        self.expected = expected
        self.action = action
        super().__init__(f"{what}\n  expected: {expected}\n  what to do: {action}")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when the error crosses a process boundary."""
        return _rebuild, (type(self), self.what, self.expected, self.action)


def _rebuild(kind: type[UserError], what: str, expected: str, action: str) -> UserError:
    return kind(what, expected=expected, action=action)


class ConfigError(UserError):
    """An unknown field, a wrong type, or a value out of range."""


class SourceError(UserError):
    """A folder or list of samples that can't be used at all."""


class StorageError(UserError):
    """A store that is missing, refuses us, or fails."""


class NotFoundError(StorageError):
    """Nothing lies at that URI."""


class StoreUnavailableError(StorageError):
    """A store that doesn't answer, or answers with a fault of its own; later it may not."""


class ArtifactError(UserError):
    """A dataset, layer or checkpoint that is cut, foreign or inconsistent."""


class GateError(UserError):
    """A model that may not be promoted."""


class ServerError(UserError):
    """A server that can't start or doesn't answer."""


class ClusterError(UserError):
    """A Kubernetes API that isn't there, or refuses us."""


class MissingExtraError(UserError):
    """An optional dependency that isn't installed."""


class BudgetError(UserError):
    """A limit on cost that was reached; what was paid for is kept."""


class LostWorkerError(UserError):
    """A worker process that was killed; the same command resumes."""


class BadSampleReason(StrEnum):
    """Why a sample, or its caption, can't be used: in metrics, datasets' records and reports."""

    BODY_TOO_LARGE = "body_too_large"
    CAPTION_NOT_UTF8 = "caption_not_utf8"
    CAPTION_TOO_LONG = "caption_too_long"
    CAPTION_WITHOUT_IMAGE = "caption_without_image"
    DAMAGED_RECORD = "damaged_record"
    DAMAGED_SHARD = "damaged_shard"
    DISALLOWED_BY_ROBOTS = "disallowed_by_robots"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_IMAGE = "duplicate_image"
    EMPTY_CAPTION = "empty_caption"
    EMPTY_FILE = "empty_file"
    HTTP_ERROR = "http_error"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    INVALID_URL = "invalid_url"
    MISSING_CAPTION = "missing_caption"
    MISSING_EMBEDDING = "missing_embedding"
    MISSING_IMAGE = "missing_image"
    MISSING_LABEL = "missing_label"
    NOT_DOWNLOADED = "not_downloaded"
    OPTED_OUT = "opted_out"
    PRIVATE_ADDRESS = "private_address"
    TIMED_OUT = "timed_out"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TRUNCATED_TAR = "truncated_tar"
    UNREADABLE_IMAGE = "unreadable_image"
    UNREACHABLE = "unreachable"
    # Of captioners.
    EMPTY = "empty"
    FAILED = "failed"
    MALFORMED = "malformed"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    UNAVAILABLE = "unavailable"
    # Of judges.
    NO_SCORE = "no_score"

    @classmethod
    def parse(cls, text: str) -> str:
        """Return a stored reason as it is written now.

        Records of clipmill 0.1 join the words of reasons by hyphens, and have other words for some.
        Reasons of other code's readers are kept.
        """
        return _REASONS_0_1.get(text, text.replace("-", "_"))


_REASONS_0_1 = {
    "broken-record": BadSampleReason.DAMAGED_RECORD,
    "cut-tar": BadSampleReason.TRUNCATED_TAR,
    "no-caption": BadSampleReason.MISSING_CAPTION,
    "no-embedding": BadSampleReason.MISSING_EMBEDDING,
    "no-label": BadSampleReason.MISSING_LABEL,
}


class BadSampleError(ClipmillError):
    """One sample that can't be used; ``reason`` is the counter it falls under."""

    def __init__(self, reason: BadSampleReason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from both arguments when the error crosses a process boundary."""
        return type(self), (self.reason, self.detail)


class TrainingError(UserError):
    """A run that can't go on."""


class LostRankError(TrainingError):
    """A rank that can't continue since another one is gone; started again, all resume."""


class StoppedError(ClipmillError):
    """A run that was told to stop and saved its state; the same command goes on from there."""


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return ``did you mean 'x'?`` for a mistyped name, or ``otherwise`` if none is close."""
    nearest = get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` to end a message with, or nothing if no name is close."""
    said = suggestion(name, known, "")
    return f"; {said}" if said else ""
