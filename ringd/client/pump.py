"""How threads share a connection: which may change its state, which sleeps on the sockets.

The rules, which interrupts make strict. A signal handler may run, and raise, wherever the main
thread returns from a call or goes round a loop, and a finaliser in any thread; so

1. state changes only within :meth:`Pump.run`, one thread at a time; but for single stores, by which
   a thread ends its own sleep, or leaves word of what is to be done within it;
2. each step there may end at any such place, and is then done again from its beginning by whoever
   comes next: it looks at the state, and does what that lacks. What arrives is dropped only when
   it has been acted on;
3. a handler or finaliser that finds its own thread inside is refused: what lies beneath it cannot
   go on before it returns;
4. nothing is held while a thread sleeps, so that nothing need be given back.

The sleep is a plain ``poll``; other threads may send meanwhile. A thread that takes messages in for
others wakes those.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ringd.client.channel import Channel
from ringd.client.ending import main_thread_failed, tell_of_failure
from ringd.client.waker import Waker
from ringd.errors import CalledFromHandler

_LONGEST_SLEEP = 3600.0  # seconds; the system's calls refuse what is much longer
_BACKSTOP = 0.25  # seconds; an interrupt may end the sleeper before it can wake the next one
_LOOK_FOR_END = 1.0  # seconds between looks at whether the main thread has failed

Result = TypeVar("Result")


class Pump:
    """The state's lock, and the waiting for that state to change."""

    def __init__(
        self,
        settle: Callable[[], None],
        is_settled: Callable[[], bool],
        lost: Callable[[Channel], None],
        failed: Callable[[], None],
    ) -> None:
        """Make one.

        Args:
            settle: takes in every message that has arrived, and sends what is due; called
                within :meth:`run`.
            is_settled: says, likewise, whether that has nothing to do but what ends a sleep on the
                sockets at once.
            lost: told, likewise, that the daemon behind a channel is gone.
            failed: told that the main thread has failed, before a thread that waits is.
        """
        self.channel: Channel | None = None
        """Where messages come from; None while there is no daemon."""
        self.unsettled = False
        """Set by a finaliser that leaves something to the thread that it interrupted inside."""
        self.waker = Waker()
        """Ends the sleep on the sockets."""
        self.settle = settle
        self.lost = lost
        self._is_settled = is_settled
        self._failed = failed
        self._main = threading.main_thread().ident
        self._lock = (
            threading.RLock()
        )  # made in C: what waits for it or holds it can be interrupted
        self._inside = False
        self.waiters: dict[threading.Lock, Callable[[], bool]] = {}
        """What threads wait for while another one sleeps on the sockets: by the lock that each of
        them sleeps on, until somebody releases that."""
        self.sleeper: int | None = None
        """The thread that sleeps on the sockets."""
        self._closing = False

    def run(self, step: Callable[..., Result], *args: object) -> Result:
        """Return what *step* returns, which may change the state.

        Raises:
            CalledFromHandler: this thread is inside already, beneath a signal handler or finaliser.
        """
        with self._lock:
            if self._inside:
                raise CalledFromHandler
            self._inside = True
            try:
                result = step(*args)
                if self.unsettled:
                    self.unsettled = False
                    self.settle()
                return result
            finally:
                self._inside = False

    def insist(self, step: Callable[..., object], *args: object) -> None:
        """Run *step*, which is short, to its end, though interrupts come.

        For what is to be done before an interrupt that has come already is passed on. It takes two
        more at the right instants to leave this before that is done; so word of what is to be done
        is left first, for whoever comes next.

        Raises:
            CalledFromHandler: as :meth:`run`.
        """
        try:
            undone = True  # what stands here covers the instant in which the loop goes round
            while undone:
                try:
                    self.run(step, *args)
                    undone = False
                except Exception:
                    raise
                except BaseException:  # noqa: BLE001, S110 - the first is on its way to the user
                    pass
        except Exception:
            raise
        except BaseException:  # noqa: BLE001 - it came as the loop went round
            self.run(step, *args)

    def wait(self, done: Callable[[], bool], until: float | None, *, for_user: bool = True) -> bool:
        """Wait until *done*, or the moment *until*; return whether it is done.

        Args:
            done: asked within :meth:`run`.
            until: on the monotonic clock; None for as long as it takes.
            for_user: a call of the program's waits, which keeps that alive.

        Raises:
            CalledFromHandler: as :meth:`run`.
            MainThreadFailed: the main thread has failed, and this is another one.
        """
        me = threading.get_ident()
        watch = for_user and me != self._main
        longest = _LOOK_FOR_END if watch else _LONGEST_SLEEP
        beneath = self.sleeper == me  # and this is a signal handler, which interrupted that sleep
        waited = gone = False
        waiter = threading.Lock()
        waiter.acquire()
        while True:
            try:
                turn = self.run(self._look, done, until, waited, waiter)
                if turn is True or turn is False:
                    return turn
                if watch and waited and main_thread_failed():
                    error = tell_of_failure()
                    self._failed()
                    raise error
                timeout = longest if until is None else min(until - time.monotonic(), longest)
                if turn is None:
                    waiter.acquire(timeout=max(0.0, min(timeout, _BACKSTOP)))
                else:
                    gone = turn.poll(timeout)
            finally:
                if self.sleeper == me:
                    self.sleeper = me if beneath else None
                self.waiters.pop(waiter, None)
                if beneath:
                    self.waker.wake()  # what it sleeps for may have been taken in up here
                elif self._closing and self.sleeper is None:
                    self.waker.close()
            waited = True
            if gone and turn is not None:
                self.run(self._gone, turn)

    def tell(self) -> None:
        """Wake the threads that wait, if it is done: something has changed; within :meth:`run`.

        Hundreds may wait, each for something else.
        """
        for waiter, done in tuple(self.waiters.items()):
            if done():
                _wake(waiter)
        if self.sleeper is not None:
            self.waker.wake()

    def close(self) -> None:
        """Release the descriptors, as soon as nobody sleeps on them; within :meth:`run`.

        From now on :attr:`channel` stays None, so that nobody begins to.
        """
        self._closing = True
        if self.sleeper is None:
            self.waker.close()
        else:
            self.waker.wake()

    def _look(
        self, done: Callable[[], bool], until: float | None, waited: bool, waiter: threading.Lock
    ) -> bool | Channel | None:
        """Return whether it is done, once that is known; else what this thread is to sleep on.

        That is a channel whose sockets no other thread sleeps on; or None for *waiter*. Who has not
        *waited* does not look for messages: if some have come, they end its sleep at once.
        """
        looked = waited or not self._is_settled()
        if looked:
            self.settle()
        finished = done()
        if finished or (looked and until is not None and time.monotonic() >= until):
            if self.waiters:
                self.hand_over()
            return finished
        me, channel = threading.get_ident(), self.channel
        # Also beneath this frame, whose sleep goes on when the handler that is above it returns.
        if channel is not None and self.sleeper in (None, me):
            self.sleeper = me
            return channel
        self.waiters[waiter] = done
        return None

    def hand_over(self) -> None:
        """Let a thread that waits sleep on the sockets, if none does; within :meth:`run`."""
        if self.sleeper is None:
            for waiter in tuple(self.waiters)[:1]:
                _wake(waiter)

    def _gone(self, channel: Channel) -> None:
        self.settle()
        self.lost(channel)


def _wake(waiter: threading.Lock) -> None:
    """End the sleep of the thread that has it; harmless if that is over."""
    with contextlib.suppress(RuntimeError):
        waiter.release()
