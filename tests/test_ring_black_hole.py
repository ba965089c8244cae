"""A way that loses large packets: said, with what to look at, and without a flood of lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringd
from ringd.cli.picture import render
from ringd.host.tcp import large_ping
from ringd.ring.blackhole import LARGE, LITTLE, BlackHole
from tests.cluster import Cluster, Node, wait_until
from tests.proxy import Proxy
from tests.ringkit import begin, connected, everywhere

HASTY = """
[ops]
timeout = "60s"
[join]
backoff_first = "10ms"
backoff_max = "20ms"
heartbeat = "50ms"
lost_after = "200ms"
"""

HINT = f"check the MTU on the way: {large_ping('')}"


def test_a_black_hole_is_named(place: Path) -> None:
    """A ring that forms and breaks with each tensor says why, in the log and to the program.

    None is told of its daemon.
    """
    with Cluster(place, 2) as cluster, Proxy(cluster[1].port, hole=8192) as proxy:
        cluster.write_config(HASTY, {"n1": proxy.port})
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            x = np.ones(4_000_000, np.float32)
            calls = begin(rings, lambda ring: ring.all_reduce(x, timeout=4.0))

            def named(node: Node) -> bool:
                return any(HINT + "127.0.0.1" in str(e.get("reason")) for e in node.log())

            wait_until(lambda: named(cluster[0]), "the hint in the log of the side that sends")
            status = wait_until(cluster[0].status, "an answer")
            assert "the way to n1: perhaps small packets pass" in render(status)
            assert cluster[1].status()["black_hole"] is None
            outcomes = [call.outcome() for call in calls]
            for error in outcomes:
                assert isinstance(error, ringd.DeadlineExceeded)
                assert "is there, but does not answer" not in str(error)
            assert HINT + "127.0.0.1" in str(outcomes[0])
            proxy.fill()
            everywhere(rings, lambda ring: ring.all_reduce(x, timeout=30.0))
            assert cluster[0].status()["black_hole"] is None


LOSS: dict[str, Any] = {
    "instance": 7,
    "address": "mini:1 (10.0.0.2:1)",
    "explained": False,
    "sent": 9000,
    "undelivered": 6000,
    "now": 100.0,
    "lost_after": 3.0,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}], False),
        ([{}, {"undelivered": LARGE}], True),
        ([{}, {"now": 130.0}], True),
        ([{}, {"now": 131.0}], False),  # two cables that were pulled
        ([{}, {"now": 131.0}, {"now": 140.0}], True),
        ([{}, {"instance": 8}], False),  # the neighbour was restarted
        ([{}, {"sent": LITTLE + 6000}], False),  # much got through
        ([{}, {"sent": 500, "undelivered": 0}, {}], False),
        ([{"undelivered": LARGE - 1}, {"undelivered": LARGE - 1}], False),
        ([{"explained": True}, {"explained": True}], False),  # a protocol error
    ],
)
def test_what_points_to_a_black_hole(changes: list[dict[str, Any]], *, expected: bool) -> None:
    """Soon one after the other little was delivered to one process, and something large was not."""
    hole = BlackHole()
    for change in changes:
        hint = hole.lost(**(LOSS | change))
    assert (bool(hint), hole.hint) == (expected, hint)
    if expected:
        assert hint.startswith("perhaps ")
        assert hint.endswith(HINT + "10.0.0.2")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.2:5680", "10.0.0.2"),
        ("[fd00::1]:5680", "fd00::1"),
        ("mini:5680 ([fd00::1]:5680)", "fd00::1"),
        ("mini:5680", "ADDRESS"),
    ],
)
def test_the_host_to_ping(address: str, host: str) -> None:
    """The command names the address that the link ran over."""
    hole = BlackHole()
    for _ in range(2):
        hint = hole.lost(**(LOSS | {"address": address}))
    assert hint.endswith(" " + host)
