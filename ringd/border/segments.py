"""The memory segments that one client has passed, and views into them."""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref

from ringd import errors
from ringd.border.accounts import Account
from ringd.host.limits import OWN, OpenFiles
from ringd.host.memory import MAPPING_DESCRIPTORS, SegmentError, check_segment, map_segment
from ringd.wire.border.messages import Ref

MAX_SEGMENTS = 1024
"""Per client."""


SHARE = 0.5
"""Of the reserve of descriptors, that segments leave alone: who is in comes before newcomers."""


class SegmentAbuse(Exception):
    """The client broke the rules of the lifeline; the message says which."""


class SegmentTable:
    """Segments by the client's own numbers.

    A segment that cannot be had (over the budget, not sealed, no memory) is remembered with
    the reason, and whatever call refers to it fails with that reason; the client lives on. When it
    is added again, that is tried again: the reason may have passed.

    A dropped segment stays mapped while anything still looks into it: the views keep the
    mapping alive, and only its end gives back what it counts for.
    """

    def __init__(self, account: Account, open_files: OpenFiles = OWN) -> None:
        """*account*: of the client, in which its segments count."""
        self._account = account
        self._open_files = open_files
        self._mappings: dict[int, mmap.mmap] = {}
        self._refusals: dict[int, errors.RingError] = {}

    def __len__(self) -> int:
        return len(self._mappings)

    def __contains__(self, segment: int) -> bool:
        """Whether it is mapped; one that was refused may be on its way again."""
        return segment in self._mappings

    def add(self, segment: int, size: int, fd: int | None) -> None:
        """Map the client's new segment; *fd* remains the caller's to close.

        Args:
            segment: the client's number for it.
            size: in bytes.
            fd: the descriptor that came with the record; None when the kernel could not
                deliver it because this process has too many open.

        The same once more is harmless: a client that was interrupted does not know what it said.

        Raises:
            SegmentAbuse: the number is in use for another segment, or there are too many.
        """
        known = self._mappings.get(segment)
        if known is not None:
            if len(known) == size:
                return
            raise SegmentAbuse(f"segment {segment} was added twice, with different sizes")
        self._refusals.pop(segment, None)
        if len(self._mappings) + len(self._refusals) >= MAX_SEGMENTS:
            raise SegmentAbuse(f"more than {MAX_SEGMENTS} segments")
        try:
            mapping = self._map(size, fd)
        except errors.RingError as refusal:
            self._refusals[segment] = refusal
        else:
            self._mappings[segment] = mapping

    def drop(self, segment: int) -> None:
        """Forget a segment; harmless where there is none of that number."""
        self._mappings.pop(segment, None)
        self._refusals.pop(segment, None)

    def view(self, ref: Ref, *, writable: bool) -> memoryview:
        """Return the bytes that *ref* stands for.

        Raises:
            Refused: unknown segment, or a range outside of it.
            ResourceExhausted: the segment could not be mapped.
        """
        mapping = self._mappings.get(ref.segment)
        if mapping is None:
            refusal = self._refusals.get(ref.segment)
            if refusal is not None:
                raise type(refusal)(*refusal.args)
            raise errors.Refused(f"segment {ref.segment} was never passed to the daemon")
        end = ref.offset + ref.length
        if ref.offset < 0 or ref.length < 0 or end > len(mapping):
            raise errors.Refused(
                f"bytes {ref.offset} to {end} lie outside of segment {ref.segment}, "
                f"which has {len(mapping)}"
            )
        view = memoryview(mapping)[ref.offset : end]
        return view if writable else view.toreadonly()

    def clear(self) -> None:
        """Forget all segments; memory goes with the last view.

        In a thread of its own: the last one to unmap memory gives it back to the system, which
        takes 0.1 s for each GiB, and other groups would wait for that.
        """
        mappings = list(self._mappings.values())
        self._mappings.clear()
        self._refusals.clear()
        if mappings:
            thread = threading.Thread(target=_unmap, args=(mappings,), name="unmap", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: then here and now
                thread.start()

    def _map(self, size: int, fd: int | None) -> mmap.mmap:
        if fd is None:
            raise errors.ResourceExhausted(
                "the daemon has too many open files to take another memory segment; raise its "
                "limit (LimitNOFILE=, ulimit -n)"
            )
        if size == 0:
            raise errors.Refused("a memory segment of 0 bytes")
        account = self._account
        try:
            memory = check_segment(fd, size)
            full = (
                account.memory.refusal(memory)
                or account.files.refusal(MAPPING_DESCRIPTORS)
                or self._open_files.refusal(MAPPING_DESCRIPTORS, share=SHARE)
            )
            if full:
                raise errors.ResourceExhausted(f"no room for a memory segment: {full}")
            mapping = map_segment(fd, size)
        except SegmentError as error:
            raise errors.Refused(f"memory segment refused: {error}") from error
        except (OSError, OverflowError, ValueError) as error:
            raise errors.ResourceExhausted(
                f"the daemon cannot map a segment of {size} bytes: {error}"
            ) from error
        account.memory.take(memory)
        account.files.take(MAPPING_DESCRIPTORS)
        weakref.finalize(mapping, _unmapped, account, memory).atexit = False
        return mapping


def _unmapped(account: Account, memory: int) -> None:
    account.memory.give(memory)
    account.files.give(MAPPING_DESCRIPTORS)


def _unmap(mappings: list[mmap.mmap]) -> None:
    for mapping in mappings:
        with contextlib.suppress(BufferError):  # a call that goes on for others looks into it
            mapping.close()
