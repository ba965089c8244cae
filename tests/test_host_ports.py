"""Ports for daemons that are started for a while."""

from __future__ import annotations

import socket

import pytest

from ringd.host import ports


def test_ports_are_free_and_differ():
    """Each can be listened on, all at the same time."""
    found = ports.free_ports(20)
    socks = [socket.create_server(("127.0.0.1", port)) for port in found]
    for sock in socks:
        sock.close()
    assert len(set(found)) == 20


def test_no_outgoing_connection_takes_one():
    """A daemon that starts again finds its port free: Linux gives those from 32768 on."""
    assert max(ports.free_ports(50)) < 32768


def test_where_somebody_listens_is_not_free(monkeypatch):
    """And where too few are left, the error says so."""
    with socket.create_server(("127.0.0.1", ports.free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_CANDIDATES", range(port, port + 1))
        with pytest.raises(OSError, match="1 free ports are needed, and there are 0"):
            ports.free_ports(1)
