"""The one loop that everything in a daemon runs on.

One iteration: wait for sockets, run their callbacks (those that take long last), then the timers
that are due, then what was queued by :meth:`Loop.call_soon`. The loop sleeps only when nothing is
queued.

An exception from a callback is a bug and leaves :meth:`Loop.run`.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from types import FrameType
from typing import Any, Protocol, Union

from ringd.host import polling

EVENT_READ = polling.EVENT_READ
EVENT_WRITE = polling.EVENT_WRITE

PAUSE_THRESHOLD = 1.0
"""Seconds by which a timer must be late before the process is taken to have been asleep."""

_LONGEST_SLEEP = 3600.0  # seconds; epoll takes no more than some weeks

_COMPACT_FROM = 64
"""Cancelled timers are left in the heap until there are this many, and they are the majority."""


SPIN = 100e-6
"""Seconds for which a wait looks before it sleeps: an idle core wakes up some 50 us late."""
_SPINS_IN_VAIN = 8
"""Waits that may turn out longer, one after the other, before the next ones sleep at once."""
_APART = 0.1
"""Seconds of a wait after which events follow each other closely no more: the frames of a heartbeat
do, two of them, and then nothing comes for longer."""
_CORE_TAKEN = 2.5e-3
"""Seconds after which whoever has been yielded to is no partner in the call, but computes: it has
the core until the system's next tick, 4 ms on most Linux machines."""
_TAKEN_FOR = 5.0
"""Seconds for which a core counts as taken: the kernel prefers a sleeper to such a program."""

Events = list[tuple[int, int]]
"""(descriptor, what it is ready for)."""
_EVENTS = polling.EVENTS
_descriptor, _events = itemgetter(0), itemgetter(1)


class HasFileno(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


FileLike = Union[int, HasFileno]
EventCallback = Callable[[int], None]
Callback = Callable[[], None]


def _fileno(fileobj: FileLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _ignore(_events: int) -> None:
    """Take the place of a callback that was removed while its event was under way."""


class _Watch:
    """What is called for a file; outlives its removal within one iteration."""

    __slots__ = ("bulky", "callback", "events")

    def __init__(self, events: int, callback: EventCallback, *, bulky: bool) -> None:
        self.events = events
        self.callback = callback
        self.bulky = bulky


def _is_bulky(due: tuple[_Watch, int]) -> bool:
    return due[0].bulky


class Timer:
    """A callback that is due at :attr:`when` (the loop's clock, seconds)."""

    __slots__ = ("_loop", "callback", "when")

    def __init__(self, loop: Loop, when: float, callback: Callback) -> None:
        self._loop = loop
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Never run the callback; harmless when it has run or was cancelled."""
        if self.callback is not None:
            self.callback = None
            self._loop._timer_cancelled()  # noqa: SLF001 - the two halves of one thing


class AdaptiveWait:
    """Sleeps until events come, but looks for a moment first while they follow each other closely.

    Between two looks it yields, so that whoever it waits for can have this core. Where nothing
    happens it costs nothing, and where others need the processor it sleeps at once.
    """

    __slots__ = ("_now", "_select", "_short", "_sleeps_until", "_spins", "_yield")

    def __init__(
        self,
        select: Callable[[float | None], Events],
        now: Callable[[], float],
        yield_core: Callable[[], object],
    ) -> None:
        self._select = select
        self._now = now
        self._yield = yield_core
        self._short = False  # whether the last wait was a short one
        self._spins = 0  # how many waits may still spin, unless another short one comes
        self._sleeps_until = 0.0

    def __call__(self, timeout: float | None) -> Events:
        """Return what is ready within *timeout* seconds (None: no limit), or nothing."""
        if timeout == 0.0:
            return self._select(0.0)
        began = self._now()
        end = began + (SPIN if timeout is None else min(SPIN, timeout))
        if self._spins and began >= self._sleeps_until:
            self._spins -= 1
            ready = self._spin(began, end)
            if ready:
                self._spins = _SPINS_IN_VAIN
                return ready
        ready = self._select(timeout)
        now = self._now()
        if ready and now <= end:
            if self._short:
                self._spins = _SPINS_IN_VAIN
            self._short = True
        else:
            self._short = False
            if now - began > _APART:
                self._spins = 0
        return ready

    def _spin(self, now: float, end: float) -> Events:
        ready = self._select(0.0)
        while not ready and now < end:
            before = now
            self._yield()
            ready = self._select(0.0)
            now = self._now()
            if now - before > _CORE_TAKEN:
                self._sleeps_until = now + _TAKEN_FOR
                break
        return ready


class Loop:
    """A poller, timers, and ways in from signals and threads."""

    now = staticmethod(time.monotonic)
    """The loop's clock, in seconds. It stands still while the machine is suspended."""

    def __init__(self) -> None:
        self._poller = polling.poller()
        self._watches: dict[int, _Watch] = {}  # by descriptor
        self._wait = AdaptiveWait(self._poller.poll, self.now, os.sched_yield)
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self._cancelled = 0
        self._soon: deque[Callback] = deque()
        self._pause_callbacks: list[Callable[[float], None]] = []
        self._stopping = False
        self._signals: dict[int, Any] = {}
        self._old_wakeup_fd: int | None = None
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.add(self._wake_reader, EVENT_READ, self._woken)

    # --- files ------------------------------------------------------------------------

    def add(
        self, fileobj: FileLike, events: int, callback: EventCallback, *, bulky: bool = False
    ) -> None:
        """Call ``callback(events)`` whenever *fileobj* is ready for one of *events*.

        A *bulky* one may take long each time, so of all that are ready it comes after the others.

        Raises:
            KeyError: it is watched already.
        """
        fd = _fileno(fileobj)
        if fd in self._watches:
            raise KeyError(f"descriptor {fd} is watched already")
        self._poller.register(fd, events)
        self._watches[fd] = _Watch(events, callback, bulky=bulky)

    def modify(self, fileobj: FileLike, events: int) -> None:
        """Change the events that *fileobj* is watched for."""
        fd = _fileno(fileobj)
        self._poller.modify(fd, events)
        self._watches[fd].events = events

    def remove(self, fileobj: FileLike) -> None:
        """Stop watching *fileobj*; call this before closing it.

        No event of it is delivered any more, not even one that was found together with the
        event now being handled.
        """
        fd = _fileno(fileobj)
        self._watches.pop(fd).callback = _ignore
        with contextlib.suppress(OSError):  # it was closed behind our back
            self._poller.unregister(fd)

    # --- callbacks --------------------------------------------------------------------

    def call_soon(self, callback: Callback) -> None:
        """Run *callback* at the end of this iteration, before the loop sleeps."""
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Run *callback* after *delay* seconds."""
        timer = Timer(self, self.now() + delay, callback)
        self._timer_count += 1
        heapq.heappush(self._timers, (timer.when, self._timer_count, timer))
        return timer

    def call_threadsafe(self, callback: Callback) -> None:
        """Run *callback* in the loop's thread, soon; may be called from any thread.

        After :meth:`close` it does nothing.
        """
        self._soon.append(callback)
        self._wake()

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Run *callback* from the loop, not from the handler, whenever *signum* arrives.

        Only in the main thread. :meth:`close` puts the old handlers back.
        """

        def queue(_signum: int, _frame: FrameType | None) -> None:
            self._soon.append(callback)

        old = signal.signal(signum, queue)
        self._signals.setdefault(signum, old)
        if self._old_wakeup_fd is None:
            # Without it, a signal that arrives just before the loop sleeps would wait for
            # the next event: Python resumes an interrupted wait by itself.
            self._old_wakeup_fd = signal.set_wakeup_fd(
                self._wake_writer.fileno(), warn_on_full_buffer=False
            )

    def on_pause(self, callback: Callable[[float], None]) -> None:
        """Call ``callback(seconds)`` when the process turns out to have been asleep.

        That is: stopped, or kept from running so long that the earliest timer is late by more
        than :data:`PAUSE_THRESHOLD`. It is called before any event or timer, so that whoever
        measures a peer's silence can leave out our own.
        """
        self._pause_callbacks.append(callback)

    def forget_pause(self, callback: Callable[[float], None]) -> None:
        """Undo :meth:`on_pause`."""
        self._pause_callbacks.remove(callback)

    # --- running ----------------------------------------------------------------------

    def run(self) -> None:
        """Run until :meth:`stop`; what was queued before the call counts."""
        self._stopping = False
        while not self._stopping:
            self._iterate(self._settle())

    def stop(self) -> None:
        """Leave :meth:`run` when the current iteration is over."""
        self._stopping = True

    def close(self) -> None:
        """Release descriptors and give signals back; the loop cannot be used afterwards."""
        if self._old_wakeup_fd is not None:
            signal.set_wakeup_fd(self._old_wakeup_fd)
        for signum, old in self._signals.items():
            signal.signal(signum, old)
        self._signals.clear()
        self._poller.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _settle(self) -> float | None:
        """Run queued callbacks; return how long to sleep (None: until an event)."""
        soon = self._soon
        for _ in range(len(soon)):  # what these queue waits for the next look at the sockets
            soon.popleft()()
        if soon or self._stopping:
            return 0.0
        timers = self._timers
        if timers and timers[0][2].callback is None:
            self._earliest()
        return min(_LONGEST_SLEEP, max(0.0, timers[0][0] - self.now())) if timers else None

    def _iterate(self, timeout: float | None) -> None:
        ready = self._wait(timeout)
        # Looked up before any is called: a descriptor may be closed, and be another file's then.
        watches = map(self._watches.__getitem__, map(_descriptor, ready))
        due = list(zip(watches, map(_events, ready), strict=True))
        now, timers = self.now(), self._timers
        if timers and now - timers[0][0] > PAUSE_THRESHOLD:
            self._notice_pause(now)
        if len(due) > 1:
            due.sort(key=_is_bulky)
        for watch, events in due:
            watch.callback(events if events <= _EVENTS else watch.events)
        if timers and timers[0][0] <= now:
            self._run_timers(now)

    def _notice_pause(self, now: float) -> None:
        """Tell of a pause, unless the timer that is late was cancelled."""
        due = self._earliest()
        if due is not None and now - due > PAUSE_THRESHOLD:
            for callback in list(self._pause_callbacks):
                callback(now - due)

    def _earliest(self) -> float | None:
        """Return when the first timer is due, forgetting those that were cancelled before it."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0][0] if timers else None

    def _run_timers(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()

    def _timer_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _COMPACT_FROM and self._cancelled * 2 > len(self._timers):
            # In place: a loop over the timers may be under way.
            self._timers[:] = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes up anyway; closed: nobody cares
            self._wake_writer.send(b"\0")

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
