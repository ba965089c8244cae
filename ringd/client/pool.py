"""The client's shared memory: segments that are kept warm, cut into blocks, and taken back.

Fresh pages cost many times the copy into them, so memory is used again, by tensors of any size:
a block is cut from the shortest free range that has room (:mod:`ringd.client.arena`). It is free
when nothing refers to its :class:`Block` any more: neither an op, nor an array that a user holds.

How much is kept follows what is used (:mod:`ringd.client.retention`). What is too much goes back to
the system, longest unused first: whole segments, then the free ranges of those that are in use.

An interrupt may end any step here at any call (:mod:`ringd.client.pump`). So what is true stands in
few tables, each changed in one store: the segments that are used, and a record of each segment and
of each block that something refers to, by numbers that are never used again. What follows from
these, the free ranges and the lent bytes, is made anew where a step did not come to its end.
"""

from __future__ import annotations

import bisect
import errno
import math
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ringd import errors
from ringd.client.arena import Arena
from ringd.client.retention import QUIET, Retention
from ringd.host.memory import create_segment, detach, give_back, map_segment
from ringd.wire.border.messages import SEAL, SEAL_ALIGN, Ref, seal_offset

_PAGE = mmap.PAGESIZE
_MIN_SLAB = 1 << 20
_MAX_SLAB = 16 << 20
_MAX_SEGMENTS = 1000  # the daemon takes 1024
_NO_MEMORY = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.EFBIG)

Bytes = npt.NDArray[np.uint8]


class _GoneRef(weakref.ref[Any]):
    """A weak reference with a number. Its callback is a C method, so no interrupt comes between."""

    __slots__ = ("number",)
    number: int


class Surplus:
    """Memory on its way back to the system, which takes 0.1 s for each GiB: not under a lock.

    A range is used for nothing any more; so it may be given back twice, as after an interrupt.
    """

    __slots__ = ("_giving", "_last", "_ranges")

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[Segment, int, int]] = {}
        self._last = 0
        self._giving = threading.RLock()

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, segment: Segment, start: int, length: int) -> None:
        """Take in a range; *segment* is kept until it has gone back."""
        self._last += 1
        self._ranges[self._last] = (segment, start, length)

    def clear(self) -> None:
        """Leave it to the end of the segments."""
        self._ranges.clear()

    def give_back(self) -> None:
        """Do it, from any thread; a thread that is at it already is waited for.

        Here, as in the daemon all other clients would wait for that.
        """
        with self._giving:
            self.give_back_at_once()

    def give_back_at_once(self) -> None:
        """The same, where a lock is held that a finaliser of another thread may wait for."""
        for number in list(self._ranges):
            lot = self._ranges.get(number)
            if lot is not None:
                segment, start, length = lot
                segment.give_back(start, length)
                self._ranges.pop(number, None)  # last: after an interrupt it is done again
                del segment, lot  # the last one may be gone with this


class _SegmentRecord:
    """What is known of a segment, also when it is gone, until that is noted."""

    __slots__ = ("given_back", "gone", "passed_to", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.given_back = 0
        """Bytes of it that went back to the system, or are on their way."""
        self.passed_to: object = None
        """The connection over which the daemon has received it; None for none."""
        self.gone: _GoneRef


class _BlockRecord:
    """What is known of a block, also when it is gone, until it is taken back."""

    __slots__ = ("gone", "lent", "segment", "size", "start")

    def __init__(self, segment: Segment, start: int, size: int, gone: _GoneRef) -> None:
        self.segment = segment
        self.start = start
        self.size = size
        self.lent = 0
        """Bytes that a user's array has of it."""
        self.gone = gone


class Segment:
    """One piece of shared memory, cut into blocks."""

    __slots__ = (
        "__weakref__",
        "address",
        "closed",
        "fd",
        "last_used",
        "mapping",
        "number",
        "record",
        "refused",
        "size",
    )

    def __init__(self, number: int, size: int) -> None:
        self.closed = False
        """Whether it is used for nothing new, and goes back to the system as it comes free."""
        self.refused = False
        """Whether the daemon may have refused it, for want of something that it may have by now."""
        self.number = number
        self.size = size
        self.fd = create_segment(size)
        self.mapping: mmap.mmap = map_segment(self.fd, size)
        self.address = _address(np.frombuffer(self.mapping, np.uint8))
        self.last_used = 0
        self.record = _SegmentRecord(size)

    @property
    def passed_to(self) -> object:
        """The connection over which the daemon has received it; None for none."""
        return self.record.passed_to

    @passed_to.setter
    def passed_to(self, connection: object) -> None:
        self.record.passed_to = connection
        self.refused = False

    def is_to_be_passed(self, connection: object) -> bool:
        """Whether the daemon behind *connection* lacks it, as far as is known."""
        return self.refused or self.passed_to is not connection

    def give_back(self, start: int, length: int) -> None:
        """Leave the system the pages of a range that is used for nothing any more."""
        give_back(self.fd, start, length)

    def __del__(self) -> None:
        # The descriptor is kept as long as anything may refer to the memory: a user's array
        # may have to be passed to the next daemon. The mapping goes with its last view.
        if hasattr(self, "fd"):  # an interrupt may have come before that
            os.close(self.fd)


class Block:
    """A piece of a segment; returns to its pool when it is garbage."""

    __slots__ = ("__weakref__", "found", "number", "offset", "segment", "size")

    def __init__(self, segment: Segment, offset: int, size: int, number: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self.number = number
        """Of its own, under which it is known as taken."""
        self.found = False
        """Whether :meth:`Pool.find` knows it."""

    def bytes(self, length: int) -> Bytes:
        """Return the first *length* bytes, writable; does not keep the block from being reused."""
        return np.frombuffer(self.segment.mapping, np.uint8, length, self.offset)

    def ref(self, length: int, start: int = 0) -> Ref:
        """Return the name of *length* bytes from *start* on."""
        return Ref(self.segment.number, self.offset + start, length)

    def detach(self) -> None:
        """Make it private to this process; see :meth:`Pool.detach`, which keeps the books too."""
        segment = self.segment
        detach(segment.address + self.offset, self.size, segment.fd, self.offset)

    def clear_seal(self, length: int) -> None:
        """Zero the place behind a result of *length* bytes where the daemon seals it."""
        SEAL.pack_into(self.segment.mapping, seal_offset(self.ref(length)), 0, 0)

    def sealed_by(self, length: int) -> tuple[int, int]:
        """Return the (join id, sequence number) of the op whose result is complete here."""
        join_id, seq = SEAL.unpack_from(self.segment.mapping, seal_offset(self.ref(length)))
        return join_id, seq


class Pool:
    """All segments of one connection. Not thread-safe, apart from the return of blocks."""

    def __init__(self, budget: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        """Bytes; set anew by every daemon that is attached to."""
        self._closed = False
        self.usable = True
        """False once the system turned out to have no shared memory at all."""
        self.dropped: list[tuple[int, object]] = []
        """Numbers of segments that are gone from here, and the connection that they were passed
        over; the daemon has yet to be told."""
        self.lent = 0
        """Bytes that users' arrays hold."""
        self.now = now
        """The time, in seconds."""
        self._segments: dict[int, Segment] = {}
        """Those that blocks are taken from."""
        self._records: dict[int, _SegmentRecord] = {}
        """Of all segments, retired ones that are still referred to included."""
        self._taken: dict[int, _BlockRecord] = {}
        """Of all blocks that have not come back."""
        self._arena = Arena()
        self._sound = True
        """Whether arena and lent bytes are what the records say: else a step did not end."""
        self.retention = Retention()
        """Told of each call by whoever makes it."""
        self._moved = False
        """Whether a block was taken or came back since the last :meth:`trim`."""
        self.surplus = Surplus()
        """What goes back to the system, outside of the lock: the caller of :meth:`trim` sees to it,
        and a caller of :meth:`take` that got nothing."""
        self.next_trim = 0.0
        """When to call :meth:`trim`: there may be memory to give back by then."""
        self.wake: Callable[[], None] = _nobody
        """Called when that has become sooner; called too often is harmless."""
        self._resting = False
        """Whether :attr:`next_trim` is far off, or never, until something is taken."""
        self._loans: dict[int, tuple[Block, _GoneRef]] = {}
        """Users' arrays, each with its block."""
        self._ended: deque[_GoneRef] = deque()
        """Users' arrays that are gone: from any thread, at any moment."""
        self._returned: deque[_GoneRef] = deque()
        """Likewise blocks."""
        self._forgotten: deque[_GoneRef] = deque()
        """Likewise segments."""
        self._starts: list[int] = []  # addresses of lent blocks, sorted
        self._lent_blocks: list[weakref.ref[Block]] = []
        self._last_block = 0
        self._last_loan = 0
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def size(self) -> int:
        """Bytes of all segments, retired ones that are still referred to included."""
        return sum([record.size for record in self._records.values()])

    @property
    def given_back(self) -> int:
        """Bytes of them that are no memory any more; the rest of such a segment may be in use."""
        return sum([record.given_back for record in self._records.values()])

    @property
    def kept(self) -> int:
        """Bytes of memory, in use or not."""
        return self.size - self.given_back

    @property
    def used(self) -> int:
        """Bytes of all blocks that have not come back."""
        return sum([record.size for record in self._taken.values()])

    @property
    def has_returns(self) -> bool:
        """Whether blocks have come back since the last :meth:`take`."""
        return bool(self._ended or self._returned or self._forgotten)

    def take(self, length: int) -> Block | None:
        """Return a block for a tensor of *length* bytes and its seal.

        None means: something must come back first, as the budget is used up for now; or, where
        there is :attr:`surplus`, that must go back to the system.

        Raises:
            ResourceExhausted: it can never fit, or the system has no memory for it.
            RingError: all of it is closed.
        """
        if self._closed:
            raise errors.RingError("the ring is closed")
        self._collect()
        size = _block_size(length)
        self._sound = False
        place = self._arena.take(size) or self._take_new(size, length)
        if place is None:
            self._sound = True
            return None
        number, start = place
        self._last_block += 1
        segment, block_number = self._segments[number], self._last_block
        segment.last_used = block_number
        block = Block(segment, start, size, block_number)
        gone = _gone_ref(block, self._returned, block_number)
        self._taken[block_number] = _BlockRecord(segment, start, size, gone)
        self._sound = self._moved = True
        if self._resting or self.surplus:
            self._rouse()
        return block

    def _rouse(self) -> None:
        """Have :meth:`trim` called: memory is to go back, or may be once the program is idle."""
        self.next_trim = 0.0
        self.wake()
        self._resting = False  # last: where an interrupt comes before, the next take does it again

    def take_all(self, lengths: Sequence[int]) -> list[Block] | None:
        """Return a block for each of *lengths*, or None for none of them; as :meth:`take`.

        Raises:
            ResourceExhausted: they can never fit, whatever comes back.
        """
        while True:
            blocks: list[Block] = []
            for length in lengths:
                block = self.take(length)
                if block is None:
                    break
                blocks.append(block)
            else:
                return blocks
            # If what comes back now is ours alone, there is no reason to try again.
            ours = len(blocks)
            del block
            blocks.clear()
            if self._collect() <= ours:
                if sum(map(_block_size, lengths)) > self.budget:
                    raise self._beyond_budget(
                        f"what the call needs, {sum(lengths)} bytes for input and result, does"
                    )
                return None

    def lend(self, block: Block, length: int, *, as_input: bool = False) -> Bytes:
        """Return the first *length* (> 0) bytes of *block* as an array for the user to keep.

        *as_input*: it is meant to be handed over where it is, so :meth:`find` shall know it. A
        result is not, whoever changes it while an op is under way must not change the op.

        The block stays taken until the array and all views of it are garbage. That works
        because numpy lets every view refer to the array at the end of the chain of bases, and
        that chain ends here: the base of this array is a mapping, not an array.
        """
        array = block.bytes(length)
        if self._closed:
            return array
        self._mend()
        record = self._taken[block.number]
        more = length - record.lent  # lent before, perhaps, in a step that was interrupted
        self._sound = False
        record.lent = length
        self.lent += more
        self._sound = True
        if as_input:
            block.found = True
            start = block.segment.address + block.offset
            place, reference = bisect.bisect_left(self._starts, start), weakref.ref(block)
            # Two stores, and no call, between which an interrupt could come.
            self._starts[place:place], self._lent_blocks[place:place] = [start], [reference]
        self._last_loan += 1
        loan = self._last_loan
        self._loans[loan] = (block, _gone_ref(array, self._ended, loan))
        return array

    def find(self, array: npt.NDArray[Any]) -> tuple[Block, int] | None:
        """Return the input block that *array*, C-contiguous, lies in, and the offset in it."""
        if not self._starts:
            return None
        address = _address(array)
        place = bisect.bisect_right(self._starts, address) - 1
        block = self._lent_blocks[place]() if place >= 0 else None
        if block is None:
            return None
        start = address - self._starts[place]
        return (block, start) if start + array.nbytes <= self._taken[block.number].lent else None

    def retire(self, block: Block) -> None:
        """Never use the memory of *block* again: the daemon may still be at work in it.

        Its segment is used for nothing new, and the daemon is told to drop it once nothing here
        refers to it. Over there it stays mapped for as long as it is needed, which is more than
        we can know.
        """
        if block.segment.passed_to is not None:
            self._mend()
            self._retire(block.segment)

    def detach(self, block: Block) -> None:
        """Make an input block the user's alone, and leave the daemon its content as it is now.

        Raises:
            OSError: the system does not let us.
        """
        if not block.found:
            return  # it is already
        # In this order, as an interrupt may end it anywhere, and it is then done again: before
        # pages are private, nothing new comes to stand there.
        self._mend()
        self._retire(block.segment)
        self._forget_place(block.segment.address + block.offset)
        block.detach()
        block.found = False

    def trim(self) -> None:
        """Let go of what is more than should be kept; at :attr:`next_trim`, which this sets.

        The caller then gives back what is :attr:`surplus`, and tells the daemon of what is
        :attr:`dropped`.
        """
        if self._closed:
            self.next_trim = math.inf
            return
        now = self.now()
        self._collect()
        self._let_go(self.kept - self.retention.limit(self.used, now))
        # What is in use may come back at any moment, which nothing tells: it is looked at again.
        seconds = self.retention.next_look(now, more=self._moved, held=bool(self._taken))
        self._moved = False
        self._resting = seconds is None or seconds > QUIET
        self.next_trim = math.inf if seconds is None else now + seconds

    def close(self) -> None:
        """Give everything back that no user's array holds; that goes with the array.

        From now on nothing here holds on to any memory: an array does so by itself, and what a
        block holds beyond that, such as the descriptor, was for the next daemon.
        """
        self._closed = True
        self._starts, self._lent_blocks = [], []
        self._taken.clear()  # before the loans: what comes back from now on is not looked at
        self._segments.clear()
        self._records.clear()
        self._loans.clear()
        self.surplus.clear()
        self._sound = False

    # --- what comes back ----------------------------------------------------------------

    def _collect(self) -> int:
        """Take in what has come back; return how many blocks that was."""
        self._mend()
        count = 0
        ended, returned = self._ended, self._returned
        while ended:  # what was acted on goes last: once more is harmless
            self._loans.pop(ended[0].number, None)
            ended.popleft()
        while returned:  # perhaps by that
            self._take_back(returned[0].number)
            returned.popleft()
            self._moved = True
            count += 1
        self.note_dropped_segments()
        return count

    def _take_back(self, block: int) -> None:
        record = self._taken.get(block)
        if record is None:
            return
        segment, start, size = record.segment, record.start, record.size
        if self._starts:
            self._forget_place(segment.address + start)
        self._sound = False
        if not self._arena.give(segment.number, start, size) and segment.closed:
            self.surplus.add(segment, start, size)
            segment.record.given_back += size  # no call follows: both stores are made, or none
        del self._taken[block]
        self.lent -= record.lent
        self._sound = True

    def note_dropped_segments(self) -> None:
        """Take in which segments nothing refers to any more, for :attr:`dropped`."""
        forgotten = self._forgotten
        while forgotten:
            number = forgotten[0].number
            record = self._records.get(number)
            if record is not None and record.passed_to is not None:
                self.dropped.append((number, record.passed_to))
            self._records.pop(number, None)
            forgotten.popleft()

    def _mend(self) -> None:
        """Make anew what follows from the records, where a step did not come to its end."""
        if self._sound:
            return
        taken: dict[int, list[tuple[int, int]]] = {}
        for record in self._taken.values():
            taken.setdefault(record.segment.number, []).append((record.start, record.size))
        arena = Arena()
        for number, segment in self._segments.items():
            arena.add(number, segment.size, taken.get(number, ()))
        self._arena = arena
        self.lent = sum([record.lent for record in self._taken.values()])
        self._sound = True

    def _forget_place(self, start: int) -> None:
        place = bisect.bisect_left(self._starts, start)
        if self._starts[place : place + 1] == [start]:
            del self._starts[place], self._lent_blocks[place]

    # --- segments -----------------------------------------------------------------------

    def _beyond_budget(self, what: str) -> errors.ResourceExhausted:
        """Return the error for *what* (with its verb), which is more than all that there may be."""
        return errors.ResourceExhausted(
            f"{what} not fit into ipc.segment_budget = {self.budget} bytes; raise it in the "
            "daemon's config, or reduce it in parts"
        )

    def _take_new(self, size: int, length: int) -> tuple[int, int] | None:
        """Return the place of a block in a new segment, or None where there is no room for it."""
        if size > self.budget:
            raise self._beyond_budget(f"a tensor of {length} bytes does")
        limit = self.retention.limit(self.used + size, self.now())
        # Many small blocks share a segment, the more the more of them there are: each segment
        # costs a descriptor on both sides. A large one has room for those of similar size.
        slab = min(max(_MIN_SLAB, self.used // 8), _MAX_SLAB)
        whole = max(slab, segment_size_for(size))
        if self.size + whole > self.budget or self.kept + whole > limit:
            whole = size
            self._let_go(self.kept + size - limit)
            if self.surplus:  # first it goes back: what is kept is bounded at each moment
                return None
        if not self._make_room(whole):
            return None
        try:
            segment = self._make(whole)
        except OSError as error:
            segment_or_none = self._second_try(whole, size, error)
            if segment_or_none is None:
                raise self._no_memory(size, error) from error
            segment = segment_or_none
        self._next_number += 1
        number, record = segment.number, segment.record
        record.gone = _gone_ref(segment, self._forgotten, number)
        self._records[number] = record
        self._segments[number] = segment
        self._arena.add(number, segment.size)
        return self._arena.take(size)

    def _make(self, size: int) -> Segment:
        return Segment(self._next_number, size)

    def _second_try(self, size: int, least: int, error: OSError) -> Segment | None:
        """Give back what is idle, at once, then ask the system for the least that will do."""
        if error.errno not in _NO_MEMORY:
            return None
        self._drop_idle(self.size)
        if not self.surplus and size <= least:
            return None
        self.surplus.give_back_at_once()
        self.note_dropped_segments()
        try:
            return self._make(least)
        except OSError:
            return None

    def _no_memory(self, size: int, error: OSError) -> errors.ResourceExhausted:
        if error.errno not in _NO_MEMORY and not self._segments:
            self.usable = False
        remedy = "free memory, or raise the limit it names"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "close files, or allow more (ulimit -n)"
        return errors.ResourceExhausted(
            f"the system has no {size} bytes of shared memory for a tensor "
            f"({error.strerror or error}): {remedy}"
        )

    def _make_room(self, size: int) -> bool:
        """Whether there is room for *size* bytes more; else let go of idle ones, if that helps.

        A segment counts, here and in the daemon, until it has gone back to the system.
        """
        excess = self.size + size - self.budget
        if excess > 0:
            if sum(segment.size for segment in self._idle()) >= excess:
                self._drop_idle(excess)
            return False
        if len(self._records) >= _MAX_SEGMENTS:
            self._drop_idle(1)
            return False
        return True

    def _idle(self) -> list[Segment]:
        """Return the segments of which nothing is in use, longest unused first."""
        idle = [s for s in self._segments.values() if self._arena.free_in(s.number) == s.size]
        return sorted(idle, key=_last_used)

    def _drop_idle(self, amount: int) -> int:
        """Let go of idle segments, up to *amount* bytes; return how many they have."""
        freed = 0
        for segment in self._idle():
            if freed >= amount:
                break
            freed += segment.size
            self._close(segment)
        return freed

    def _let_go(self, amount: int) -> None:
        """Let go of *amount* bytes or all that are free: idle segments, then parts of others."""
        if amount <= 0:
            return
        freed = self._drop_idle(amount)
        for segment in sorted(self._segments.values(), key=_last_used):
            if freed >= amount:
                break
            free = self._arena.free_in(segment.number)
            if free:
                freed += free
                self._close(segment)

    def _close(self, segment: Segment) -> None:
        """Use *segment* for nothing new, and let go of what is free in it."""
        ranges = self._arena.ranges(segment.number)
        # First, as an interrupt may end this: what goes back must not be used again.
        self._retire(segment)
        segment.closed = True
        for start, length in ranges:
            self.surplus.add(segment, start, length)
        segment.record.given_back = sum([length for _, length in ranges])

    def _retire(self, segment: Segment) -> None:
        """Use *segment* for nothing new; what is in use of it may be so over there, too."""
        segment.closed = False
        if segment.number in self._segments:
            sound, self._sound = self._sound, False
            del self._segments[segment.number]
            self._arena.remove(segment.number)
            self._sound = sound


def _gone_ref(thing: object, gone: deque[_GoneRef], number: int) -> _GoneRef:
    """Return what adds itself, with *number*, to *gone* when *thing* is gone."""
    reference = _GoneRef(thing, gone.append)
    reference.number = number
    return reference


def _nobody() -> None:
    """Nobody is to be woken."""


def _block_size(length: int) -> int:
    """Return the block size for a tensor of *length* bytes: whole pages, and one for the seal."""
    return -(-max(length, 1) // _PAGE) * _PAGE + _PAGE


def segment_size_for(size: int) -> int:
    """Return the size of a new segment for a block of *size* bytes: at most an eighth more.

    Such sizes come in eight steps per octave, so that tensors of similar size find room.
    """
    length = size - _PAGE
    step = max(_PAGE, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step + _PAGE


def _last_used(segment: Segment) -> int:
    return segment.last_used


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


assert SEAL.size + SEAL_ALIGN <= _PAGE  # noqa: S101 - the room behind each tensor
