"""The client's shared memory: reuse, bounds, and arrays that keep their block."""

import errno
import gc
import itertools
import math
import mmap
import os
import weakref

import numpy as np
import pytest
from fake_daemon import open_fds

from ringd import errors
from ringd.client import pool as pool_module
from ringd.client.pool import Pool, _block_size, segment_size_for
from ringd.client.retention import FORGET, QUIET, ROOM

MIB = 1 << 20
PAGE = mmap.PAGESIZE


def pool_of(budget, *, working_set=0, now=lambda: 0.0):
    """Return a pool whose program's calls have had *working_set* bytes at a time."""
    pool = Pool(budget, now)
    pool.retention.note(working_set, pool.now())
    return pool


def take(pool, length):
    """Take as the connection does: what is on its way to the system goes there first."""
    block = pool.take(length)
    if block is None:
        pool.surplus.give_back()
        block = pool.take(length)
    return block


def trim(pool):
    """Trim as the keeper does; return in how many seconds it is to be done again."""
    pool.trim()
    pool.surplus.give_back()
    pool.note_dropped_segments()
    return pool.next_trim - pool.now()


def of_size(pool, size):
    """Return how many segments of at least *size* bytes the pool has."""
    return sum(segment.size >= size for segment in pool._segments.values())


LENGTHS = [0, 1, PAGE, 65537, *(2**k + d for k in range(16, 34) for d in (-1, 0, 1))]


@pytest.mark.parametrize("length", LENGTHS)
def test_block_sizes_waste_little(length):
    """A block holds the tensor, and a page for its seal; its segment has an eighth more at most."""
    size = _block_size(length)
    assert size % PAGE == 0
    assert length + PAGE <= size <= max(length, 1) + 2 * PAGE
    assert size <= segment_size_for(size) <= size + max(length // 8, PAGE)


def test_similar_sizes_share_a_segment():
    """There are few sizes of segments: eight per octave."""
    lengths = range(1 << 20, 1 << 21, 1009)
    assert len({segment_size_for(_block_size(length)) for length in lengths}) <= 9


def test_returned_block_is_used_again():
    """Memory that came back is warm, and goes out first."""
    pool = Pool(64 * MIB)
    first = pool.take(MIB)
    place = (first.segment.number, first.offset)
    del first
    again = pool.take(MIB - 1000)
    assert (again.segment.number, again.offset) == place
    assert pool.take(MIB).segment.number != place[0]


def test_small_blocks_share_segments():
    """A thousand blocks cost few descriptors, and never overlap."""
    pool = pool_of(1 << 30, working_set=100_000_000)
    blocks = [pool.take(100_000) for _ in range(1000)]
    assert len(pool) <= 50
    places = sorted((b.segment.address + b.offset, b.size) for b in blocks)
    for (start, size), (following, _) in itertools.pairwise(places):
        assert start + size <= following


def test_budget_is_a_bound():
    """Beyond the budget there is nothing until something comes back."""
    pool = Pool(10 * MIB)
    blocks = []
    while (block := pool.take(MIB)) is not None:
        blocks.append(block)
    assert 8 <= len(blocks) <= 10
    assert pool.size <= pool.budget
    assert pool.has_returns is False
    blocks.pop()
    assert pool.has_returns is True
    assert pool.take(MIB) is not None


def test_array_that_ends_while_blocks_are_taken_makes_room_for_them():
    """Another thread may drop it just when the pool turns out to be full."""

    class Busy(Pool):
        held = None

        def take(self, length):
            block = super().take(length)
            if block is None:
                self.held = None
            return block

    pool = Busy(8 * MIB)
    block = pool.take(3 * MIB)
    pool.held = pool.lend(block, 3 * MIB)
    del block
    assert pool.take_all([3 * MIB, 3 * MIB]) is not None
    held = pool.take(2 * MIB)
    assert pool.take_all([3 * MIB, 4 * MIB]) is None
    del held


def test_input_and_result_beyond_the_budget_name_the_setting():
    """Each would fit, both never will: not a reason to wait, nor to drop what is held."""
    pool = Pool(8 * MIB)
    with pytest.raises(errors.ResourceExhausted, match=r"10485760 bytes .* in parts"):
        pool.take_all([5 * MIB, 5 * MIB])
    assert take(pool, 7 * MIB) is not None


def test_tensor_beyond_the_budget_names_the_setting():
    """What can never fit is an error at once."""
    with pytest.raises(errors.ResourceExhausted, match=r"ipc\.segment_budget = 1048576"):
        Pool(MIB).take(2 * MIB)


def test_idle_segments_make_room_for_other_sizes():
    """Free memory of the wrong size does not stand in the way; the daemon is to be told."""
    pool = pool_of(8 * MIB, working_set=8 * MIB)
    small = [pool.take(MIB) for _ in range(3)]
    number = small[0].segment.number
    small[0].segment.passed_to = "channel"
    small.pop(0)
    large = take(pool, 5 * MIB)
    assert large is not None
    assert pool.dropped == [(number, "channel")]
    assert pool.size <= pool.budget
    assert take(pool, 5 * MIB) is None  # the others are in use


def test_longest_unused_goes_first():
    """What was used lately stays warm."""
    pool = pool_of(9 * MIB, working_set=9 * MIB)
    old, new = pool.take(2 * MIB), pool.take(3 * MIB)
    stays = new.segment
    del old, new
    assert take(pool, 4 * MIB) is not None
    assert stays.number in pool._segments


@pytest.mark.parametrize(
    "derive",
    [
        lambda a: a,
        lambda a: a.view(np.float32),
        lambda a: a[8:16],
        lambda a: a.view(np.float32).reshape(-1, 4).T[1:],
        lambda a: memoryview(a)[4:],
        lambda a: np.frombuffer(a, np.int16),
        lambda a: np.asarray(memoryview(a)),
        lambda a: a.view(np.recarray),
    ],
)
def test_block_stays_taken_while_anything_looks_into_it(derive):
    """Any kind of view keeps the memory from being used again; its end frees it."""
    pool = Pool(64 * MIB)
    block = pool.take(65536)
    lent = pool.lend(block, 65536)
    view = derive(lent)
    del block, lent
    gc.collect()
    assert (pool.has_returns, pool.lent) == (False, 65536)
    del view
    assert pool.has_returns is True
    pool._collect()
    assert (pool.lent, pool._starts, pool._lent_blocks) == (0, [], [])


def test_array_outlives_pool_and_descriptor():
    """A user's array is good for as long as it is kept."""
    pool = Pool(MIB)
    array = pool.lend(pool.take(65536), 65536)
    array[:] = 7
    pool.close()
    del pool
    gc.collect()
    assert array.sum() == 7 * 65536


def test_closed_pool_holds_on_to_nothing():
    """Neither to blocks in use nor to what is on its way to the system, and gives nothing back."""
    pool, fds = Pool(64 * MIB), open_fds()
    block, other = pool.take(8 * MIB), pool.take(100_000)
    segment = weakref.ref(block.segment)
    array = pool.lend(block, 8 * MIB)
    array[:] = 7
    del other
    pool._collect()
    pool._let_go(pool.kept)
    assert pool.surplus
    pool.close()
    late = pool.lend(block, 8 * MIB)
    del block
    pool.trim()
    pool.surplus.give_back()
    assert (segment(), pool.surplus._ranges, pool.next_trim) == (None, {}, math.inf)
    assert array.min() == late.min() == 7
    del array, late
    assert open_fds() == fds


def test_lent_memory_is_found_by_its_address():
    """Contiguous parts of lent arrays are recognised, wherever they begin; others are not."""
    pool = Pool(64 * MIB)
    blocks = [pool.take(200_000) for _ in range(5)]
    arrays = [pool.lend(block, 200_000, as_input=True) for block in blocks]
    for block, array in zip(blocks, arrays, strict=True):
        assert pool.find(array) == (block, 0)
        assert pool.find(array[1000:3000].view(np.float64)) == (block, 1000)
        assert pool.find(array[-1:]) == (block, 199_999)
    beyond = blocks[0].bytes(200_001)
    assert pool.find(beyond) is None
    assert pool.find(np.ones(1000)) is None
    del arrays[2], array, block, blocks
    pool._collect()
    assert len(pool._starts) == 4


def test_retired_memory_is_never_used_again():
    """A block that the daemon may still write to does not come back, nor do its neighbours."""
    pool = Pool(64 * MIB)
    block = pool.take(100_000)
    retired = block.segment
    retired.passed_to = "channel"
    pool.retire(block)
    pool.retire(block)
    del block
    others = [pool.take(100_000) for _ in range(50)]
    assert all(other.segment is not retired for other in others)
    assert pool.dropped == []


def test_retired_memory_counts_until_nothing_refers_to_it():
    """While an op or an array holds on to it, so does the daemon, which is told at the end."""
    pool = Pool(64 * MIB)
    block = pool.take(100_000)
    block.segment.passed_to = "channel"
    number, size = block.segment.number, pool.size
    array = pool.lend(block, 100_000, as_input=True)
    pool.retire(block)
    del block
    pool._collect()
    assert (pool.size, pool.dropped, len(pool)) == (size, [], 0)
    assert pool.find(array) is not None
    del array
    assert pool.has_returns is True
    pool._collect()
    assert (pool.size, pool.dropped, pool.has_returns) == (0, [(number, "channel")], False)


def test_memory_that_no_daemon_has_got_is_not_lost():
    """Nobody can be at work in what was never passed on."""
    pool = Pool(64 * MIB)
    block = pool.take(100_000)
    pool.retire(block)
    assert len(pool) == 1


def test_segment_that_may_have_been_refused_is_passed_again_and_stays_known():
    """A neighbour in it may be in use over there: it is retired, and dropped, all the same."""
    pool = Pool(64 * MIB)
    block = pool.take(100_000)
    segment, number = block.segment, block.segment.number
    segment.passed_to = "channel"
    assert not segment.is_to_be_passed("channel")
    assert segment.is_to_be_passed("another")
    segment.refused = True
    assert segment.is_to_be_passed("channel")
    pool.retire(block)
    assert len(pool) == 0
    segment.passed_to = "channel"
    assert not segment.is_to_be_passed("channel")
    segment.refused = True
    del block, segment
    pool._collect()
    assert pool.dropped == [(number, "channel")]


def test_seal_is_read_where_the_daemon_writes_it():
    """The seal stands behind the tensor, aligned, inside the block."""
    pool = Pool(64 * MIB)
    for length in (65537, 65544, 131072):
        block = pool.take(length)
        block.clear_seal(length)
        assert block.sealed_by(length) == (0, 0)
        block.bytes(length)[:] = 255
        assert block.sealed_by(length) == (0, 0)


def test_shortage_gives_back_what_is_idle_and_tries_again(monkeypatch):
    """When the system has no memory left, idle segments go first."""
    pool = pool_of(64 * MIB, working_set=64 * MIB)
    pool.take(MIB)  # comes back at once
    real, calls = pool_module.create_segment, []

    def scarce(size):
        calls.append(size)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(size)

    monkeypatch.setattr(pool_module, "create_segment", scarce)
    assert pool.take(2 * MIB) is not None
    assert len(pool) == 1


def test_shortage_is_an_error_that_can_be_acted_on(monkeypatch):
    """No memory at all: a clear error, nothing leaked, and the pool goes on."""
    pool = Pool(64 * MIB)

    def none(_size):
        raise OSError(errno.ENOSPC, "No space left on device")

    fds = open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "create_segment", none)
        with pytest.raises(errors.ResourceExhausted, match="No space left on device"):
            pool.take(MIB)
    assert (pool.usable, open_fds()) == (True, fds)
    assert pool.take(MIB) is not None


def test_system_without_shared_memory_is_remembered(monkeypatch):
    """Where the system forbids it, the client knows from then on."""
    pool = Pool(64 * MIB)

    def forbidden(_size):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pool_module, "create_segment", forbidden)
    with pytest.raises(errors.ResourceExhausted):
        pool.take(MIB)
    assert pool.usable is False


def test_descriptors_are_given_back():
    """A pool that is gone leaves no descriptor open."""
    fds = open_fds()
    pool = Pool(256 * MIB)
    blocks = [pool.take(MIB) for _ in range(20)]
    assert open_fds() > fds
    del blocks
    pool.close()
    assert open_fds() == fds


# --- how much is kept -------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        """Return it."""
        return self.now


def call(pool, length):
    """Take and note as one call does; its memory comes back at once."""
    while (blocks := pool.take_all([length, length])) is None:
        assert pool.surplus
        pool.surplus.give_back()
    pool.retention.note(2 * length, pool.now())
    assert blocks is not None


def backed(segment):
    """Return the bytes of memory that stand behind *segment*."""
    return os.fstat(segment.fd).st_blocks * 512


def test_other_sizes_use_the_same_memory():
    """Smaller tensors are cut from what the largest left, not from memory of their own."""
    pool = Pool(1 << 30)
    for length in range(8 * MIB, 65536, -100_000):
        call(pool, length)
    assert len(pool) == 2
    assert pool.kept <= 2 * segment_size_for(_block_size(8 * MIB))


def test_growing_sizes_leave_little_behind():
    """Memory that has become too small for the calls goes, longest unused first."""
    pool = Pool(1 << 30)
    for length in range(65536, 8 * MIB, 100_000):
        call(pool, length)
        assert pool.kept <= max(2.5 * 2 * length, ROOM) + 8 * PAGE
    pool.note_dropped_segments()
    assert pool.size == pool.kept


def test_bursts_stay_warm():
    """What many calls at the same time have used is there for the next burst."""
    pool = Pool(1 << 30)
    for _ in range(3):
        blocks = []
        for number in range(1, 101):
            blocks += pool.take_all([100_000, 100_000])
            pool.retention.note(number * 200_000, pool.now())
        made = pool._next_number
        del blocks
    blocks = [pool.take(100_000) for _ in range(200)]
    assert pool._next_number == made
    assert len(blocks) == 200


def test_idle_pool_shrinks_twice():
    """After a while 1.2 times the working set is kept, in the end only what is in use."""
    clock = Clock()
    pool = Pool(1 << 30, clock)
    for _ in range(2):
        kept = [pool.take(4 * MIB) for _ in range(5)]
        pool.retention.note(8 * MIB, pool.now())
    kept[:] = kept[:1]
    seconds = trim(pool)
    assert pool.kept <= 2.5 * 8 * MIB
    assert 0 < seconds <= QUIET
    clock.now += seconds
    seconds = trim(pool)
    assert 8 * MIB <= pool.kept <= 1.2 * 8 * MIB
    assert seconds <= FORGET
    clock.now += FORGET
    seconds = trim(pool)
    assert _block_size(4 * MIB) <= pool.kept <= 1.2 * 4 * MIB
    assert seconds == FORGET  # what is in use may come back
    kept.clear()
    clock.now += seconds
    trim(pool)
    assert (pool.kept, pool.used) == (0, 0)
    assert trim(pool) == math.inf


def test_daemon_is_told_of_what_went():
    """A segment that went is gone over there too, once its memory is the system's."""
    clock = Clock()
    pool = Pool(1 << 30, clock)
    block = pool.take(4 * MIB)
    number, block.segment.passed_to = block.segment.number, "channel"
    del block
    clock.now += FORGET
    pool.trim()
    assert (pool.dropped, len(pool)) == ([], 0)
    pool.surplus.give_back()
    pool.note_dropped_segments()
    assert (pool.dropped, pool.size, pool.kept) == ([(number, "channel")], 0, 0)


def test_small_array_does_not_keep_the_large_segment_around_it():
    """What is free beside an array that the user keeps goes back; the array stays as it is."""
    clock = Clock()
    pool = Pool(1 << 30, clock)
    call(pool, 16 * MIB)
    block, neighbour = pool.take(100_000), pool.take(100_000)
    segment = block.segment
    assert neighbour.segment is segment
    segment.passed_to = "channel"
    number = segment.number
    array = pool.lend(block, 100_000)
    array[:] = 7
    clock.now += FORGET
    trim(pool)
    assert pool.kept <= 200_000 + 4 * PAGE
    assert backed(segment) <= 200_000 + 4 * PAGE
    assert (pool.used, pool.size) == (2 * _block_size(100_000), segment.size)
    del neighbour, block
    trim(pool)
    assert (pool.kept, backed(segment)) == (_block_size(100_000),) * 2
    assert array.min() == array.max() == 7
    assert pool.take(100_000).segment is not segment
    del array, segment
    trim(pool)
    assert pool.dropped == [(number, "channel")]
    assert (pool.used, pool.given_back) == (0, 0)


def test_memory_that_the_daemon_may_read_is_not_given_back():
    """A block of a segment that was closed may be retired later: then it stays as it is."""
    clock = Clock()
    pool = Pool(1 << 30, clock)
    block, other = pool.take(100_000), pool.take(100_000)
    segment = block.segment
    segment.passed_to = "channel"
    block.bytes(100_000)[:] = 7
    clock.now += FORGET
    pool._let_go(pool.kept)
    pool.surplus.give_back()
    place, before = block.offset, pool.given_back
    pool.retire(block)
    del block
    pool._collect()
    assert pool.given_back == before > 0
    assert np.frombuffer(segment.mapping, np.uint8, 100_000, place).min() == 7
    assert other.segment is segment


def test_sleeper_is_woken_when_a_look_is_worth_it():
    """By the first call after a long rest, and when memory is to go back; not by all others."""
    clock, woken = Clock(), []
    pool = Pool(1 << 30, clock)
    pool.wake = lambda: woken.append(pool.next_trim)
    call(pool, MIB)
    assert trim(pool) == QUIET
    clock.now += FORGET
    call(pool, MIB)
    assert woken == []
    trim(pool)
    clock.now += FORGET
    assert trim(pool) == math.inf
    call(pool, MIB)
    assert (woken, pool.next_trim) == ([0.0], 0.0)
    assert trim(pool) == QUIET
    blocks = [pool.take(20 * MIB) for _ in range(2)]
    pool.retention.note(40 * MIB, pool.now())
    assert len(woken) == 1
    del blocks
    for _ in range(6):
        clock.now += 1.0
        pool.retention.note(MIB, pool.now())
    assert (pool.take(30 * MIB), bool(pool.surplus), len(woken)) == (None, True, 1)
    blocks = [pool.take(MIB)]  # somebody else's, which waits for nothing
    assert (pool.next_trim, len(woken), len(blocks)) == (0.0, 2, 1)


def test_an_idle_program_that_holds_arrays_is_woken_once_a_minute():
    """Nothing tells when it drops one; the next call after that has its looks as ever."""
    clock, woken = Clock(), []
    pool = Pool(1 << 30, clock)
    pool.wake = lambda: woken.append(clock.now)
    array = pool.lend(pool.take(100 * MIB), 100 * MIB)
    pool.retention.note(100 * MIB, pool.now())
    begin, looks = clock.now, 0
    while clock.now < begin + 3600:
        clock.now += trim(pool)
        looks += 1
    assert looks < 3600 / FORGET + 6
    call(pool, MIB)
    assert (len(woken), trim(pool)) == (1, QUIET)
    clock.now += FORGET
    del array
    trim(pool)
    assert pool.kept <= ROOM


def test_memory_goes_back_outside_of_the_lock(monkeypatch):
    """That takes 0.1 s for each GiB: only a system that has none left is given some at once."""
    given = []
    monkeypatch.setattr(pool_module, "give_back", lambda *_: given.append(1))
    clock = Clock()
    pool = Pool(64 * MIB, clock)
    pool.take(8 * MIB)
    assert pool.take(60 * MIB) is None
    assert (given, pool.has_returns) == ([], False)
    pool.surplus.give_back()
    assert (given, pool.has_returns) == ([1], True)
    blocks = [pool.take(30 * MIB), pool.take(MIB)]
    blocks.pop(0)
    clock.now += FORGET
    pool.trim()
    blocks.clear()
    pool.trim()
    assert given == [1]
    pool.surplus.give_back()
    assert len(given) > 1


@pytest.mark.parametrize("times", [1, 2])
def test_memory_that_an_interrupt_kept_from_going_back_goes_later(monkeypatch, times):
    """Nothing is forgotten, and nobody else waits for it in vain."""
    given = []

    def give_back(*lot):
        given.append(lot)
        if len(given) <= times:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool_module, "give_back", give_back)
    pool = Pool(64 * MIB)
    block = pool.take(8 * MIB)
    block.segment.passed_to = "channel"
    del block
    pool._collect()
    pool._let_go(pool.kept)
    for _ in range(times):
        with pytest.raises(KeyboardInterrupt):
            pool.surplus.give_back()
        assert pool.surplus
    pool.surplus.give_back()
    pool.note_dropped_segments()
    assert (bool(pool.surplus), pool.size, pool.dropped) == (False, 0, [(1, "channel")])
    assert given == given[:1] * (times + 1)
