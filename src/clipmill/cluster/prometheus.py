"""An endpoint's error ratio, asked of Prometheus."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request

from clipmill.cluster.monitoring.expressions import SERVED_REQUESTS
from clipmill.cluster.names import TRACK_LABEL
from clipmill.cluster.serving import EndpointConfig
from clipmill.errors import ClusterError

_TIMEOUT_SECONDS = 10


class Prometheus:
    """A server at a base URL, such as ``http://prometheus-operated.monitoring:9090``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def error_ratio(self, endpoint: EndpointConfig, track: str) -> float:
        """Share of the track's requests of the last two minutes that got a 5xx; 0 without any.

        Raises:
            ClusterError: the server can't be asked.
        """
        # The PodMonitor turns the pods' label into this one.
        label = TRACK_LABEL.replace(".", "_").replace("/", "_")
        chosen = f'model="{endpoint.name}",namespace="{endpoint.namespace}",{label}="{track}"'
        failed = f'sum(rate({SERVED_REQUESTS}{{{chosen},code=~"5.."}}[2m]))'
        value = self.value(f"{failed} / sum(rate({SERVED_REQUESTS}{{{chosen}}}[2m]))")
        return 0.0 if value is None or math.isnan(value) else value

    def value(self, query: str) -> float | None:
        """The one value of an instant query, or None where there is none."""
        address = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                found = json.load(response)["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise ClusterError(
                f"Prometheus at {self._url} can't be asked: {error}",
                expected="a Prometheus that answers /api/v1/query",
                action="give its address with --prometheus",
            ) from error
        return float(found[0]["value"][1]) if found else None
