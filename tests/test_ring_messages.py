"""Messages from rank to rank through real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from cluster import Cluster, wait_until
from ringkit import Call, connected, everywhere

import ringd

SIZE = 3
LENGTHS = [0, 1, 2_000, 40_000, 300_000, 3_000_000]
"""Of float32: nothing, inside a message, in a segment, in chunks, more than is sent unasked."""


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ringd.Ring]]:
    """A ring of three."""
    with Cluster(tmp_path_factory.mktemp("m"), SIZE) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            yield rings


def values(rank: int, length: int) -> np.ndarray:
    """Return a tensor that no other rank has."""
    return np.arange(length, dtype=np.float32) + 1000 * rank


@pytest.mark.parametrize("lent", [False, True], ids=["copied", "lent"])
@pytest.mark.parametrize("length", LENGTHS)
def test_each_rank_sends_to_each(rings, length, lent):
    """What is sent arrives, either way round, whatever its size."""

    def exchange(ring):
        x = ring.empty(length) if lent else np.empty(length, np.float32)
        x[:] = values(ring.rank, length)
        others = [rank for rank in range(SIZE) if rank != ring.rank]
        sent = [ring.send_async(x, other) for other in others]
        came = [ring.recv(length, other, dtype=np.float32) for other in others]
        for work in sent:
            work.wait(60)
        return came

    for rank, came in enumerate(everywhere(rings, exchange)):
        others = [other for other in range(SIZE) if other != rank]
        for other, array in zip(others, came, strict=True):
            np.testing.assert_array_equal(array, values(other, length))


def test_all_send_to_the_right_then_receive_from_the_left(rings):
    """It never stands still, up to a MiB."""
    length = (1 << 20) // 4

    def shift(ring):
        rank, size = ring.rank, ring.size
        for round_ in range(5):
            ring.send(values(rank + round_, length), (rank + 1) % size, timeout=20)
            out = np.empty(length, np.float32)
            assert ring.recv(out, (rank - 1) % size, timeout=20) is out
            np.testing.assert_array_equal(out, values((rank - 1) % size + round_, length))
        return True

    assert everywhere(rings, shift) == [True] * SIZE


def test_tags_have_an_order_of_their_own(rings):
    """What is sent first under one tag can be received after what came later under another."""

    def talk(ring):
        if ring.rank == 0:
            for number in range(6):
                ring.send(number, 1, tag=number % 2)
            return []
        if ring.rank == 1:
            odd = [int(ring.recv((), 0, 1, int)) for _ in range(3)]
            return odd + [int(ring.recv((), 0, 0, int)) for _ in range(3)]
        return []

    assert everywhere(rings, talk)[1] == [1, 3, 5, 0, 2, 4]


def test_whoever_sends(rings):
    """ANY takes what has come, each once."""

    def talk(ring):
        if ring.rank:
            for number in range(4):
                ring.send(10 * ring.rank + number, 0, tag=7)
            return []
        return sorted(int(ring.recv((), ringd.ANY, 7, int, timeout=20)) for _ in range(8))

    assert everywhere(rings, talk)[0] == [10, 11, 12, 13, 20, 21, 22, 23]


def test_the_receiver_is_told_who_has_sent(rings):
    """By the handle; one of another call names nobody."""

    def talk(ring):
        if ring.rank:
            ring.send(ring.rank, 0, tag=8)
            return ring.barrier_async().source
        works = [ring.recv_async((), ringd.ANY, 8, int) for _ in range(2)]
        assert [work.source for work in works] == [int(work.wait(60)) for work in works]
        return ring.barrier_async().source

    assert everywhere(rings, talk) == [None] * SIZE


def test_what_does_not_fit_is_an_error_on_both_ends(rings):
    """It says what each asked for; the next message is unharmed."""

    def talk(ring):
        if ring.rank == 0:
            with pytest.raises(ringd.Mismatch) as caught:
                ring.send_async(np.zeros(3, np.float32), 1).wait(60)
            ring.send(5, 1)
            return str(caught.value)
        if ring.rank == 1:
            with pytest.raises(ringd.Mismatch) as caught:
                ring.recv(4, 0, dtype=np.float32, timeout=10)
            assert int(ring.recv((), 0, dtype=int, timeout=10)) == 5
            return str(caught.value)
        return ""

    sender, receiver, _ = everywhere(rings, talk)
    assert sender == receiver
    assert "float32[3]" in sender
    assert "float32[4]" in sender


def test_a_deadline_names_who_is_missing(rings):
    """Of a message that is never sent, or never received; the next one is unharmed."""

    def talk(ring):
        if ring.rank == 0:
            with pytest.raises(ringd.DeadlineExceeded, match="not received yet by: n1"):
                ring.send_async(1, 1, tag=3, timeout=0.2).wait()
        if ring.rank == 2:
            with pytest.raises(ringd.DeadlineExceeded, match="not sent yet by: n1"):
                ring.recv((), 1, tag=3, timeout=0.2)
        with pytest.raises(ringd.DeadlineExceeded, match="none has been sent"):
            ring.recv((), ringd.ANY, tag=4, timeout=0.2)
        ring.barrier()
        return True

    assert everywhere(rings, talk) == [True] * SIZE


def test_who_leaves_waits_for_what_it_sent(tmp_path):
    """A receiver that is late has it; where none asks, close() says so."""
    with Cluster(tmp_path, 2) as cluster:
        cluster.start().wait_ready()
        first, second = (ringd.connect(path, "late", 10) for path in cluster.sockets)
        first.send(7, 1)
        closing = Call(first.close)
        assert int(second.recv((), 0, dtype=int, timeout=10)) == 7
        closing.result()
        second.close()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda ring: ring.send(1, ring.rank), "cannot send to itself"),
        (lambda ring: ring.send(1, 3), "to is a rank from 0 to 2, not 3"),
        (lambda ring: ring.recv((), -2), "source is a rank from 0 to 2, not -2"),
        (lambda ring: ring.recv((), ring.rank), "there is no other rank"),
        (lambda ring: ring.send(1, 0, tag=-1), "tag is a number from 0 to 32767, not -1"),
        (lambda ring: ring.recv((), 0, tag=32768), "tag is a number from 0 to 32767, not 32768"),
        (lambda ring: ring.recv(np.zeros(3), 0, dtype=int), "dtype is int64, but the array has"),
    ],
)
def test_what_cannot_be_is_said_at_once(rings, call, text):
    """By the call that asks for it."""
    with pytest.raises(ValueError, match=text):
        call(rings[1])


def test_status_shows_messages_that_wait(tmp_path):
    """Between which ranks, and for whom."""
    with Cluster(tmp_path, 2) as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as (first, second):
            work = first.send_async(np.zeros(5), 1, tag=9)
            wait_until(lambda: cluster[0].status()["groups"][0]["open_ops"], "a message that waits")
            (op,) = cluster[0].status()["groups"][0]["open_ops"]
            assert op["channel"] == "rank 0 to rank 1, tag 9"
            assert op["waiting_for"] == "not received yet by: n1"
            second.recv(5, 0, tag=9)
            work.wait(60)


def test_messages_under_way_when_the_group_loses_a_program_end_on_both_ends(tmp_path):
    """They are received, or both ends hear that they are not; nobody waits for what cannot come."""
    with Cluster(tmp_path, 3) as cluster:
        cluster.start().wait_ready()
        for turn in range(8):
            with ExitStack() as stack:
                rings = [
                    stack.enter_context(ringd.connect(path, f"turn {turn}", 30))
                    for path in cluster.sockets
                ]
                assert [ring.size for ring in rings] == [3] * 3
                lose_one(*rings)


def lose_one(first: ringd.Ring, second: ringd.Ring, third: ringd.Ring) -> None:
    """Send from the first to the second ring; the third one leaves meanwhile."""
    sending = [first.send_async(np.full(n, float(n)), 1) for n in (3, 30_000, 300_000)]
    receiving = [second.recv_async(n, 0) for n in (3, 30_000)]
    third.close()
    ends = [Call(work.wait).outcome() for work in sending]
    came = [Call(work.wait).outcome() for work in receiving]
    for sent, got in zip(ends, came, strict=False):
        assert (sent is None) == isinstance(got, np.ndarray)
        assert sent is None or type(sent) is type(got) is ringd.GroupLost
    assert type(ends[2]) is ringd.GroupLost


def test_who_gives_up_receiving_has_received_nothing(rings):
    """The message that comes later is the next call's, also from whoever sends."""

    def talk(ring):
        if ring.rank == 1:
            for source in (0, ringd.ANY):
                with pytest.raises(ringd.DeadlineExceeded, match="sent"):
                    ring.recv((), source, tag=20, dtype=int, timeout=0.1)
        ring.barrier()
        if ring.rank == 0:
            for number in range(3):
                ring.send(number, 1, tag=20)
        if ring.rank == 1:
            came = [int(ring.recv((), source, 20, int, timeout=10)) for source in (0, ringd.ANY, 0)]
            assert came == [0, 1, 2]
        ring.barrier()
        return True

    assert everywhere(rings, talk) == [True] * SIZE


def test_a_buffered_message_that_is_not_received_is_told_by_the_next_send(rings):
    """Once, and that one is not sent."""

    def talk(ring):
        if ring.rank == 0:
            ring.send(np.zeros(3, np.float32), 1, tag=21)
            ring.barrier()
            with pytest.raises(ringd.Mismatch, match="an earlier message to rank 1 was not rec"):
                ring.send(1, 1, tag=21)
            ring.send(2, 1, tag=21)
        else:
            if ring.rank == 1:
                with pytest.raises(ringd.Mismatch, match="from rank 0 to rank 1 under tag 21"):
                    ring.recv(4, 0, 21, np.float32, timeout=10)
            ring.barrier()
            if ring.rank == 1:
                assert int(ring.recv((), 0, 21, int, timeout=10)) == 2
        return True

    assert everywhere(rings, talk) == [True] * SIZE


def test_what_a_receiver_gave_up_is_told_by_close(tmp_path):
    """A deadline of one that took its place in the order."""
    with Cluster(tmp_path, 2) as cluster:
        cluster.start().wait_ready()
        first, second = (ringd.connect(path, "given up", 10) for path in cluster.sockets)
        with pytest.raises(ringd.DeadlineExceeded):
            second.recv_async((), 0, timeout=0.1).wait()
        first.send(7, 1)
        with pytest.raises(ringd.RingError, match="an earlier message to rank 1 was not received"):
            first.close()
        second.close()


def test_many_threads_send_while_channels_come_and_go(rings):
    """Each in a channel of its own, which begins meanwhile."""

    def talk(ring):
        if ring.rank == 2:
            return True

        def one(tag):
            if ring.rank == 0:
                ring.send(tag, 1, tag=100 + tag)
            else:
                assert int(ring.recv((), 0, 100 + tag, int, timeout=20)) == tag

        calls = [Call(lambda tag=tag: one(tag)) for tag in range(24)]
        for call in calls:
            call.result()
        return True

    assert everywhere(rings, talk) == [True] * SIZE
