"""Work that needs no other machine is done in pieces, between looks at the sockets."""

from __future__ import annotations

from collections import deque
from unittest.mock import patch

import numpy as np

from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.reduction import Reduction
from ringd.collective.view import View
from ringd.observe.counters import Counters
from ringd.ring import bulk

ALONE = Layout(((0, 1),), 0)
CALL = Call("all_reduce", "sum", "int32", (64,), "")


class Bench:
    """The transfers of a machine that has two ranks and no neighbours; a turn is one of a loop.

    It has one core.
    """

    def __init__(self):
        self.queue = deque()
        self.finished = []
        with patch.object(bulk, "cores", return_value=1):
            self.bulk = bulk.Bulk(
                0,
                chunk_bytes=64,
                checksum=False,
                by_rank=False,
                on_finished=lambda gid, seq: self.finished.append((gid, seq)),
                send=lambda _side, _header: None,
                defer=self.queue.append,
                on_way=lambda _side, _gid: 0,
                counters=Counters(),
            )

    def start(self, gid, seq, call=CALL):
        """Begin an op; return its results."""
        sources = [np.full(64, 1 + rank, np.int32) for rank in range(2)]
        targets = [np.zeros(64, np.int32) for _ in sources]
        reduction = Reduction("sum", np.int32, 2)
        view = View(("a", "a"), 0, (0, 0), 1)
        self.bulk.start((gid, seq), view, ALONE, [call] * 2, reduction, sources, targets)
        return targets

    def turn(self):
        """Do what is due before the next look at the sockets."""
        for _ in range(len(self.queue)):
            self.queue.popleft()()


def test_a_piece_at_a_time():
    """The start and each turn do one chunk of 16 elements, for both ranks; the last ends the op."""
    bench = Bench()
    targets = bench.start(1, 0)
    done = [[int(np.count_nonzero(target == 3)) for target in targets]]
    while bench.queue:
        bench.turn()
        done.append([int(np.count_nonzero(target == 3)) for target in targets])
    assert done == [[16, 16], [32, 32], [48, 48], [64, 64]]
    assert bench.finished == [(1, 0)]
    assert len(bench.bulk) == 0


def test_ops_take_turns():
    """A turn is one piece, however many ops there are: none waits for the end of another."""
    bench = Bench()
    first = bench.start(1, 0)
    second = bench.start(2, 0)
    for _ in range(2):
        assert len(bench.queue) == 1
        bench.turn()
    assert [int(np.count_nonzero(targets[0])) for targets in (first, second)] == [32, 32]
    while bench.queue:
        bench.turn()
    assert bench.finished == [(1, 0), (2, 0)]


def test_an_op_that_is_stopped_is_worked_on_no_more():
    """Its memory may be another's; when it runs again, it ends once."""
    bench = Bench()
    old = bench.start(1, 0)
    bench.turn()
    bench.bulk.stop(1, 0)
    new = bench.start(1, 0)
    while bench.queue:
        bench.turn()
    assert int(np.count_nonzero(old[0])) == 32
    assert [int(np.count_nonzero(target == 3)) for target in new] == [64, 64]
    assert bench.finished == [(1, 0)]


def test_an_op_that_follows_is_begun_by_the_end_of_one():
    """As when a program makes its next call at once."""
    bench = Bench()
    begun = []

    def follow(gid, seq):
        bench.finished.append((gid, seq))
        if seq < 2:
            begun.append(bench.start(gid, seq + 1))

    bench.bulk._on_finished = follow
    bench.start(1, 0)
    turns = 0
    while bench.queue:
        assert len(bench.queue) == 1
        bench.turn()
        turns += 1
    assert bench.finished == [(1, 0), (1, 1), (1, 2)]
    assert turns == 3 * 3


def test_nothing_of_an_op_without_sends_is_left_behind():
    """Where no link asks for chunks, none is queued."""
    bench = Bench()
    for seq in range(3):
        bench.start(1, seq)
        while bench.queue:
            bench.turn()
    lane = bench.bulk._lanes["right"]
    assert (len(lane._turns), len(bench.bulk._working)) == (0, 0)
