"""What the engine asks for is carried out in order, whatever it leads to on the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.config.settings import IpcSettings, OpsSettings
from ringd.daemon.performer import Buffers, Performer
from ringd.groups.actions import Dropped, Free, Run, Stop
from ringd.groups.op import Submission
from ringd.observe.counters import Counters

ALONE = View(("a",), 0)


class Stand:
    """A performer alone in its ring; a call that is through leads to *follow*."""

    def __init__(self, *follow):
        self.follow = follow
        self.through = []
        """What is through, as (session, rank, number)."""
        self.later = []
        """What is to be done later."""
        self.hurried = []
        """What was through each time that what others wait for was to leave."""
        self.counters = Counters()
        config = SimpleNamespace(ops=OpsSettings(), ipc=IpcSettings())
        self.performer = Performer(
            SimpleNamespace(
                now=lambda: 0.0,
                call_soon=lambda callback: callback(),
                call_later=self._call_later,
            ),
            config,
            ALONE,
            SimpleNamespace(
                kick=lambda _side: None,
                send_group=None,
                links={"right": SimpleNamespace(hurry=self._hurry)},
                send_credit=None,
                on_way=lambda _side, _gid: 0,
                let_go=lambda _gid, _seq: None,
            ),
            None,
            counters=self.counters,
            on_finished=self._finished,
        )

    def _call_later(self, _delay, callback):
        self.later.append(callback)
        return callback

    def _hurry(self):
        self.hurried.append(list(self.through))

    def _finished(self, gid, rank, seq, _now):
        self.through.append((gid, rank, seq))
        return self.follow

    @property
    def order(self):
        """The reasons of what was dropped, in order."""
        return list(self.counters.dropped_messages)


def run(payloads, view=ALONE):
    """Return an all-reduce, of a rank whose input is its number as a byte, four times."""
    call = Call("all_reduce", "sum", "uint8", (4,), "")
    buffers = Buffers(memoryview(bytes([view.rank] * 4)), None, None, 0.0)
    submission = Submission(0, call, None, None, None, hold=False, sealed=False, buffers=buffers)
    return Run(1, view, 0, (call,) * view.size, submission, payloads, serve=False)


class Bulks:
    """In the place of what computes large ops: notes what it is asked for."""

    def __init__(self):
        self.started = []
        self.stopped = []

    def start(self, key, view, _layout, _calls, _reduction, sources, targets):
        """Note it."""
        inputs = [source.tolist() for source in sources]
        self.started.append((key, view.here, inputs, len(targets)))

    def stop(self, gid, seq):
        """Note it."""
        self.stopped.append((gid, seq))


@pytest.fixture
def shared():
    """Give a performer of the member b, and the views of its ranks 0, 2 and 3 of four."""
    stand = Stand()
    stand.performer.bulk = Bulks()
    places = (1, 0, 1, 1)
    return stand, [View(tuple("babb"), rank, places, 2) for rank in (0, 2, 3)]


@pytest.mark.parametrize("payloads", [(b"\0\0\0\0",), None], ids=["small", "large"])
def test_what_follows_from_an_action_waits_for_those_before_it(payloads):
    """A call that is through at once does not let its news overtake what was asked for before."""
    stand = Stand(Dropped("third"), Dropped("fourth"))
    stand.performer.perform([Dropped("first"), run(payloads), Dropped("second")])
    assert stand.order == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("payloads", [(b"\0\0\0\0",), None], ids=["small", "large"])
def test_what_others_wait_for_leaves_before_a_call_is_computed(payloads):
    """Else all members would wait for the one that was the last to offer it twice."""
    stand = Stand()
    stand.performer.perform([run(payloads)])
    assert stand.hurried == [[]]
    assert stand.through == [(1, 0, 0)]


def test_a_failing_action_leaves_the_rest_in_order():
    """Nothing is skipped or done twice, and nothing waits for good."""
    stand = Stand()
    with pytest.raises(KeyError):
        stand.performer.perform([Dropped("first"), object(), Dropped("second")])
    stand.performer.perform([Dropped("third")])
    assert stand.order == ["first", "second", "third"]


def test_a_large_op_is_computed_for_all_ranks_here_together(shared):
    """Once all are ready for it, with their inputs by rank; when it is through, all are."""
    stand, views = shared
    first, second, third = (run(None, view) for view in views)
    stand.performer.perform([third, first])
    bulk = stand.performer.bulk
    assert bulk.started == []
    stand.performer.perform([second])
    inputs = [[rank] * 4 for rank in (0, 2, 3)]
    assert bulk.started == [((1, 0), (0, 2, 3), inputs, 3)]
    stand.performer._computed(1, 0)
    assert sorted(stand.through) == [(1, 0, 0), (1, 2, 0), (1, 3, 0)]
    stand.performer.perform([Stop(1, 0, 0)])  # too late
    assert bulk.stopped == []


@pytest.mark.parametrize("ready", [1, 3])
def test_a_large_op_that_is_stopped_is_stopped_once(shared, ready):
    """Each rank here says so, whether or not all were ready; it can run again after that."""
    stand, views = shared
    runs = [run(None, view) for view in views]
    stand.performer.perform([*runs[:ready], *(Stop(1, view.rank, 0) for view in views)])
    bulk = stand.performer.bulk
    assert bulk.stopped == [(1, 0)]
    stand.performer.perform(runs)
    assert len(bulk.started) == 1 + (ready == len(runs))


def test_a_small_op_is_computed_for_each_rank_by_itself(shared):
    """All inputs are with each of them."""
    stand, views = shared
    stand.performer.perform([run((b"\1\2\3\4",) * 4, views[1])])
    assert stand.through == [(1, 2, 0)]
    assert stand.performer.bulk.started == []


def test_chunk_buffers_go_back_once_no_call_comes():
    """Until then each has those of the one before; and no timer runs on for nothing."""
    stand = Stand()
    pool = stand.performer.bulk._scratch

    def tick():
        stand.later.pop()()
        return len(pool._free)

    stand.performer.perform([run(None)])
    pool.give(pool.take(1))
    assert tick() == 1  # the op may be a moment old
    stand.performer.perform([run(None)])
    assert len(stand.later) == 1
    assert tick() == 1
    assert tick() == 0
    assert stand.later == []


def test_the_heap_goes_back_once_after_programs_that_leave(monkeypatch):
    """Also where they made no call; one timer serves them all."""
    stand, given = Stand(), []
    monkeypatch.setattr("ringd.host.heap.give_back_free_blocks", lambda: given.append(1))
    for _ in range(3):
        stand.performer.tidy_later()
    stand.later.pop()()
    assert (given, len(stand.later)) == ([], 1)
    stand.later.pop()()
    assert (given, stand.later) == ([1], [])
    stand.performer.tidy_later()
    assert len(stand.later) == 1


def test_what_is_freed_keeps_nothing_of_its_program():
    """Timers may keep the call itself for a while."""
    submission = run(None).submission
    submission.payload, submission.fault = b"input", lambda _rank, _size: ""
    Stand().performer.perform([Free(submission)])
    assert (submission.buffers, submission.payload, submission.fault) == (None, None, None)
