"""One member's transfer: what it sends and takes when, and what it refuses."""

import numpy as np
import pytest

from ringd.collective.plan import Task
from ringd.collective.reduction import Reduction
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer, TransferError


def transfer(rank=0, count=8, chunk_bytes=8, size=2, dtype=np.float32):
    """Return a transfer of rank *rank* whose input is all ones."""
    reduction = Reduction("sum", dtype, size)
    itemsize = np.dtype(dtype).itemsize
    task = Task(count, itemsize, reduction.accumulator.itemsize, size, rank, chunk_bytes)
    source, target = np.ones(count, dtype), np.empty(count, dtype)
    plan, pool = ring_all_reduce(task), ScratchPool(chunk_bytes)
    return Transfer(plan, reduction, Spread([source]), Spread([target]), pool)


def drain(member):
    """Send whatever may be sent, and return the numbers."""
    numbers = []
    while (chunk := member.next_send()) is not None:
        numbers.append(chunk[0])
        member.sent(chunk[0])
    return numbers


def test_the_first_segment_may_go_at_once_and_the_rest_as_it_is_answered():
    """Chunk i is offered iff i < k or chunk i - k has been received."""
    member = transfer()  # two chunks per segment, four in all
    assert drain(member) == [0, 1]
    for index in range(4):
        member.receive_buffer(index, 8)[:] = np.ones(2, np.float32).view(np.uint8).data
        assert drain(member) == []
        member.received(index)
        assert drain(member) == [[2], [3], [], []][index]
    assert member.finished


def test_unsent_chunks_keep_a_transfer_open():
    """All received is not enough: a neighbour still needs what has not left."""
    member = transfer()
    assert drain(member) == [0, 1]
    for index in range(4):
        member.receive_buffer(index, 8)
        member.received(index)
    assert not member.finished
    assert member.next_send()[0] == 2
    assert member.next_send()[0] == 3
    member.sent(2)
    assert not member.finished
    member.sent(3)
    assert member.finished


def test_a_ring_of_one_waits_for_nobody():
    """Nothing to send, nothing to receive: the result is the input, chunk by chunk."""
    member = transfer(size=1, count=8, chunk_bytes=8)
    assert member.next_send() is None
    assert [member.work() for _ in range(4)] == [True, True, True, False]
    assert member.finished
    assert not member.unworked
    assert member._result.tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("index", "length", "message"),
    [
        (1, 8, "chunk 1 of 4 came, but 0 is expected"),
        (4, 8, "chunk 4 of 4 came, but 0 is expected"),
        (2**32 - 1, 8, "came, but 0 is expected"),
        (0, 4, "chunk 0 has 4 bytes instead of 8"),
        (0, 0, "chunk 0 has 0 bytes instead of 8"),
        (0, 12, "chunk 0 has 12 bytes instead of 8"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing(index, length, message):
    """Wrong numbers and lengths raise; the right chunk is still welcome."""
    member = transfer()
    with pytest.raises(TransferError, match=message):
        member.receive_buffer(index, length)
    assert len(member.receive_buffer(0, 8)) == 8


def test_a_replayed_chunk_is_refused():
    """A chunk comes once: not while it is being received, not later."""
    member = transfer()
    member.receive_buffer(0, 8)
    with pytest.raises(TransferError, match="chunk 0 of 4 came, but 0 is still being received"):
        member.receive_buffer(0, 8)
    with pytest.raises(TransferError, match="chunk 1 of 4 came, but 0 is still being received"):
        member.receive_buffer(1, 8)
    member.received(0)
    with pytest.raises(TransferError, match="chunk 0 of 4 came, but 1 is expected"):
        member.receive_buffer(0, 8)


def test_nothing_comes_after_the_last_chunk():
    """A finished transfer refuses more."""
    member = transfer()
    for index in range(4):
        drain(member)
        member.receive_buffer(index, 8)
        member.received(index)
    drain(member)
    assert member.finished
    with pytest.raises(TransferError, match="chunk 4 of 4 came, but 4 is expected"):
        member.receive_buffer(4, 8)


def test_a_result_cannot_come_before_what_it_is_made_of():
    """An all-gather chunk never overwrites a partial result that has not left yet."""
    member = transfer(size=3, count=12)  # two chunks per segment, eight in all
    for index in range(4):
        member.receive_buffer(index, 8)
        member.received(index)
    with pytest.raises(TransferError, match="chunk 4 came before chunk 0 was sent"):
        member.receive_buffer(4, 8)
    number, _ = member.next_send()
    member.sent(number)
    member.receive_buffer(4, 8)
    member.received(4)
    with pytest.raises(TransferError, match="chunk 5 came before chunk 1 was sent"):
        member.receive_buffer(5, 8)


def test_calls_out_of_turn_are_the_callers_mistake():
    """Reports on chunks that were not handed out are ValueErrors, and change nothing."""
    member = transfer()
    with pytest.raises(ValueError, match="chunk 0 cannot have been sent: 0 is the next"):
        member.sent(0)
    with pytest.raises(ValueError, match="chunk 0 is not being received"):
        member.received(0)
    member.next_send()
    member.next_send()
    with pytest.raises(ValueError, match="chunk 1 cannot have been sent: 0 is the next"):
        member.sent(1)
    member.receive_buffer(0, 8)
    with pytest.raises(ValueError, match="chunk 1 is not being received"):
        member.received(1)
    member.sent(0)
    member.received(0)


def build(**changes):
    """Return a transfer of 8 float32 elements with some arguments replaced."""
    memory = np.zeros(24, np.float32)
    arguments = {
        "plan": ring_all_reduce(Task(8, 4, 4, 2, 0, 64)),
        "reduction": Reduction("sum", np.float32, 2),
        "source": memory[:8],
        "target": memory[8:16],
        "scratch": ScratchPool(64),
    }
    arguments.update({name: change(memory) for name, change in changes.items()})
    for side in ("source", "target"):
        arguments[side] = Spread([arguments[side]])
    return Transfer(**arguments)


def test_neighbouring_memory_is_no_overlap():
    """Source and target may lie side by side in one segment."""
    assert build().next_send()[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": lambda m: m[:8]}, "source and target overlap"),
        ({"target": lambda m: m[7:15]}, "source and target overlap"),
        ({"source": lambda m: m[:7]}, "the source must be 1-d, contiguous, 8 elements long"),
        ({"source": lambda m: m[:16:2]}, "the source must be 1-d, contiguous, 8 elements long"),
        ({"target": lambda m: m[8:16].reshape(2, 4)}, "the target must be 1-d"),
        ({"target": lambda m: m[8:16].view("i4")}, "the target is int32, not float32"),
        ({"source": lambda _: np.zeros(8)}, "the source is float64, not float32"),
        (
            {"reduction": lambda _: Reduction("sum", np.float32, 3)},
            "a plan for 2, but a reduction over 3",
        ),
        (
            {"plan": lambda _: ring_all_reduce(Task(8, 4, 8, 2, 0, 64))},
            "accumulator is not the reduction's",
        ),
        (
            {"plan": lambda _: ring_all_reduce(Task(8, 2, 4, 2, 0, 64))},
            "a plan for elements of 2 B, but they are float32",
        ),
    ],
)
def test_memory_that_does_not_fit_is_refused(changes, message):
    """Overlap, layout, dtype and size are checked before anything moves."""
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_read_only_source_is_enough_and_a_read_only_target_is_not():
    """The source is never written; that the target can be is known before the first chunk."""
    source = np.ones(8, np.float32)
    source.flags.writeable = False
    assert build(source=lambda _: source).next_send()[1].readonly
    with pytest.raises(ValueError, match="the target is read-only"):
        build(target=lambda _: source, source=lambda m: m[:8])


def test_the_pool_is_bounded():
    """More free buffers than `keep` are not kept; a kept one is given again."""
    pool = ScratchPool(128, keep=2)
    buffers = [pool.take(128) for _ in range(3)]
    assert [b.nbytes for b in buffers] == [128] * 3
    for buffer in buffers:
        pool.give(buffer)
    assert len(pool._free) == 2
    assert pool.take(1) is buffers[1]
    with pytest.raises(ValueError, match="scratch buffers of 128 B, a chunk of 129 B"):
        pool.take(129)
