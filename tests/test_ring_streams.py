"""Connections that go through real daemons, and links that break under them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from ringd.host.ports import free_ports
from tests.cluster import PATIENCE, Cluster, wait_until
from tests.proxy import Proxy
from tests.ringkit import HASTY, Call, connected
from tests.streamkit import Server, ask, connect, digest, echo, hear, say

MIB = 1 << 20


def table(to: str, port: int, listen: int | None = None, sources: list[str] | None = None) -> str:
    """Return a table of the config."""
    text = f'[[streams]]\nto = "{to}:{port}"\n'
    text += f"listen = {listen}\n" if listen else ""
    return text + (f"from = {sources}\n" if sources else "")


@contextmanager
def ring(
    directory: Path, size: int, port: int, *, to: str = "n1", settings: str = HASTY, **options
) -> Iterator[tuple[Cluster, int]]:
    """Give a ring whose n0 listens for *port* on *to*, and where."""
    (listen,) = free_ports(1)
    text = settings + table(to, port, listen, ["n0"])
    with Cluster(directory, size, settings=text, **options) as cluster:
        cluster.start().wait_ready()
        yield cluster, listen


def exchange(size: int):
    """A server's part of two speeches at once, the other one's digest is kept."""
    heard: list[str] = []

    def serve(connection: socket.socket) -> None:
        saying = Call(lambda: say(connection, 2, size))
        heard.append(hear(connection))
        saying.result()

    return serve, heard


@pytest.mark.parametrize(("size", "to"), [(2, "n1"), (5, "n2")])
def test_bytes_both_ways_at_once(tmp_path, size, to):
    """All of them arrive, to a neighbour and to one further on; each side ends on its own."""
    serve, heard = exchange(64 * MIB)
    with Server(serve) as server, ring(tmp_path, size, server.port, to=to) as (cluster, port):
        with connect(port) as client:
            saying = Call(lambda: say(client, 1, 64 * MIB))
            assert hear(client) == digest(2, 64 * MIB)
            saying.result()
        wait_until(lambda: heard, "the other direction")
        assert heard == [digest(1, 64 * MIB)]
        wait_until(lambda: not any(node.status()["streams"]["open"] for node in cluster.nodes))
