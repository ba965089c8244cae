"""A link that stops in the middle of a call, and a daemon that dies just then.

A proxy holds the call where it is, so that the fault comes neither before nor after it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import (
    BOUNDED,
    PATIENT,
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
    with proxied_cluster(tmp_path_factory.mktemp("ring"), PATIENT) as both:
        yield both


@pytest.fixture(scope="module")
def watchful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Proxy]]:
    """Give the same with the usual settings, under which silence is noticed."""
    with proxied_cluster(tmp_path_factory.mktemp("ring"), BOUNDED) as both:
        yield both


@contextmanager
def proxied_cluster(directory: Path, settings: str) -> Iterator[tuple[Cluster, Proxy]]:
    """Give three daemons that are ready, and the proxy."""
    ports = free_ports(3)
    with (
        Proxy(ports[2]) as proxy,
        Cluster(directory, 3, settings=settings, ports=ports, dial={"n2": proxy.port}) as cluster,
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
        assert proxy.stalled.wait(120)
        assert [call.running for call in calls] == [True] * 3
        cluster[victim].kill()
        proxy.resume()
        cluster[victim].start()
        cluster.wait_ready(beyond=generation)
        for call in calls:
            np.testing.assert_array_equal(call.result(), total(3, LARGE))


def test_killed_while_encoded_chunks_are_on_their_way(proxied: tuple[Cluster, Proxy]) -> None:
    """The second run rounds as the first one would have done: all have the bits of a quiet call."""
    cluster, proxy = proxied
    generation = cluster.wait_ready()
    inputs = [np.random.default_rng(rank).normal(size=LARGE).astype("f4") for rank in range(3)]
    with connected(cluster, "wire") as rings:
        quiet = everywhere(rings, lambda ring: ring.all_reduce(inputs[ring.rank], wire="int8"))
        wanted = quiet[0].tobytes()
        proxy.stall_after(LARGE // 4)  # bytes: a fifth of what this link carries for it
        calls = begin(rings, lambda ring: ring.all_reduce(inputs[ring.rank], wire="int8"))
        assert proxy.stalled.wait(120)
        assert [call.running for call in calls] == [True] * 3
        cluster[1].kill()
        proxy.resume()
        cluster[1].start()
        cluster.wait_ready(beyond=generation)
        assert [call.result().tobytes() for call in calls] == [wanted] * 3
        assert [result.tobytes() for result in quiet] == [wanted] * 3


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
        assert proxy.stalled.wait(120)
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


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_daemon_is_told_on_every_rank(proxied: tuple[Cluster, Proxy], victim: int) -> None:
    """With ``on_loss="fail"`` the open call ends with PeerLost everywhere; the next is good."""
    node = proxied[0][victim]
    check_loss_is_told(*proxied, victim, node.kill, node.start)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_paused_daemon_is_told_on_every_rank(
    watchful: tuple[Cluster, Proxy], victim: int
) -> None:
    """The same, once it has been silent for too long."""
    node = watchful[0][victim]
    pause, resume = partial(node.signal, signal.SIGSTOP), partial(node.signal, signal.SIGCONT)
    check_loss_is_told(*watchful, victim, pause, resume)


def check_loss_is_told(
    cluster: Cluster,
    proxy: Proxy,
    victim: int,
    strike: Callable[[], None],
    mend: Callable[[], None],
) -> None:
    """Strike *victim* in the midst of a call, and mend it when all ranks have heard of that."""
    generation = cluster.wait_ready()
    with connected(cluster, f"told {victim}", on_loss="fail") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        proxy.stall_after(LARGE)
        calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, LARGE)))
        assert proxy.stalled.wait(120)
        strike()
        proxy.resume()
        found = [call.outcome() for call in calls]
        assert [type(error) for error in found] == [ringd.PeerLost] * 3
        for rank, error in enumerate(found):
            assert (f"n{victim}" in str(error)) or rank == victim
        assert "this machine's daemon" in str(found[victim])
        mend()
        cluster.wait_ready(beyond=generation)
        for result in everywhere(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 9))):
            np.testing.assert_array_equal(result, total(3, 9))
