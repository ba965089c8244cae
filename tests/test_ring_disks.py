"""A disk that takes longer to flush than silence may last: late, and nothing worse."""

from __future__ import annotations

import pytest
from cluster import Cluster, wait_until

import ringd
from ringd import DeadlineExceeded
from ringd.cli.watch import render
from tests.ringkit import HASTY, connected, everywhere, tensor, total

SLOW = 0.55
"""Seconds for a flush; a save has two of them, and HASTY loses a neighbour after 0.6."""


def logged(node, event):
    """Return what *node* has logged as *event*."""
    return [line for line in node.log() if line["event"] == event]


@pytest.fixture
def cluster(place):
    """Give three daemons that notice silence soon, of which the first two run."""
    with Cluster(place, 3, settings=HASTY) as cluster:
        cluster.start([0, 1])
        for node in cluster.nodes[:2]:
            wait_until(node.status, "an answer")
        yield cluster


def test_slow_disks_let_the_ring_form_once_and_hold(cluster):
    """All flushes outlast lost_after: no link is lost, the first generation stands, all say why."""
    for node in cluster.nodes:
        node.slow_disk(SLOW)
    cluster[2].start()
    assert cluster.wait_ready() == 1
    for node in cluster.nodes:
        status = node.status()
        assert status["counters"]["links_lost"] == {}
        assert status["disk"]["writing_for"] is None
        assert status["disk"]["last_write"] >= 2 * SLOW
        assert "the disk is slow: the last write of the state file took" in render(status)
        (line,) = logged(node, "the disk is slow")
        assert line["seconds"] >= 1.0
        assert str(node.state_dir) in line["reason"]
    with connected(cluster) as rings:
        everywhere(rings, lambda ring: ring.barrier())


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_others_learn_whose_disk_they_wait_for(cluster, rank):
    """While one member's disk hangs, all others name it, ready or not, and itself still answers."""
    slow = cluster[rank]
    cluster[2].start()
    cluster.wait_ready()
    slow.slow_disk(60)
    cluster[rank - 1].rejoin()
    wait_until(lambda: (slow.status()["disk"]["writing_for"] or 0) >= 1.0, "a write that lasts")
    assert "the disk is slow: the state file has been written for" in render(slow.status())
    path = slow.state_dir / "state.json"
    text = f"state file: {path}: not on the disk after 1 s: the disk is slow"
    what = f"the disk of {slow.name} is slow, and keeps it out of the ring: {text}"
    for node in cluster.nodes:
        if node is slow or rank == 0:  # all wait for rank 0's write; the others take part at once
            wait_until(
                lambda node=node: node.status()["waiting_for"] == {slow.name: text}, "a reason"
            )
        else:
            wait_until(lambda node=node: what in render(node.status()), "a warning")
            assert node.status()["state"] == "ready"
    for node in cluster.nodes:
        with ringd.connect(str(node.socket)) as ring, pytest.raises(DeadlineExceeded) as caught:
            ring.all_reduce(1, timeout=0.1)
        assert f"{slow.name} still writes its {text}" in str(caught.value)
        assert "no client" not in str(caught.value)


def test_calls_of_the_others_wait_for_a_slow_disk(cluster):
    """What those that are ready send to one that still writes is kept for it, and passed on."""
    counts = [3, 300_000] * 10

    def work(ring):
        calls = [ring.all_reduce_async(tensor(ring.rank, n, n)) for n in counts]
        return [call.wait() for call in calls]

    cluster[2].start()
    generation = cluster.wait_ready()
    with connected(cluster) as rings:
        everywhere(rings, lambda ring: ring.barrier())
        cluster[1].slow_disk(0.4)
        cluster[2].rejoin()
        for results in everywhere(rings, work):
            for n, result in zip(counts, results, strict=True):
                assert (result == total(3, n, n)).all()
    assert cluster.wait_ready() == generation + 1


def test_disk_that_is_fast_again_is_said_to_be(cluster):
    """Slowness is logged once, however often it shows, and so is its end."""
    cluster[0].slow_disk(SLOW)
    cluster[2].start()
    generation = cluster.wait_ready()
    cluster[1].rejoin()
    generation = cluster.wait_ready(generation)
    cluster[0].slow_disk(0)
    cluster[1].rejoin()
    cluster.wait_ready(generation)
    assert len(logged(cluster[0], "the disk is slow")) == 1
    assert len(logged(cluster[0], "the disk is no longer slow")) == 1


def test_stopping_lets_a_write_under_way_end(cluster):
    """A daemon that is stopped while it writes leaves a whole state file, and then its lock."""
    cluster[0].slow_disk(SLOW)
    cluster[2].start()
    wait_until(lambda: cluster[0].status()["disk"]["writing_for"] is not None, "a write")
    assert cluster[0].stop() == 0
    assert '"generation": 1' in (cluster[0].state_dir / "state.json").read_text()
