"""A disk that takes longer to flush than silence may last: late, and nothing worse."""

from __future__ import annotations

import re
import shutil
import signal
import socket

import pytest
from cluster import Cluster, wait_until

import ringd
from ringd import DeadlineExceeded
from ringd.cli.ask import find_socket
from ringd.cli.picture import render
from tests.ringkit import BOUNDED, connected, everywhere, tensor, total
from tests.test_ring_commands import cli as run_cli

SETTINGS = (
    BOUNDED
    + """
[join]
heartbeat = "200ms"
lost_after = "1500ms"
"""
)
"""A neighbour is lost soon, and yet not for what a busy machine holds its daemon up."""

AWHILE = "([2-9]|[1-9][0-9])"
"""Whole seconds, at least two, which outlast ``lost_after`` too."""

SLOW = 0.8
"""Seconds for a flush; a save has two of them, which outlast ``lost_after``."""


def logged(node, event):
    """Return what *node* has logged as *event*."""
    return [line for line in node.log() if line["event"] == event]


@pytest.fixture
def cluster(place):
    """Give three daemons that notice silence soon, of which the first two run."""
    with Cluster(place, 3, settings=SETTINGS) as cluster:
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
        lines = logged(node, "the disk is slow")
        assert len(lines) == (2 if node is cluster[2] else 1)  # that one's was so at the start, too
        line = lines[-1]
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
    text = (
        rf"state file: {re.escape(str(path))}: not on the disk after {AWHILE} s: the disk is slow"
    )
    what = f"the disk of {slow.name} is slow, and keeps it out of the ring: {text}"

    def waits(node):
        return re.fullmatch(text, node.status()["waiting_for"].get(slow.name, ""))

    for node in cluster.nodes:
        if node is slow or rank == 0:  # all wait for rank 0's write; the others take part at once
            wait_until(lambda node=node: waits(node), "a reason that counts on")
        else:
            wait_until(lambda node=node: re.search(what, render(node.status())), "a warning")
            assert node.status()["state"] == "ready"
    for node in cluster.nodes:
        with ringd.connect(str(node.socket)) as ring, pytest.raises(DeadlineExceeded) as caught:
            ring.all_reduce(1, timeout=0.1)
        assert re.search(
            f"{slow.name} still writes its state file: .*after [0-9]+ s: ", str(caught.value)
        )
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
    (first,) = logged(cluster[0], "a slow write has ended")  # of the many, at this level
    assert first["seconds"] >= 2 * SLOW
    assert len(logged(cluster[0], "the disk is no longer slow")) == 1


def test_a_full_disk_where_the_state_file_was_lost_is_told(place):
    """The others hear of it, and not of what the daemon said before it was stopped."""
    with Cluster(place, 2, settings=SETTINGS) as cluster:
        cluster.start()
        generation = cluster.wait_ready()
        one, other = cluster.nodes
        run_cli(cluster, 1, "drain")
        other.stop()
        shutil.rmtree(other.state_dir)
        one.signal(signal.SIGSTOP)
        other.start()
        wait_until(other.status, "an answer")  # so its start is on the disk, which fills up now
        other.fill_disk()
        one.signal(signal.SIGCONT)
        said = {"n1": f"state file: {other.state_dir}/state.json: No space left on device"}
        wait_until(
            lambda: (one.status() or {}).get("waiting_for") == said, lambda: str(one.status())
        )
        other.slow_disk(0)
        assert cluster.wait_ready(generation) > generation


def test_stopping_lets_a_write_under_way_end(cluster):
    """A daemon that is stopped while it writes leaves a whole state file, and then its lock."""
    cluster[0].slow_disk(SLOW)
    cluster[2].start()
    wait_until(lambda: cluster[0].status()["disk"]["writing_for"] is not None, "a write")
    assert cluster[0].stop() == 0
    assert '"generation": 1' in (cluster[0].state_dir / "state.json").read_text()


def test_a_slow_disk_at_the_start_is_told(place):
    """Log, service manager and commands say it, and how long it lasts, before there is a socket."""
    with Cluster(place, 1) as cluster, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.settimeout(30)
        cluster.environ["NOTIFY_SOCKET"] = str(place / "notify")
        node = cluster[0]
        node.slow_disk(1.6)
        node.start()
        line = f"STATUS=starting: {node.state_dir}: no answer for ([0-9]) s: the disk is slow"
        told = re.fullmatch(line, manager.recv(4096).decode())
        assert told
        with pytest.raises(ringd.DaemonUnavailable) as caught:
            find_socket(node.socket)
        assert f"the daemon, process {node.pid} on host" in str(caught.value)
        assert f"is starting: {node.state_dir}: no answer for" in str(caught.value)
        later = re.fullmatch(line, manager.recv(4096).decode())
        assert later
        assert 1 <= int(told[1]) < int(later[1])
        (line,) = logged(node, "the disk is slow")
        assert line["level"] == "warning"
        wait_until(node.status, "an answer")
        (line,) = logged(node, "the disk has answered")
        assert line["seconds"] >= 3.2


def test_a_daemon_that_waits_for_the_disk_at_its_start_can_be_ended(place):
    """SIGTERM ends it at once, and nobody holds its place."""
    with Cluster(place, 1) as cluster:
        node = cluster[0]
        node.slow_disk(60)
        node.start()
        wait_until(lambda: logged(node, "the disk is slow"), "a word")
        node.signal(signal.SIGTERM)
        assert node.process.wait(60) == -signal.SIGTERM
        with pytest.raises(ringd.DaemonUnavailable, match="no daemon here"):
            find_socket(node.socket)
