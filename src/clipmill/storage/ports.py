"""Free ports on this machine, in the pairs that SeaweedFS's servers need."""

import random
import socket
from typing import Final

from clipmill.errors import ServerError

HOST: Final = "127.0.0.1"
# Each server of SeaweedFS also answers gRPC, at its port plus this.
_GRPC_OFFSET: Final = 10_000
# These and their gRPC twins lie below the ports that Linux gives to outgoing connections.
_PORTS: Final = range(11_000, 21_000)
_MAX_PORT: Final = 65_535


def free_ports(num_ports: int, first: int | None = None) -> list[int]:
    """Return ports that are free together with their gRPC twins, ``first`` first if given.

    Raises ServerError where ``first`` can't be used.
    """
    if first is not None and not _is_free(first):
        raise ServerError(
            f"port {first}, or {first + _GRPC_OFFSET} which goes with it, can't be used",
            expected=f"a free port from 1024 to {_MAX_PORT - _GRPC_OFFSET}",
            action="stop the server that uses it, or give another port, or none to have one found",
        )
    ports = [] if first is None else [first]
    # A random order, so that servers which start at the same moment seldom want the same ones.
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(ports) == num_ports:
            break
        if with_twins([port]).isdisjoint(with_twins(ports)) and _is_free(port):
            ports.append(port)
    return ports


def with_twins(ports: list[int]) -> set[int]:
    """Return the ports and those where the same servers answer gRPC."""
    return {number for port in ports for number in (port, port + _GRPC_OFFSET)}


def _is_free(port: int) -> bool:
    if not 0 < port <= _MAX_PORT - _GRPC_OFFSET:
        return False
    for number in with_twins([port]):
        with socket.socket() as listener:
            # As servers do: a connection that's closing down doesn't hold a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, number))
            except OSError:
                return False
    return True
