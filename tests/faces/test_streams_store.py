"""The store of torch over a stream: its client and server know nothing of the ring."""

from __future__ import annotations

from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from tests.cluster import Cluster
from tests.ownports import free_ports
from tests.ringkit import HASTY, Call
from tests.test_ring_streams import table

WITHIN = timedelta(seconds=60)


def test_a_store_on_another_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys are set, added to, and waited for, while the links are made anew."""
    port, listen = free_ports(2)
    settings = HASTY + table("n1", port, listen)
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=settings) as cluster:
        generation = cluster.start().wait_ready()
        server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        n0, n2, third = (TCPStore("127.0.0.1", listen, timeout=WITHIN) for _ in range(3))
        n0.set("large", "x" * 5_000_000)
        assert n2.get("large") == b"x" * 5_000_000
        waiting = Call(lambda: third.get("late"))
        for _ in range(2):
            cluster[1].rejoin()
            assert n0.add("count", 1) == n2.add("count", 1) - 1
            generation = cluster.wait_ready(generation)
        server.set("late", "here")
        assert waiting.result() == b"here"
        assert server.add("count", 0) == 4
