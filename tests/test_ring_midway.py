"""A link that stops in the middle of a call, and a daemon that dies just then.

A proxy holds the call where it is, so that the fault comes neither before nor after it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest

import ringd
from ringd.host.ports import free_ports
from tests.cluster import Cluster, wait_until
from tests.proxy import Proxy
from tests.ringkit import (
    BOUNDED,
    begin,
    connected,
    everywhere,
    lend,
    tensor,
    total,
    wait_state,
)

LARGE = 4_000_000
"""Elements of float32; more than the sockets on the way hold."""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Proxy]]:
    """Give three daemons, with a proxy on the way from rank 1 to rank 2."""
    ports = free_ports(3)
    with (
        Proxy(ports[2]) as proxy,
        Cluster(
            tmp_path_factory.mktemp("ring"),
            3,
            settings=BOUNDED,
            ports=ports,
            dial={"n2": proxy.port},
        ) as cluster,
    ):
        cluster.start().wait_ready()
        yield cluster, proxy


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("empty", [False, True])
def test_killed_in_mid_transfer(
    proxied: tuple[Cluster, Proxy], *, empty: bool, victim: int
) -> None:
    """A call that was half through is run again, from inputs that are still intact."""
    cluster, proxy = proxied
    group = f"mid {empty} {victim}"
    generation = cluster.wait_ready()
    with connected(cluster, group) as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxy.stall_after(LARGE)  # bytes: a fifth of what this link carries for it
        calls = begin(
            rings, lambda ring: ring.all_reduce(lend(ring, tensor(ring.rank, LARGE), empty=empty))
        )
        assert proxy.stalled.wait(30)
        assert [call.running for call in calls] == [True] * 3
        cluster[victim].kill()
        proxy.resume()
        cluster[victim].start()
        cluster.wait_ready(beyond=generation)
        for call in calls:
            np.testing.assert_array_equal(call.result(), total(3, LARGE))


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_when_some_have_finished(proxied: tuple[Cluster, Proxy], victim: int) -> None:
    """Members that have returned help the one that missed the end, whatever they did since."""
    cluster, proxy = proxied
    group = f"end {victim}"
    count = 900_000
    generation = cluster.wait_ready()
    with connected(cluster, group) as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxy.stall_after(count * 4 * 4 // 3 - 200_000)  # all that this link carries but the end
        works = [ring.all_reduce_async(tensor(ring.rank, count)) for ring in rings]
        for work in works[:2]:
            result = work.wait()
            np.testing.assert_array_equal(result, total(3, count))
            result[:] = np.nan  # theirs to do with as they like
        assert not works[2].done()
        cluster[victim].kill()
        proxy.resume()
        cluster[victim].start()
        cluster.wait_ready(beyond=generation)
        np.testing.assert_array_equal(works[2].wait(), total(3, count))
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9, 1))):
            np.testing.assert_array_equal(result, total(3, 9, 1))


def test_frames_of_an_old_generation(proxied: tuple[Cluster, Proxy]) -> None:
    """Chunks that arrive after their ring broke are counted, and harm nothing."""
    cluster, proxy = proxied
    generation = cluster.wait_ready()
    with connected(cluster, "stale") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxy.stall_after(LARGE)
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, LARGE)))
        assert proxy.stalled.wait(30)
        cluster[0].kill()  # its neighbour notices at once; chunks are on their way there
        wait_state(cluster[2], "forming")
        proxy.resume()

        def dropped() -> int:
            counters = (cluster[2].status() or {"counters": {}})["counters"]
            return sum(counters.get("dropped_frames", {}).values())

        wait_until(dropped, "frames counted as of another generation")
        cluster[0].start()
        for call in calls:
            np.testing.assert_array_equal(call.result(), total(3, LARGE))
        assert cluster.wait_ready(beyond=generation) > generation


@pytest.mark.parametrize("how", ["killed", "paused"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_loss_is_told_on_every_rank(proxied: tuple[Cluster, Proxy], victim: int, how: str) -> None:
    """With ``on_loss="fail"`` the open call ends with PeerLost everywhere; the next is good."""
    cluster, proxy = proxied
    group = f"told {victim} {how}"
    generation = cluster.wait_ready()
    with connected(cluster, group, on_loss="fail") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxy.stall_after(LARGE)
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, LARGE)))
        assert proxy.stalled.wait(30)
        if how == "killed":
            cluster[victim].kill()
        else:
            cluster[victim].signal(signal.SIGSTOP)
        proxy.resume()
        found = [call.outcome() for call in calls]  # before the daemon is back
        assert [type(error) for error in found] == [ringd.PeerLost] * 3
        for rank, error in enumerate(found):
            assert (f"n{victim}" in str(error)) or rank == victim
        assert "this machine's daemon" in str(found[victim])
        if how == "killed":
            cluster[victim].start()
        else:
            cluster[victim].signal(signal.SIGCONT)
        cluster.wait_ready(beyond=generation)
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
            np.testing.assert_array_equal(result, total(3, 9))
