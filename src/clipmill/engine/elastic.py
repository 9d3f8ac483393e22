"""``torchrun`` with clipmill's exit codes: ``python -m clipmill.engine.elastic``, same arguments.

torchrun restarts the processes of a node after any failure. Here the exit code decides:

- 2, a user's mistake, which no restart fixes: none, and the node exits with 2 as well;
- 75, stopped by SIGTERM with its state saved, as another node ends: a restart that doesn't count;
- another: a restart of ``--max-restarts``, all of which are available again after ten minutes.

A node exits with 75 as well when the first node, which holds the rendezvous, is gone.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from torch.distributed import run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    dynamic_rendezvous,
)
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
from torch.distributed.launcher import api

from clipmill.errors import EXIT_PREEMPTED, EXIT_USER_ERROR

RESET_SECONDS: Final = 600
"""Time after which the processes count as recovered from earlier failures, seconds."""


class ElasticAgent(LocalElasticAgent):
    """torchrun's agent of a node, which restarts by exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started = time.monotonic()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._started = time.monotonic()
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            codes = {failure.exitcode for failure in result.failures.values()}
            self._remaining_restarts = remaining_restarts(
                codes,
                self._remaining_restarts,
                worker_group.spec.max_restarts,
                seconds=time.monotonic() - self._started,
            )
        return result


def remaining_restarts(codes: set[int], remaining: int, most: int, *, seconds: float) -> int:
    """Return how many restarts are left, the one after this failure included.

    ``codes`` are the exit codes of the processes that failed after ``seconds``.
    """
    if EXIT_USER_ERROR in codes:
        return 0
    if seconds > RESET_SECONDS:
        return most
    return remaining + 1 if codes == {EXIT_PREEMPTED} else remaining


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments, and return the node's exit code."""
    # At the end it warns that the first node, which may end earlier, holds no rendezvous any more.
    logging.getLogger(dynamic_rendezvous.__name__).setLevel(logging.ERROR)
    # The launcher has no option for its agent.
    api.LocalElasticAgent = ElasticAgent  # type: ignore[attr-defined]
    options = run.parse_args(list(arguments))  # type: ignore[no-untyped-call]
    settings = _parse_rendezvous_config(options.rdzv_conf)
    try:
        wait_for_first_node(options.rdzv_endpoint, float(settings.get("join_timeout", 600)))
        run.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return EXIT_USER_ERROR if EXIT_USER_ERROR in codes else 1
    except (RendezvousConnectionError, RendezvousClosedError) as error:
        sys.stderr.write(f"this node starts again, since the first node is gone: {error}\n")
        return EXIT_PREEMPTED
    except (RendezvousError, TimeoutError) as error:
        sys.stderr.write(f"the nodes didn't meet: {error}\n")
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def wait_for_first_node(endpoint: str, timeout_seconds: float) -> None:
    """Return when the first node listens at ``HOST:PORT``, at once on that node itself.

    torchrun would give up after a minute, in which the first node may still wait for a machine.

    Raises:
        TimeoutError: it doesn't listen in time.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or host == "localhost" or os.environ.get("PET_NODE_RANK") == "0":
        return
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise TimeoutError(f"nothing listened at {endpoint} within {timeout_seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
