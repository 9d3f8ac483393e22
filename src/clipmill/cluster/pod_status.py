"""Reasons why pods don't run, from their status and their events."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipmill.errors import EXIT_USER_ERROR

Resource = Mapping[str, Any]

_STARTING = {"ContainerCreating", "PodInitializing"}
"""Reasons of a container that waits as it should."""
_MAX_MESSAGE = 300
_OUT_OF_MEMORY = (
    "OOMKilled: the process used more memory than memoryGibibytes of its pool, or "
    "serving.resources of an endpoint"
)


def newest(pods: Iterable[Resource]) -> Resource | None:
    """Return the pod that was created last; None of no pods."""
    return max(pods, key=created, default=None)


def containers(pod: Resource) -> list[Resource]:
    """Return the statuses of a pod's containers, those that initialize it first."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def is_started(pod: Resource) -> bool:
    """Return whether all containers run or have run, so that there are logs."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return bool(statuses) and all("waiting" not in s.get("state", {}) for s in statuses)


def is_ended(pod: Resource) -> bool:
    """Return whether all of the pod's containers have ended for good."""
    return pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}


def is_ready(pod: Resource) -> bool:
    """Return whether the pod runs and isn't about to end."""
    conditions = pod.get("status", {}).get("conditions", [])
    is_true = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return is_true and "deletionTimestamp" not in pod["metadata"]


def pod_problem(pod: Resource) -> str:
    """Return why a pod doesn't run or failed: ``ImagePullBackOff: ...``; empty if it's well.

    For a process that ended this is the exit code and the last line of its log, which Kubernetes
    keeps for ``terminationMessagePolicy: FallbackToLogsOnError``.
    """
    status = pod.get("status", {})
    for container in containers(pod):
        state = container.get("state", {})
        ended = state.get("terminated") or container.get("lastState", {}).get("terminated")
        if ended and (ended.get("exitCode") or ended.get("reason") == "OOMKilled"):
            return _termination(ended)
        waiting = state.get("waiting", {})
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return _sentence(waiting["reason"], waiting.get("message", ""))
    if status.get("phase") == "Failed":
        return _sentence(status.get("reason", "Failed"), status.get("message", ""))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _sentence(condition.get("reason", ""), condition.get("message", ""))
    return ""


def exit_codes(pod: Resource) -> set[int]:
    """Return the exit codes of the pod's ended containers."""
    states = [s.get("state", {}) for s in pod.get("status", {}).get("containerStatuses", [])]
    return {int(s["terminated"].get("exitCode", 0)) for s in states if "terminated" in s}


def summarize_problems(pods: Sequence[Resource]) -> str:
    """Return the most common problem of pods with its number; a user's mistake first of all."""
    mistakes = [pod for pod in pods if EXIT_USER_ERROR in exit_codes(pod)]
    problems = Counter(filter(None, map(pod_problem, mistakes or pods)))
    if not problems:
        return ""
    problem, count = problems.most_common(1)[0]
    return problem if len(pods) == 1 else f"{count} of {len(pods)} nodes: {problem}"


def newest_warning(events: Iterable[Resource], since: str = "") -> str:
    """Return reason and message of the newest warning after a time; empty if there is none."""
    warnings = [e for e in events if e.get("type") == "Warning" and _event_time(e) > since]
    if not warnings:
        return ""
    event = max(warnings, key=_event_time)
    return _sentence(event.get("reason", ""), event.get("message") or event.get("note", ""))


def _termination(ended: Resource) -> str:
    if ended.get("reason") == "OOMKilled":
        return _OUT_OF_MEMORY
    lines = [line.strip() for line in str(ended.get("message", "")).splitlines() if line.strip()]
    # An error of clipmill's is its last lines, of which the first says what was wrong.
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or [""])[-1]
    return _sentence(f"exit code {ended.get('exitCode')}", last)


def _sentence(reason: str, message: str) -> str:
    text = " ".join(message.split())
    text = text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
    return f"{reason}: {text}" if text else reason


def created(pod: Resource) -> str:
    """Return the time at which a pod was created, as Kubernetes writes it."""
    return str(pod["metadata"].get("creationTimestamp", ""))


def _event_time(event: Resource) -> str:
    times = (event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, times), "") or event["metadata"].get("creationTimestamp", ""))
