"""Two machines under one member's name: the ring that stands is not disturbed, whoever it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster import Cluster, Node, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import BOUNDED, connected, everywhere

HAMMERING = (
    BOUNDED
    + """
[join]
backoff_first = "5ms"
backoff_max = "20ms"
"""
)


@contextmanager
def copied(cluster: Cluster, rank: int, *, dial: dict[str, int] | None = None) -> Iterator[Node]:
    """Give the daemon of another machine, made of a copy of the disk of member *rank*."""
    original = cluster[rank]
    ports = [node.port for node in cluster.nodes]
    addresses = {node.name: node.port for node in cluster.nodes} | (dial or {})
    (ports[rank],) = free_ports(1)
    directory = cluster.directory / "copy"
    directory.mkdir()
    with Cluster(directory, len(ports), settings=HAMMERING, ports=ports, dial=addresses) as machine:
        shutil.copy(cluster.directory / "ring.key", directory / "ring.key")
        if original.state_dir.exists():
            shutil.copytree(original.state_dir, machine[rank].state_dir)
        yield machine[rank]


def written(cluster: Cluster) -> list[int]:
    """Return when each member wrote its state last."""
    return [max(f.stat().st_mtime_ns for f in n.state_dir.iterdir()) for n in cluster.nodes]


def refusals(node: Node) -> int:
    """Return how many namesakes *node* has turned away."""
    return (node.status() or {"counters": {"refusals": {}}})["counters"]["refusals"].get(
        "namesake", 0
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_ring_that_stands(place: Path, size: int) -> None:
    """A namesake that knocks and dials without end is turned away, and told; nothing is lost."""
    with Cluster(place, size, settings=HAMMERING) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings, copied(cluster, 1) as namesake:
            generation, before = cluster.wait_ready(), written(cluster)
            neighbour = cluster[2 % size]
            namesake.start()
            wait_until(lambda: refusals(neighbour) > 20, "a namesake turned away")
            for _ in range(20):
                assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [size] * size
            assert cluster.wait_ready() == generation
            assert written(cluster) == before
            status = neighbour.status()
            assert status is not None
            assert {entry["name"] for entry in status["namesakes"]} == {"n1"}
            assert all("holds its place since 2" in e["reason"] for e in status["namesakes"])
            told = namesake.status()
            assert told is not None
            why = told["waiting_for"][neighbour.name]
            assert "another machine bears the name 'n1': 127.0.0.1:" in why
            assert "give the newcomer a name of its own" in why
            for node in (neighbour, namesake):
                lines = [e for e in node.log() if "another machine bears" in str(e.get("reason"))]
                # A ring of two hears of it from both sides, so with two addresses.
                assert 1 <= len(lines) <= 4


def test_the_namesake_was_first(place: Path) -> None:
    """A namesake that came first gives way to the machine at the member's address."""
    with Cluster(place, 3, settings=HAMMERING) as cluster, copied(cluster, 1) as namesake:
        namesake.start()
        cluster.start([0, 2])
        wait_until(lambda: "left" in (cluster[2].status() or {"links": {}})["links"], "a link")
        cluster.start([1]).wait_ready()
        with connected(cluster) as rings:
            assert everywhere(rings, lambda ring: ring.all_reduce(1).item()) == [3] * 3
        wait_until(lambda: refusals(cluster[2]) > 2, "the namesake turned away")
        told = namesake.status()
        assert told is not None
        assert told["state"] == "forming"


def test_a_gap_is_not_for_a_namesake(place: Path) -> None:
    """While the member's own link is cut again and again, a namesake does not take its place."""
    with Cluster(place, 3, settings=HAMMERING) as cluster, Proxy(cluster[2].port) as proxy:
        cluster.write_config(HAMMERING, {"n2": proxy.port})
        generation = cluster.start().wait_ready()
        with copied(cluster, 1) as namesake:
            namesake.start()
            wait_until(lambda: refusals(cluster[2]) > 2, "the namesake turned away")
            for _ in range(10):
                proxy.cut()
                generation = cluster.wait_ready(generation)
            assert (namesake.status() or {})["links"] == {}


@pytest.mark.parametrize("size", [2, 3])
def test_a_restart_behind_a_dead_link(place: Path, size: int) -> None:
    """A member whose old links hang, as nobody was told, is back soon, and no namesake."""
    settings = BOUNDED + '[join]\nlost_after = "10m"\nhandshake_timeout = "500ms"\n'
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(place, size))
        proxies = [stack.enter_context(Proxy(node.port)) for node in cluster.nodes]
        dial = {node.name: proxy.port for node, proxy in zip(cluster.nodes, proxies, strict=True)}
        cluster.write_config(settings, dial)
        generation = cluster.start().wait_ready()
        for rank in (1, 2 % size):  # from n0 to n1, and from n1 on
            proxies[rank].strand()
        cluster[1].restart()
        cluster.wait_ready(generation)
        for node in cluster.nodes:
            status = node.status()
            assert status is not None
            assert status["namesakes"] == []
            assert not [e for e in node.log() if "another machine bears" in str(e.get("reason"))]
