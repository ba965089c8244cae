"""Work on several cores: all of it is done, once, and nothing goes on behind anybody's back."""

import threading
from functools import partial

import numpy as np
import pytest

from ringd.collective.arrange import arrange
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.reduction import Reduction
from ringd.collective.transfer import ScratchPool
from ringd.ring.crew import MOST, SHARE, ThreadCrew

CHUNK = 64 << 10


def alive():
    """Return the threads of crews."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("crew")]


@pytest.mark.parametrize(
    ("cores", "at_once"), [(1, 1), (2, 2 * SHARE), (MOST, MOST * SHARE), (64, MOST * SHARE)]
)
def test_it_takes_as_much_as_its_cores_are_worth(cores, at_once):
    """On a single core there is nothing to share."""
    before = len(alive())
    assert ThreadCrew(cores).at_once == at_once
    assert len(alive()) == before


@pytest.mark.parametrize("cores", [2, 3, 8])
@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_all_pieces_are_done_once(cores, count):
    """However many there are, by no more threads than cores."""
    done, doers, lock = [], set(), threading.Lock()

    def piece(number):
        with lock:
            done.append(number)
            doers.add(threading.get_ident())

    ThreadCrew(cores).carry_out([partial(piece, number) for number in range(count)])
    assert sorted(done) == list(range(count))
    assert len(doers) <= min(cores, MOST)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_is_told_once_nothing_goes_on(failing):
    """By whichever thread: memory that others still write to is never given back."""
    released, ended = threading.Event(), []

    def piece(number):
        if number == failing:
            released.set()
            raise ArithmeticError(number)
        released.wait(1)  # in vain, if that one waits for the core on which this one is
        ended.append(number)

    with pytest.raises(ArithmeticError):
        ThreadCrew(3).carry_out([partial(piece, number) for number in range(3)])
    assert sorted(ended) == [number for number in range(3) if number != failing]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_where_the_system_has_no_more_threads(monkeypatch, threads):
    """What cannot be handed over is done here, and nothing of it a second time later."""
    start, begun = threading.Thread.start, []

    def refuse(thread):
        if len(begun) == threads:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    crew = ThreadCrew(4)
    for _ in range(3):
        done = []
        crew.carry_out([partial(done.append, number) for number in range(8)])
        assert sorted(done) == list(range(8))
    assert len(done) == 8
    monkeypatch.undo()
    done = []
    crew.carry_out([partial(done.append, number) for number in range(8)])
    assert sorted(done) == list(range(8))


def test_its_threads_are_quiet():
    """As the loop's is: none warns of what is odd in the numbers."""
    states = []
    together = threading.Barrier(2)

    def piece():
        together.wait(10)
        states.append(set(np.geterr().values()))

    ThreadCrew(2).carry_out([piece, piece])
    assert states == [{"ignore"}, {"ignore"}]


class Recorded(ThreadCrew):
    """Keeps how many pieces it was handed."""

    def __init__(self, cores):
        super().__init__(cores)
        self.handed = []

    def carry_out(self, pieces):
        """Keep it, and do them."""
        self.handed.append(len(pieces))
        super().carry_out(pieces)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ranks", [1, 4])
def test_ranks_of_one_machine(dtype, ranks):
    """The results are those of one thread; arithmetic in a wider dtype is one thread's."""
    count = 20 * CHUNK // 4 + 3
    dtype = np.dtype(dtype)
    inputs = [(np.arange(count) % 61 * (rank + 1)).astype(dtype) for rank in range(ranks)]
    targets = [np.zeros(count, dtype) for _ in range(ranks)]
    reduction = Reduction("sum", dtype, ranks)
    arrangement = arrange(
        [Call("all_reduce", "sum", dtype.name, (count,), "")] * ranks,
        Layout.of((0,) * ranks, 0),
        itemsize=dtype.itemsize,
        accumulator_itemsize=4,
        chunk_bytes=CHUNK,
        by_rank=False,
    )
    crew = Recorded(2)
    transfer = arrangement.begin(reduction, inputs, targets, ScratchPool(CHUNK), crew=crew)
    while transfer.work():
        assert not transfer.finished
    assert transfer.finished
    expected = np.sum([x.astype(np.float64) for x in inputs], axis=0)
    for target in targets:
        np.testing.assert_array_equal(target, expected)
    pieces = len(arrangement.plan.local)
    assert pieces > 2 * crew.at_once
    assert sum(crew.handed) == (0 if reduction.wide else pieces - pieces % crew.at_once)
