"""The thread that sees to a program's daemon, also while the program computes.

It sleeps on the lifeline. When the daemon dies it waits for the next one, and offers that what is
not finished everywhere; once a minute, when the daemon wakes it, and while calls wait for room in
the daemon, it takes messages in. Where the user wants to be told of losses at once, it asks the
daemon for signs of life. Memory that the program has not used for a while it gives back.
"""

from __future__ import annotations

import _thread
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ringd.client.channel import Channel, TurnedAwayError
from ringd.client.daemon import Daemon
from ringd.client.groups import Groups
from ringd.client.pump import Pump
from ringd.client.waker import Waker
from ringd.errors import Refused, ResourceExhausted, RingError
from ringd.host.holder import MAX_BYTES
from ringd.host.limits import is_out_of_files, out_of_files
from ringd.host.permission import why_not
from ringd.host.place import why_silent
from ringd.host.trust import StrangerError
from ringd.wire.border.lifeline import SUFFIX
from ringd.wire.text import printable

_FIRST_RETRY = 0.02  # seconds between the first two looks for a daemon
_LAST_RETRY = 0.1  # seconds between later ones; a look costs 0.1 ms, and calls wait for the next
_RETRY_GROWTH = 1.1  # often in the 0.3 s that a daemon takes to start; calls wait half a step more
_DRAIN_EVERY = 60.0  # seconds; nobody else takes messages in while the program computes
_LOST_AFTER = 3.0  # seconds, until the daemon has said what its own is
_BEATS = 4  # so many in that time
_LEAST_BEAT = 0.02  # seconds
_SURELY_FORBIDDEN = 0.2  # seconds; a daemon that is making its socket lets its group in last
_SURELY_FULL = 1.0  # seconds; other threads may close files


class Keeper:
    """Of one connection: its *daemon*, *groups* and *pump*. *paths* are where a daemon may be."""

    def __init__(self, paths: Sequence[str], daemon: Daemon, groups: Groups, pump: Pump) -> None:
        self._paths = list(paths)
        self._daemon = daemon
        self._groups = groups
        self._pump = pump
        self._next_beat = 0.0
        """When to ask for a sign of life, or at least to take messages in."""
        self._sleeps_until = 0.0
        """When it wants to be woken, at the latest."""
        self._ending = False
        self._waker = Waker()
        self.turned_away = ""
        """What a daemon said that took nobody in, at the last try."""
        self._forbidden: dict[str, str] = {}  # paths, and which stranger is there, if one is
        """Where there may be a daemon, and this user may not look; as of the last try."""
        self._forbidden_since = 0.0
        self._full: OSError | None = None
        """Why this process could not look for a daemon: its open files; as of the last try."""
        self._full_since = 0.0
        self._running = False
        self._ended = _thread.allocate_lock()
        """Is free once the thread has ended."""
        self._ended.acquire()

    def start(self) -> None:
        """Begin to look for a daemon."""
        self._daemon.pool.wake = self._daemon.wake = self.wake
        self._running = True
        # In one call into C: threading.Thread.start is written in Python, and does not bear
        # interrupts; they may leave it with a lock that is never given back.
        try:
            _thread.start_new_thread(self._begin, ())
        except RuntimeError:  # the system has no more threads
            self._running = False
            raise

    def end(self) -> None:
        """Look for no other daemon; the thread ends with the one that is there. Needs no lock."""
        self._ending = True

    def wake(self) -> None:
        """Look at the groups: something waits for messages to be taken in, or is to be left."""
        self._waker.wake()

    def watch(self) -> None:
        """Ask the daemon for signs of life from now on: a group wants to be told of losses."""
        self._next_beat = 0.0
        self._waker.wake()

    def join(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds for the thread's end; return whether it came."""
        if self._running and self._ended.acquire(timeout=timeout):
            self._ended.release()  # for others; one that an interrupt keeps from that has the flag
        if self._running:
            return False
        self._pump.run(self._close)  # where it has never run
        return True

    def _begin(self) -> None:
        try:
            self._run()
        finally:
            self._running = False
            self._ended.release()

    def _run(self) -> None:
        pump = self._pump
        retry, since = _FIRST_RETRY, time.monotonic()
        while not self._ending:
            channel = self._open()
            if channel is not None:
                self._live_with(channel)
                if channel.attached:
                    retry, since = _FIRST_RETRY, time.monotonic()
                    continue
            if not self._ending:
                self._report_absence(since)
                self._give_up()
                self._pump.run(self._pump.settle)
                self._trim()
                time.sleep(retry)  # nothing tells when a socket appears
                retry = min(_RETRY_GROWTH * retry, _LAST_RETRY)
        pump.run(self._close)

    def _close(self) -> None:
        self._pump.close()
        self._waker.close()

    def _open(self) -> Channel | None:
        trouble: list[str] = []
        turned_away = ""
        forbidden: dict[str, str] = {}
        full: OSError | None = None
        for path in self._paths:
            try:
                channel = Channel(path, self._pump.waker, self._waker)
            except OSError as error:
                if isinstance(error, TurnedAwayError):
                    turned_away = f"{path}: {error.strerror}"
                if isinstance(error, StrangerError):
                    forbidden[path] = str(error.strerror)
                elif isinstance(error, PermissionError):
                    forbidden[path] = ""
                if is_out_of_files(error):
                    full = error
                trouble.append(f"{path}: {error.strerror or error}")
            else:
                self._paths = [path]  # from now on it is this daemon's return that we wait for
                return channel
        self._daemon.trouble = "; ".join(trouble)
        self.turned_away = turned_away
        if forbidden and not self._forbidden:
            self._forbidden_since = time.monotonic()
        self._forbidden = forbidden
        if full and not self._full:
            self._full_since = time.monotonic()
        self._full = full
        return None

    def refusal(self) -> RingError | None:
        """Return why no daemon can be used, or may, if that was so at the last try."""
        if self._full is not None:
            return ResourceExhausted(f"{out_of_files(self._full)}; no daemon can be looked for")
        forbidden = self._forbidden
        if not forbidden:
            return None
        why = "; ".join(stranger or why_not(path) for path, stranger in forbidden.items())
        # The trouble names the others, where nothing was found.
        return Refused(
            why if len(self._paths) == len(forbidden) else f"{why} ({self._daemon.trouble})"
        )

    def why_silent(self) -> str:
        """Return why nobody listens where a daemon may be, as far as that can be told."""
        found = []
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError):  # unseen, or no path
                if why := why_silent(Path(path), Path(path + SUFFIX)):
                    found.append(printable(why, MAX_BYTES))
        return "; ".join(found)

    def _give_up(self) -> None:
        """Where the first daemon is not for this user, or out of reach, waiting is of no use."""
        now = time.monotonic()
        if self._daemon.info is None and (
            (self._forbidden and now >= self._forbidden_since + _SURELY_FORBIDDEN)
            or (self._full and now >= self._full_since + _SURELY_FULL)
        ):
            self._groups.refuse(self.refusal())
            self._pump.run(self._pump.tell)

    def _report_absence(self, since: float) -> None:
        """There has been no daemon *since* then: tell a user who wants to know at once."""
        info = self._daemon.info
        if not self._groups.fail_on_loss:
            return
        if info is not None and time.monotonic() >= since + info.lost_after:
            self._pump.run(self._groups.report_absence)
            self._pump.run(self._pump.tell)

    def _live_with(self, channel: Channel) -> None:
        pump, groups = self._pump, self._groups
        if self._ending:
            channel.close()
            return
        pump.run(self._install, channel)
        self._next_beat = time.monotonic()
        gone = False
        while not gone:
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + pump.run(self._beat, channel)
            if groups.wait_for_room and pump.channel is channel and not self._ending:
                self._sleeps_until = min(self._next_look(), groups.next_try)
                pump.wait(self._is_done, self._sleeps_until, for_user=False)
            else:
                gone = channel.wait_end(max(0.0, self._next_look() - time.monotonic()))
                pump.run(pump.settle)
            self._trim()
        pump.run(self._uninstall, channel)

    def _next_look(self) -> float:
        return min(self._next_beat, self._daemon.pool.next_trim)

    def _install(self, channel: Channel) -> None:
        self._pump.channel = channel
        self._groups.install(channel)
        self._pump.tell()
        self._pump.hand_over()

    def _uninstall(self, channel: Channel) -> None:
        self._pump.settle()
        self._pump.lost(channel)
        channel.close()

    def _trim(self) -> None:
        """Give back what memory there is too much of, if it is time for that."""
        pool = self._daemon.pool
        if time.monotonic() < pool.next_trim and not pool.surplus:
            return
        self._pump.run(pool.trim)
        pool.surplus.give_back()  # not within run: it takes a while
        self._pump.run(self._daemon.tell_dropped)

    def _is_done(self) -> bool:
        """Whether there is nothing to take in any more, or something is to be done sooner."""
        groups = self._groups
        if self._ending or not groups.wait_for_room or groups.next_try < self._sleeps_until:
            return True
        return bool(self._daemon.pool.surplus)

    def _beat(self, channel: Channel) -> float:
        """Ask for a sign of life where the user wants one; return the seconds until the next time.

        It is missed when it has said nothing for as long as the other members may. Beats that were
        each left unanswered for a while must bear that out: a program that was stopped itself
        hears its daemon's answer before it judges.
        """
        info = self._daemon.info
        if not self._groups.fail_on_loss:
            return _DRAIN_EVERY
        lost_after = _LOST_AFTER if info is None else info.lost_after
        left = channel.heard_at + lost_after - time.monotonic()
        if channel.unanswered < _BEATS - 1:
            channel.beat()
        elif left <= 0:
            self._groups.report_silence(channel, lost_after)
            self._pump.tell()
        interval = lost_after / _BEATS
        return max(min(left, interval) if left > 0 else interval, _LEAST_BEAT)
