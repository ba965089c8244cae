"""A link over a second address: said, and left again for the preferred one, at a quiet moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Node, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import BOUNDED, begin, connected, everywhere, wait_counts

SOON = '[join]\nprefer_after = "100ms"\n'


def write(cluster: Cluster, addresses: list[int], settings: str) -> None:
    """Have n1 reached at these ports, preferred first."""
    cluster.write_config(BOUNDED + settings)
    own = f'addresses = ["127.0.0.1:{cluster[1].port}"]'
    several = ", ".join(f'"127.0.0.1:{port}"' for port in addresses)
    text = cluster.config.read_text()
    assert text.count(own) == 1
    cluster.config.write_text(text.replace(own, f"addresses = [{several}]"))


@contextmanager
def fallen_back(place: Path, settings: str = SOON) -> Iterator[tuple[Cluster, int]]:
    """Give two daemons, linked over the second address of n1, and its first one's dead port."""
    (preferred,) = free_ports(1)
    with Cluster(place, 2) as cluster:
        write(cluster, [preferred, cluster[1].port], settings)
        cluster.start().wait_ready()
        yield cluster, preferred


@contextmanager
def opened(cluster: Cluster, port: int) -> Iterator[None]:
    """Have n1 reached at *port* too."""
    with Proxy(cluster[1].port, listen=port):
        yield


def right(node: Node) -> dict[str, Any]:
    """Return what the status says of the right link; nothing while there is none."""
    link: dict[str, Any] = (node.status() or {"links": {}})["links"].get("right", {})
    return link


def events(node: Node, event: str) -> list[dict]:
    """Return the lines of the log about *event*."""
    return [line for line in node.log() if line["event"] == event]


def test_it_is_said(place: Path) -> None:
    """Status and log say that a link does not run over the preferred address, and why."""
    with fallen_back(place, '[join]\nprefer_after = "off"\n') as (cluster, preferred):
        link = right(cluster[0])
        assert (link["address"], link["preferred"]) == (f"127.0.0.1:{cluster[1].port}", False)
        assert link["preferred_error"].startswith(f"127.0.0.1:{preferred}: connection refused")
        left = (cluster[1].status() or {})["links"]["left"]
        assert (left["preferred"], left["preferred_error"]) == (False, None)
        (line,) = events(cluster[0], "link does not run over the preferred address")
        assert line["address"] == f"127.0.0.1:{cluster[1].port}"
        assert f"127.0.0.1:{preferred}: connection refused" in line["reason"]
        assert right(cluster[1])["preferred"] is True
        assert right(cluster[1])["preferred_error"] is None
        with opened(cluster, preferred):  # switched on while it is needed
            write(cluster, [preferred, cluster[1].port], SOON)
            cluster[0].signal(signal.SIGHUP)
            wait_until(lambda: right(cluster[0]).get("preferred"), "the preferred address")


def test_the_link_moves_back(place: Path) -> None:
    """Once the preferred address has been reachable for a while, the link is there again."""
    with fallen_back(place) as (cluster, preferred), connected(cluster) as rings:
        generation = cluster.wait_ready()
        with opened(cluster, preferred):
            wait_until(lambda: right(cluster[0]).get("preferred"), "the preferred address")
            assert cluster.wait_ready(generation) == generation + 1
            assert right(cluster[0])["address"] == f"127.0.0.1:{preferred}"
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]
            (line,) = events(cluster[0], "link moves to a preferred address")
            assert line["address"] == f"127.0.0.1:{preferred}"
            assert cluster.wait_ready() == generation + 1


def test_it_waits_for_open_calls(place: Path) -> None:
    """While a call is open the link stays, and says what it waits for; then it moves."""
    with fallen_back(place) as (cluster, preferred), connected(cluster) as rings:
        (call,) = begin(rings[:1], lambda ring: ring.all_reduce(1).item())
        wait_counts(cluster[0], [1, 0])
        generation = cluster.wait_ready()
        with opened(cluster, preferred):
            wait_until(lambda: right(cluster[0])["preferred_error"] is None, "reachable")
            wait_until(lambda: events(cluster[0], "link waits for open calls"), "its time")
            assert cluster.wait_ready() == generation
            assert rings[1].all_reduce(2).item() == call.result() == 3
            wait_until(lambda: right(cluster[0]).get("preferred"), "the preferred address")


def test_nobody_is_told_of_a_loss(place: Path) -> None:
    """While a program is here that wants to hear of each loss, the link stays."""
    with fallen_back(place) as (cluster, preferred), opened(cluster, preferred):
        with connected(cluster, on_loss="fail") as rings:
            wait_until(
                lambda: (
                    right(cluster[0]).get("preferred")
                    or events(cluster[0], "link waits for open calls")
                ),
                "its time",
            )
            generation = cluster.wait_ready()
            for _ in range(50):
                assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]
            assert cluster.wait_ready() == generation
        wait_until(lambda: right(cluster[0]).get("preferred"), "the preferred address")


@pytest.mark.parametrize("answers", ["nobody", "a stranger"])
def test_it_stays_where_it_is(place: Path, answers: str) -> None:
    """As long as the preferred address does not lead to the neighbour, nothing happens."""
    with fallen_back(place) as (cluster, preferred):
        generation = cluster.wait_ready()
        if answers == "nobody":
            wait_until(lambda: right(cluster[0])["probes"] > 5, "probes")
        else:
            with Proxy(cluster[0].port, listen=preferred):
                wait_until(
                    lambda: "reached 'n0'" in str(right(cluster[0])["preferred_error"]),
                    "a stranger",
                )
                wait_until(lambda: right(cluster[0])["probes"] > 5, "probes")
        assert right(cluster[0])["preferred"] is False
        assert cluster.wait_ready() == generation


def test_an_address_that_does_not_hold(place: Path) -> None:
    """An address that fails again and again under the link is taken more and more rarely."""
    with fallen_back(place) as (cluster, preferred), connected(cluster) as rings:
        generation = cluster.wait_ready()
        for _ in range(3):
            with opened(cluster, preferred):
                wait_until(lambda: right(cluster[0]).get("preferred"), "the preferred address")
            generation = cluster.wait_ready(generation)
            wait_until(lambda: right(cluster[0]).get("preferred") is False, "the other one")
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [2, 2]
        waits = [e["after"] for e in events(cluster[0], "link moves to a preferred address")]
        assert waits == [0.1, 0.2, 0.4]
