"""TCP ports: the default one, one that is free, and the check that one is."""

import socket
from typing import Final

from clipmill.errors import ServerError

DEFAULT_PORT: Final = 8080
"""HTTP port of ``clipmill serve``, and of the endpoints that the demo leaves up."""


def free_port(host: str) -> int:
    """A port of ``host`` that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def require_free(host: str, port: int) -> None:
    """Raise ServerError if ``port`` can't be listened on: servers find out only after loading."""
    with socket.socket() as probe:
        # As servers do: a connection that's closing down doesn't hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            from clipmill.background import listener

            process = listener(port)
            raise ServerError(
                f"{host}:{port} can't be listened on: {error}"
                + (f"; {process} listens there" if process else ""),
                expected="an address of this machine and a free port",
                action="stop what listens there, or choose another port, e.g. --port 8081",
            ) from error
