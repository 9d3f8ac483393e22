"""Status of a training in Kubernetes: a TrainJob's progress and metrics, and Events of its pod.

Kubeflow Trainer gives the pods of a TrainJob an address for progress and metrics (KEP-2779, feature
gate ``TrainJobStatus``), which ``kubectl get trainjob -o yaml`` then shows in
``status.trainerStatus``. Events need the pod's identity in ``CLIPMILL_POD_*`` variables, a
service-account token, and the right to create them.

A thread posts everything. An address that is away or refuses never delays or fails a training.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

import httpx

from clipmill.processes import is_first_rank

POD_VARIABLES: Final = {
    "CLIPMILL_POD_NAME": "metadata.name",
    "CLIPMILL_POD_NAMESPACE": "metadata.namespace",
    "CLIPMILL_POD_UID": "metadata.uid",
}
"""Environment variables of Events, and the pod's fields that they hold."""

_STATUS_URL: Final = "KUBEFLOW_TRAINER_SERVER_URL"
_STATUS_CA: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
_STATUS_TOKEN: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105  # the variable of a path
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
STATUS_SECONDS: Final = 10.0  # between two posts; Trainer's guide asks for 5 or more
_EVENT_SECONDS: Final = 60.0
_TIMEOUT_SECONDS: Final = 5.0
_MAX_NAME, _MAX_VALUE, _MAX_METRICS = 64, 64, 256  # of a TrainJob's status
_MAX_MESSAGE: Final = 1024  # of an Event
_logger = logging.getLogger(__name__)

Reason = Literal["TrainingResumed", "UpdatesSkipped"]
"""Reason of an Event, as ``kubectl get events`` shows it."""


class TrainJobStatus:
    """Progress and metrics of a TrainJob, posted to Kubeflow Trainer."""

    def __init__(self, poster: "_Poster") -> None:
        self._poster = poster
        self._first: tuple[int, float] | None = None

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return None on ranks other than 0, and where Trainer gave no address."""
        names = (_STATUS_URL, _STATUS_CA, _STATUS_TOKEN)
        url, authority, token = (os.environ.get(name, "") for name in names)
        if not (url and authority and token and is_first_rank()):
            return None
        return cls(
            _Poster(
                "the TrainJob's progress",
                url,
                token=Path(token),
                authority=Path(authority),
                interval_seconds=STATUS_SECONDS,
            )
        )

    def report(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Report the state after ``step`` of ``steps``; of states within 10 s the last is sent."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first, since = self._first
        status: dict[str, Any] = {
            "progressPercentage": 100 * step // steps,
            "metrics": [
                {"name": name[:_MAX_NAME], "value": f"{value:.6g}"[:_MAX_VALUE]}
                for name, value in list(metrics.items())[:_MAX_METRICS]
            ],
            "lastUpdatedTime": _now(),
        }
        if step > first:
            left = (steps - step) * (now - since) / (step - first)
            status["estimatedRemainingSeconds"] = round(left)
        self._poster.post("status", {"trainerStatus": status})

    def close(self) -> None:
        """Send the last state, for a limited time."""
        self._poster.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pod:
    name: str
    namespace: str
    uid: str


class PodEvents:
    """Events on the pod of this process."""

    def __init__(self, poster: "_Poster", pod: _Pod) -> None:
        self._poster = poster
        self._pod = pod
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    @classmethod
    def from_environment(
        cls,
    ) -> Self | None:
        """Return None on ranks other than 0, and where the pod has no identity or no token."""
        name, namespace, uid = (os.environ.get(variable, "") for variable in POD_VARIABLES)
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        token = SERVICE_ACCOUNT / "token"
        if not (name and namespace and uid and host and token.exists() and is_first_rank()):
            return None
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        address = f"[{host}]" if ":" in host else host
        return cls(
            _Poster(
                "Events",
                f"https://{address}:{port}/api/v1/namespaces/{namespace}/events",
                token=token,
                authority=SERVICE_ACCOUNT / "ca.crt",
                interval_seconds=_EVENT_SECONDS,
            ),
            _Pod(name=name, namespace=namespace, uid=uid),
        )

    def record(self, reason: Reason, message: str, *, is_warning: bool = False) -> None:
        """Record an Event; of those of one reason within a minute the last is sent, with a count.

        ``message`` therefore states what happened so far.
        """
        now = _now()
        self._counts[reason] = self._counts.get(reason, 0) + 1
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self._pod.name}-", "namespace": self._pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": self._pod.name,
                "namespace": self._pod.namespace,
                "uid": self._pod.uid,
            },
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "type": "Warning" if is_warning else "Normal",
            "count": self._counts[reason],
            "firstTimestamp": self._first.setdefault(reason, now),
            "lastTimestamp": now,
            "source": {"component": "clipmill"},
            "reportingComponent": "clipmill.io/trainer",
            "reportingInstance": self._pod.name,
        }
        self._poster.post(reason, event)

    def close(self) -> None:
        """Send what is left, for a limited time."""
        self._poster.close()


class _Poster:
    """Thread that posts JSON with a token, which Kubernetes renews in its file."""

    def __init__(
        self, what: str, url: str, *, token: Path, authority: Path, interval_seconds: float
    ) -> None:
        self._what = what
        self._url = url
        self._token = token
        self._authority = authority
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._bodies: dict[str, dict[str, Any]] = {}
        self._has_news = threading.Event()
        self._is_closing = threading.Event()
        self._was_said = False
        self._thread = threading.Thread(target=self._run, name=f"post {what}", daemon=True)
        self._thread.start()

    def post(self, key: str, body: dict[str, Any]) -> None:
        """Send ``body`` soon, instead of one with the same key that still waits."""
        with self._lock:
            self._bodies[key] = body
        self._has_news.set()

    def close(self) -> None:
        self._is_closing.set()
        self._has_news.set()
        self._thread.join(_TIMEOUT_SECONDS + 1)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            self._has_news.wait()
            self._send_all()
            self._is_closing.wait(self._interval_seconds)
        self._send_all()

    def _send_all(self) -> None:
        self._has_news.clear()
        with self._lock:
            bodies, self._bodies = self._bodies, {}
        for body in bodies.values():
            try:
                self._send(body)
                self._was_said = False
            except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                if not self._was_said:
                    _logger.warning("%s can't be reported now: %s", self._what, error)
                    self._was_said = True

    def _send(self, body: dict[str, Any]) -> None:
        context = ssl.create_default_context(cafile=str(self._authority))
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}"}
        with httpx.Client(verify=context, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            client.post(self._url, json=body, headers=headers).raise_for_status()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
