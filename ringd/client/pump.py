"""How threads wait for the daemon: one sleeps on the sockets, the others on that one.

The sleep is a plain ``poll`` without the lock, and touches no ZeroMQ; so other threads may send
meanwhile. ZeroMQ's descriptor is edge-triggered and may go quiet when another thread has looked
at the socket; who takes messages in for others therefore wakes the sleeper.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from ringd.client.channel import Channel

_LONGEST_SLEEP = 3600.0  # seconds; the system's calls refuse what is much longer


class Pump:
    """The lock around a connection's state, and the waiting for that state to change."""

    def __init__(self, drain: Callable[[], None], lost: Callable[[Channel], None]) -> None:
        """Make one.

        Args:
            drain: takes in every message that has arrived; called with the lock.
            lost: told, with the lock, that the daemon behind a channel is gone.
        """
        self.mutex = threading.Lock()
        self.channel: Channel | None = None
        """Where messages come from; None while there is no daemon."""
        self.wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self.wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self.drain = drain
        self.lost = lost
        self._changed = threading.Condition(self.mutex)
        self._waiters = 0
        self._pumping = False
        self._closing = False

    def wait(self, done: Callable[[], bool], until: float | None) -> bool:
        """With the lock: wait until *done*, or the moment *until*; return whether it is done."""
        while True:
            self.drain()
            if done():
                return True
            timeout = None if until is None else min(until - time.monotonic(), _LONGEST_SLEEP)
            if timeout is not None and timeout <= 0:
                return False
            if self._pumping or self.channel is None:
                self._waiters += 1
                try:
                    self._changed.wait(timeout)
                finally:
                    self._waiters -= 1
            else:
                self._pump(self.channel, timeout)

    def sent(self) -> None:
        """With the lock: a message was sent.

        To send takes the edge of ZeroMQ's descriptor away as to receive does, also from under a
        thread that is about to be woken by it: look in its stead.
        """
        if self._pumping:
            self.drain()

    def tell(self) -> None:
        """With the lock: something has changed that other threads may be waiting for."""
        if self._waiters:
            self._changed.notify_all()
        if self._pumping:
            with contextlib.suppress(BlockingIOError):  # full: it is about to wake up anyway
                os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """With the lock: release the descriptors, as soon as nobody sleeps on them."""
        self._closing = True
        if not self._pumping:
            self._release()

    def _pump(self, channel: Channel, timeout: float | None) -> None:
        self._pumping = True
        gone = False
        self.mutex.release()
        try:
            gone = channel.poll(timeout)
        finally:
            self.mutex.acquire()
            self._pumping = False
            if self._waiters:
                self._changed.notify()  # to take over, should this thread leave
            if gone:
                self.drain()
                self.lost(channel)
            if self._closing:
                self._release()

    def _release(self) -> None:
        os.close(self.wake_reader)
        os.close(self._wake_writer)
