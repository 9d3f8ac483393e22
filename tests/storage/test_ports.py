"""Ports that are free in pairs."""

import socket

import pytest

from clipmill.errors import ServerError
from clipmill.storage import ports
from clipmill.storage.ports import free_ports, with_twins


def test_no_port_is_another_ones_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = free_ports(1)
    twin = first + 10_000
    candidates = range(first - 3, first + 4)
    monkeypatch.setattr(ports, "_PORTS", (*candidates, *(port + 10_000 for port in candidates)))
    found = free_ports(14, first)
    assert found[0] == first
    assert twin not in found
    assert len(with_twins(found)) == 2 * len(found)


@pytest.mark.parametrize("offset", [0, 10_000])
def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    taken, free = free_ports(2)
    monkeypatch.setattr(ports, "_PORTS", (taken, free))
    with socket.create_server(("127.0.0.1", taken + offset)):
        assert free_ports(2) == [free]
        with pytest.raises(ServerError, match=f"port {taken},"):
            free_ports(2, taken)
