"""The client's shared memory: segments that are kept warm, cut into blocks, and taken back.

Fresh pages cost more than the copy into them, so blocks are used again. A block is free when
nothing refers to its :class:`Block` any more: neither an op, nor an array that a user holds.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ringd import errors
from ringd.host.memory import create_segment, detach, map_segment
from ringd.wire.border import SEAL, SEAL_ALIGN, Ref, seal_offset

_PAGE = mmap.PAGESIZE
_MIN_SLAB = 1 << 20
_MAX_SLAB = 16 << 20
_MAX_SEGMENTS = 1000  # the daemon takes 1024
_NO_MEMORY = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.EFBIG)

Bytes = npt.NDArray[np.uint8]


class Segment:
    """One piece of shared memory, cut into blocks of one size."""

    __slots__ = (
        "_forgotten",
        "address",
        "block_size",
        "fd",
        "free",
        "last_used",
        "mapping",
        "number",
        "passed_to",
        "retired",
        "size",
    )

    def __init__(
        self, number: int, size: int, block_size: int, forgotten: deque[tuple[int, int, object]]
    ) -> None:
        self.fd = -1
        self.passed_to: object = None
        """The connection over which the daemon has received it; None for none."""
        self.retired = False
        """Whether it is used for nothing new; it counts until nothing refers to it any more."""
        self.number = number
        self.size = size
        self.block_size = block_size
        self.fd = create_segment(size)
        self.mapping: mmap.mmap = map_segment(self.fd, size)
        self.address = _address(np.frombuffer(self.mapping, np.uint8))
        self.free = [i * block_size for i in reversed(range(size // block_size))]
        self.last_used = 0
        self._forgotten = forgotten

    @property
    def idle(self) -> bool:
        """Whether all of its blocks are free."""
        return len(self.free) * self.block_size == self.size

    def __del__(self) -> None:
        # The descriptor is kept as long as anything may refer to the memory: a user's array
        # may have to be passed to the next daemon. The mapping goes with its last view.
        if self.fd >= 0:
            os.close(self.fd)
        if self.retired:  # may run at any moment, as Block's
            self._forgotten.append((self.number, self.size, self.passed_to))


class Block:
    """A piece of a segment; returns to its pool when it is garbage."""

    __slots__ = ("__weakref__", "_returned", "found", "lent", "offset", "segment")

    def __init__(self, segment: Segment, offset: int, returned: deque[Any]) -> None:
        self.segment = segment
        self.offset = offset
        self.lent = 0
        """Bytes that a user's array has of it."""
        self.found = False
        """Whether :meth:`Pool.find` knows it."""
        self._returned = returned

    def __del__(self) -> None:
        # May run at any moment, in any thread, under any lock: only note it. Where an interrupt
        # came before all was set, the block was never used, nor will be.
        if hasattr(self, "_returned"):
            self._returned.append((self.segment, self.offset, self.lent, self.found))

    def bytes(self, length: int) -> Bytes:
        """Return the first *length* bytes, writable; does not keep the block from being reused."""
        return np.frombuffer(self.segment.mapping, np.uint8, length, self.offset)

    def ref(self, length: int, start: int = 0) -> Ref:
        """Return the name of *length* bytes from *start* on."""
        return Ref(self.segment.number, self.offset + start, length)

    def detach(self) -> None:
        """Make it private to this process; see :meth:`Pool.detach`, which keeps the books too."""
        segment = self.segment
        detach(segment.address + self.offset, segment.block_size, segment.fd, self.offset)

    def clear_seal(self, length: int) -> None:
        """Zero the place behind a result of *length* bytes where the daemon seals it."""
        SEAL.pack_into(self.segment.mapping, seal_offset(self.ref(length)), 0, 0)

    def sealed_by(self, length: int) -> tuple[int, int]:
        """Return the (join id, sequence number) of the op whose result is complete here."""
        join_id, seq = SEAL.unpack_from(self.segment.mapping, seal_offset(self.ref(length)))
        return join_id, seq


class Pool:
    """All segments of one connection. Not thread-safe, apart from the return of blocks."""

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        """Bytes; set anew by every daemon that is attached to."""
        self.usable = True
        """False once the system turned out to have no shared memory at all."""
        self.dropped: list[tuple[int, object]] = []
        """Numbers of segments that are gone from here, and the connection that they were passed
        over; the daemon has yet to be told."""
        self.size = 0
        """Bytes of all segments, retired ones that are still referred to included."""
        self.lent = 0
        """Bytes that users' arrays hold."""
        self._segments: dict[int, Segment] = {}
        self._by_block_size: dict[int, list[Segment]] = {}
        self._returned: deque[tuple[Segment, int, int, bool]] = deque()
        self._forgotten: deque[tuple[int, int, object]] = deque()
        """Retired segments that nothing refers to any more: number, size, passed to."""
        self._starts: list[int] = []  # addresses of lent blocks, sorted
        self._lent_blocks: list[weakref.ref[Block]] = []
        self._clock = 0
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def has_returns(self) -> bool:
        """Whether blocks have come back since the last :meth:`take`."""
        return bool(self._returned or self._forgotten)

    def take(self, length: int) -> Block | None:
        """Return a block for a tensor of *length* bytes and its seal.

        None means: the budget is used up for now, and something must come back first.

        Raises:
            ResourceExhausted: it can never fit, or the system has no memory for it.
        """
        self._collect()
        block_size = _block_size(length)
        self._clock += 1
        for segment in reversed(self._by_block_size.get(block_size, ())):
            if segment.free:
                break
        else:
            found = self._new_segment(block_size, length)
            if found is None:
                return None
            segment = found
        segment.last_used = self._clock
        return Block(segment, segment.free.pop(), self._returned)

    def take_all(self, lengths: Sequence[int]) -> list[Block] | None:
        """Return a block for each of *lengths*, or None for none of them; as :meth:`take`."""
        while True:
            blocks: list[Block] = []
            for length in lengths:
                block = self.take(length)
                if block is None:
                    break
                blocks.append(block)
            else:
                return blocks
            # What comes back now is ours alone, and no reason to try again.
            ours = len(blocks)
            del block
            blocks.clear()
            others = len(self._returned) - ours
            self._collect()
            if others <= 0:
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
        block.lent = length
        self.lent += length
        if as_input:
            block.found = True
            start = block.segment.address + block.offset
            place, reference = bisect.bisect_left(self._starts, start), weakref.ref(block)
            # Two stores, and no call, between which an interrupt could come.
            self._starts[place:place], self._lent_blocks[place:place] = [start], [reference]
        weakref.finalize(array, _let_go, block).atexit = False
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
        return (block, start) if start + array.nbytes <= block.lent else None

    def retire(self, block: Block) -> None:
        """Never use the memory of *block* again: the daemon may still be at work in it.

        Its segment serves out its time, and the daemon is told to drop it once nothing here
        refers to it. Over there it stays mapped for as long as it is needed, which is more than
        we can know.
        """
        if block.segment.passed_to is not None:
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
        self._retire(block.segment)
        self._forget_place(block.segment.address + block.offset)
        block.detach()
        block.found = False

    def close(self) -> None:
        """Give everything back that no user's array holds."""
        self._collect()
        self._segments.clear()
        self._by_block_size.clear()
        self.size = 0

    def _collect(self) -> None:
        if self._returned:
            self._take_back()
        while self._forgotten:  # perhaps by that
            number, size, passed_to = self._forgotten.popleft()
            self.size -= size
            if passed_to is not None:
                self.dropped.append((number, passed_to))

    def _take_back(self) -> None:
        returned = self._returned
        while returned:
            segment, offset, lent, found = returned.popleft()
            segment.free.append(offset)
            self.lent -= lent
            if found:
                self._forget_place(segment.address + offset)

    def _forget_place(self, start: int) -> None:
        place = bisect.bisect_left(self._starts, start)
        if self._starts[place : place + 1] == [start]:
            del self._starts[place], self._lent_blocks[place]

    def _new_segment(self, block_size: int, length: int) -> Segment | None:
        if block_size > self.budget:
            raise errors.ResourceExhausted(
                f"a tensor of {length} bytes does not fit into ipc.segment_budget = "
                f"{self.budget} bytes; raise it in the daemon's config, or reduce it in parts"
            )
        # Many small blocks share a segment, the more the more of them there are: each segment
        # costs a descriptor on both sides.
        peers = self._by_block_size.get(block_size, [])
        slab = min(max(_MIN_SLAB, sum(segment.size for segment in peers)), _MAX_SLAB)
        size = max(1, slab // block_size) * block_size
        if not self._make_room(size):
            size = block_size
            if not self._make_room(size):
                return None
        try:
            segment = self._make(size, block_size)
        except OSError as error:
            segment_or_none = self._second_try(size, block_size, error)
            if segment_or_none is None:
                raise self._no_memory(block_size, error) from error
            segment = segment_or_none
        self._next_number += 1
        self._segments[segment.number] = segment
        self._by_block_size.setdefault(block_size, []).append(segment)
        self.size += segment.size
        return segment

    def _make(self, size: int, block_size: int) -> Segment:
        return Segment(self._next_number, size, block_size, self._forgotten)

    def _second_try(self, size: int, block_size: int, error: OSError) -> Segment | None:
        """Give back what is idle, then ask the system for the least that will do."""
        if error.errno not in _NO_MEMORY or not (self._evict(self.size) or size > block_size):
            return None
        try:
            return self._make(block_size, block_size)
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
        if len(self._segments) >= _MAX_SEGMENTS and not self._evict(1):
            return False
        excess = self.size + size - self.budget
        if excess <= 0:
            return True
        idle = sum(segment.size for segment in self._segments.values() if segment.idle)
        return idle >= excess and self._evict(excess)

    def _evict(self, amount: int) -> bool:
        """Drop idle segments, longest unused first, up to *amount* bytes; whether any was."""
        idle = sorted(
            (segment for segment in self._segments.values() if segment.idle),
            key=lambda segment: segment.last_used,
        )
        freed = 0
        for segment in idle:
            if freed >= amount:
                break
            freed += segment.size
            self._drop(segment)
        return freed > 0

    def _retire(self, segment: Segment) -> None:
        if segment.number in self._segments:
            segment.retired = True
            self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        with contextlib.suppress(ValueError):  # an interrupt came after that
            self._by_block_size[segment.block_size].remove(segment)
        self._segments.pop(segment.number, None)

    def _drop(self, segment: Segment) -> None:
        self.size -= segment.size
        self._remove(segment)
        if segment.passed_to is not None:
            self.dropped.append((segment.number, segment.passed_to))


def _block_size(length: int) -> int:
    """Return the block size for a tensor of *length* bytes.

    Sizes come in eight steps per octave, so that similar tensors share blocks and at most an
    eighth is wasted; a page more holds the seal, and keeps powers of two from wasting that.
    """
    step = max(_PAGE, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-max(length, 1) // step) * step + _PAGE


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _let_go(_block: Block) -> None:
    """Do nothing: to have held the block until now was all."""


assert SEAL.size + SEAL_ALIGN <= _PAGE  # noqa: S101 - the room behind each tensor
