"""What a check of data found."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from clipmill.errors import BadSampleError, SourceError

MOST_EXAMPLES = 5
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault, or something worth knowing, and how often it occurs."""

    reason: str
    """What it is, in a word or two joined by hyphens."""
    is_fatal: bool
    """Whether training would stop there, or at least learn nonsense."""
    count: int
    """How often."""
    examples: tuple[str, ...]
    """The first few, with the file and what was wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCheck:
    """What a look through a folder found."""

    task: str
    """Name of the task."""
    num_samples: dict[str, int]
    """Samples by split, the faulty ones included."""
    findings: tuple[Finding, ...]
    """The fatal ones first, then by count."""

    @property
    def is_fit(self) -> bool:
        """Whether training can start."""
        return not any(finding.is_fatal for finding in self.findings)


class Findings:
    """Counts faults by reason while files are looked at."""

    def __init__(self) -> None:
        self.num_samples: dict[str, int] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._examples: dict[tuple[str, bool], list[str]] = defaultdict(list)

    def fault(self, reason: str, example: str) -> None:
        """Note what training can't do with."""
        self._add((reason, True), example)

    def note(self, reason: str, example: str) -> None:
        """Note what is left out, counted, or odd."""
        self._add((reason, False), example)

    def attempt(self, reason: str, work: Callable[[], ValueT], where: str = "") -> ValueT | None:
        """What ``work`` gives; None if it raises SourceError or BadSampleError, which is a fault.

        ``where`` is the file, for an error that doesn't name it.
        """
        try:
            return work()
        except SourceError as error:
            self.fault(reason, error.what)
        except BadSampleError as error:
            self.fault(error.reason, f"{where}: {error.detail}")
        return None

    def result(self, task: str) -> DataCheck:
        """All that was found."""
        found = [
            Finding(reason=key[0], is_fatal=key[1], count=n, examples=tuple(self._examples[key]))
            for key, n in self._counts.items()
        ]
        found.sort(key=lambda f: (not f.is_fatal, -f.count, f.reason))
        return DataCheck(task=task, num_samples=self.num_samples, findings=tuple(found))

    def _add(self, key: tuple[str, bool], example: str) -> None:
        self._counts[key] += 1
        if len(self._examples[key]) < MOST_EXAMPLES:
            self._examples[key].append(example)
