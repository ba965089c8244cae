"""Daemons that are killed and started again under calls: nothing is lost but time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster, wait_until
from tests.ringkit import (
    BOUNDED,
    begin,
    connected,
    everywhere,
    lend,
    op_counts,
    tensor,
    total,
    wait_counts,
    wait_state,
)

COUNTS = {"small": 100, "chunks of a message": 12_000, "segment": 300_000, "empty": 300_000}
"""Elements of float32 for each way that a tensor can take."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons, for tests that leave all of them running."""
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


def operand(ring: ringd.Ring, way: str, seed: int = 0) -> np.ndarray:
    """Return this rank's input, in memory of the kind that *way* says."""
    return lend(ring, tensor(ring.rank, COUNTS[way], seed), empty=way == "empty")


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("way", COUNTS)
def test_killed_before_all_have_called(cluster: Cluster, way: str, victim: int) -> None:
    """What was handed over before the kill needs not be handed over again."""
    group = f"before {way} {victim}"
    generation = cluster.wait_ready()
    with connected(cluster, group) as rings:
        works = [ring.all_reduce_async(operand(ring, way)) for ring in rings[:2]]
        wait_counts(cluster[2], [1, 1, 0], group)
        cluster[victim].restart()
        cluster.wait_ready(beyond=generation)
        works.append(rings[2].all_reduce_async(operand(rings[2], way)))
        for work in works:
            np.testing.assert_array_equal(work.wait(), total(3, COUNTS[way]))


class Stream:
    """Calls of all kinds on each rank, one after the other, until it is told to end."""

    def __init__(self, cluster: Cluster, rings: list[ringd.Ring]) -> None:
        self._cluster = cluster
        self._end = 0
        self.made = [0] * len(rings)
        self._calls = begin(rings, self._run)

    def _run(self, ring: ringd.Ring) -> None:
        step = 0
        while not self._end or step < self._end:
            way = list(COUNTS)[step % len(COUNTS)]
            works = [ring.all_reduce_async(operand(ring, way, step + k)) for k in range(3)]
            for k, work in enumerate(works):
                want = total(len(self.made), COUNTS[way], step + k)
                np.testing.assert_array_equal(work.wait(), want)
            step += 1
            self.made[ring.rank] = step

    def wait_progress(self) -> None:
        """Wait until each rank has got further."""
        before = list(self.made)
        wait_until(
            lambda: (
                not all(call.running for call in self._calls)
                or all(now > then for now, then in zip(self.made, before, strict=True))
            ),
            f"progress of the calls beyond {before}",
        )

    def finish(self) -> None:
        """Let all ranks make the same number of calls, and check that all went well."""
        self._end = max(self.made) + 3
        for call in self._calls:
            call.result()
        assert self.made == [self._end] * len(self.made)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_again_and_again(cluster: Cluster, victim: int) -> None:
    """The same daemon may die many times under a stream of calls; each value is right."""
    with connected(cluster, f"again {victim}") as rings:
        stream = Stream(cluster, rings)
        for _ in range(4):
            stream.wait_progress()
            cluster[victim].restart()
        stream.wait_progress()
        stream.finish()


def test_killed_while_coming_back(cluster: Cluster) -> None:
    """A daemon that dies again before the ring has formed costs nothing more."""
    with connected(cluster, "coming back") as rings:
        stream = Stream(cluster, rings)
        stream.wait_progress()
        for victim in (0, 1, 0, 2, 1):
            cluster[victim].restart()
            wait_until(cluster[victim].status, "an answer")
        stream.wait_progress()
        stream.finish()


def test_all_killed_at_once(cluster: Cluster) -> None:
    """When all daemons die at one moment, the clients carry the calls over to their successors."""
    with connected(cluster, "all") as rings:
        stream = Stream(cluster, rings)
        for _ in range(2):
            stream.wait_progress()
            for node in cluster.nodes:
                node.signal(signal.SIGKILL)
            for node in cluster.nodes:
                node.restart()
        stream.wait_progress()
        stream.finish()


def test_all_killed_with_a_call_half_submitted(cluster: Cluster) -> None:
    """The same for a call that one member has yet to make."""
    with connected(cluster, "all half") as rings:
        works = [ring.all_reduce_async(operand(ring, "segment")) for ring in rings[:2]]
        wait_counts(cluster[2], [1, 1, 0], "all half")
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        works.append(rings[2].all_reduce_async(operand(rings[2], "segment")))
        for work in works:
            np.testing.assert_array_equal(work.wait(), total(3, COUNTS["segment"]))


def test_terminated_and_started(cluster: Cluster) -> None:
    """SIGTERM, as of a service manager or an upgrade, ends a daemon well and loses no call."""
    with connected(cluster, "upgrade") as rings:
        stream = Stream(cluster, rings)
        for node in cluster.nodes:
            stream.wait_progress()
            assert node.stop() == 0
            node.start()
        stream.wait_progress()
        stream.finish()


def test_called_while_the_daemon_is_away(cluster: Cluster) -> None:
    """A call that is made while no daemon runs waits for the next one."""
    with connected(cluster, "away") as rings:
        cluster[1].kill()
        calls = begin(rings, lambda ring: ring.all_reduce(operand(ring, "segment")))
        wait_state(cluster[0], "forming")
        assert [call.running for call in calls] == [True] * 3
        cluster[1].start()
        for call in calls:
            np.testing.assert_array_equal(call.result(), total(3, COUNTS["segment"]))


def test_generations_rise(cluster: Cluster) -> None:
    """Each ring has a higher generation than all before it, also when all daemons restart."""
    seen = [cluster.wait_ready()]
    for victims in ([0], [2], [0, 1, 2], [1, 2]):
        for victim in victims:
            cluster[victim].kill()
        cluster.start(victims)
        seen.append(cluster.wait_ready(beyond=seen[-1]))
    assert seen == sorted(set(seen))


def test_deadline_while_a_daemon_is_away(cluster: Cluster) -> None:
    """A deadline also ends calls while members, or the program's own daemon, are away."""
    with connected(cluster, "late") as rings:
        everywhere(rings, lambda ring: ring.barrier())
        cluster[1].kill()
        wait_state(cluster[0], "forming")
        found = [
            call.outcome()
            for call in begin(rings, lambda ring: ring.all_reduce(np.ones(2), timeout=0.3))
        ]
        assert [type(error) for error in found] == [ringd.DeadlineExceeded] * 3
        assert "the ring is not up" in str(found[0])
        assert "n1" in str(found[0])
        assert "daemon is away" in str(found[1])
        cluster[1].start()
        for result in everywhere(rings, lambda ring: ring.all_reduce(np.ones(2)).tolist()):
            assert result == [3.0, 3.0]


def test_ring_of_two(place: Path) -> None:
    """With two members, each is the other's neighbour on both sides; all the same holds."""
    with Cluster(place, 2, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            stream = Stream(cluster, rings)
            for victim in (0, 1, 0):
                stream.wait_progress()
                cluster[victim].restart()
            stream.wait_progress()
            stream.finish()


def test_ring_of_one(place: Path) -> None:
    """A member alone is a ring, and its daemon's death loses no call either."""
    with Cluster(place, 1, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            stream = Stream(cluster, rings)
            stream.wait_progress()
            cluster[0].restart()
            stream.wait_progress()
            stream.finish()
        assert op_counts(cluster[0]) == {}
