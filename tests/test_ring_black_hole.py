"""A way that loses large packets: said, with what to look at, and without a flood of lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringd
from ringd.daemon.blackhole import LARGE, LITTLE, BlackHole
from ringd.host.tcp import large_ping
from tests.cluster import Cluster, Node, wait_until
from tests.proxy import Proxy
from tests.ringkit import begin, connected

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
    """A ring that forms and breaks with each tensor says why; no program is told of its daemon."""
    with Cluster(place, 2) as cluster, Proxy(cluster[1].port, hole=8192) as proxy:
        cluster.write_config(HASTY, {"n1": proxy.port})
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            x = np.ones(4_000_000, np.float32)
            calls = begin(rings, lambda ring: ring.all_reduce(x, timeout=1.0))

            def named(node: Node) -> bool:
                return any(HINT + "127.0.0.1" in str(e.get("reason")) for e in node.log())

            for node in cluster.nodes:
                wait_until(lambda node=node: named(node), f"the hint in the log of {node.name}")
            for call in calls:
                error = call.outcome()
                assert isinstance(error, ringd.DeadlineExceeded)
                assert "is there, but does not answer" not in str(error)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([(7, 9000, 6000)], False),
        ([(7, 9000, 6000), (7, 9000, LARGE)], True),
        ([(7, 9000, 6000), (8, 9000, 6000)], False),  # the neighbour was restarted
        ([(7, 9000, 6000), (7, LITTLE + 6000, 6000)], False),  # much got through
        ([(7, 9000, 6000), (7, 500, 0), (7, 9000, 6000)], False),
        ([(7, 500, LARGE - 1), (7, 500, LARGE - 1)], False),
    ],
)
def test_what_points_to_a_black_hole(losses: list[tuple[int, int, int]], *, expected: bool) -> None:
    """Twice in a row little was delivered to one process, and something large was not."""
    hole = BlackHole()
    for instance, sent, undelivered in losses:
        hint = hole.lost_right(instance, "mini:1 (10.0.0.2:1)", sent=sent, undelivered=undelivered)
    assert bool(hint) == expected
    if expected:
        assert hint.endswith(HINT + "10.0.0.2")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"silent": False}, False),
        ({"heard": LITTLE}, False),
        ({"held": 6.0}, False),  # a machine that sleeps now and then
        ({"instance": 8}, False),
    ],
)
def test_what_it_looks_like_from_the_other_end(change: dict[str, Any], *, expected: bool) -> None:
    """Twice in a row one process fell silent as soon as it was linked."""
    loss: dict[str, Any] = {"instance": 7, "address": "10.0.0.2:1", "heard": 900, "silent": True}
    loss |= {"held": 3.1, "lost_after": 3.0}
    hole = BlackHole()
    assert hole.lost_left(**loss) == ""
    assert bool(hole.lost_left(**loss | change)) == expected


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
        hint = hole.lost_right(7, address, sent=9000, undelivered=9000)
    assert hint.endswith(" " + host)
