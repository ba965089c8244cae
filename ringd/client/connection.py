"""A client's connection to its daemon, through all the daemon's lives.

A blocking call needs no second thread: the caller itself sleeps on the sockets
(:mod:`ringd.client.pump`). For what must be done also while the program computes there is one
thread per connection, the keeper (:mod:`ringd.client.keeper`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from ringd import errors
from ringd.client.channel import Channel
from ringd.client.ending import goes_on_after_failure, remember_main_thread
from ringd.client.group import Group
from ringd.client.keeper import Keeper
from ringd.client.notifier import Notifier
from ringd.client.pool import Block, Bytes
from ringd.client.pump import Pump
from ringd.client.session import Op
from ringd.wire.border.messages import Attached, DecodeError

GRACE = 2.5
"""Seconds, beyond those that the daemon may take to notice a deadline, until the client stops to
wait for its word."""

_DETACH_TIMEOUT = 1.0
"""Seconds that the daemon may take to read that we leave; and again, to hang up when told to."""

_PAUSE = 1.0
"""Seconds, as long as a call waits at least before it is told that the main thread has failed."""

_alive: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """See the module's docstring. All methods may be called from any thread."""

    def __init__(self, paths: Sequence[str], group: str, on_loss: str) -> None:
        self._group = Group(group, on_loss)
        self._pump = Pump(self._settle, self._lost)
        self._pid = os.getpid()
        self._closed = False
        self._abandoned = False
        """Closed without ceremony: whatever waits ends now."""
        self._ended = False
        """Closed, and nothing is left to be done for that."""
        self._failed = False
        """Abandoned as the main thread has failed."""
        self.inputs_left = False
        """Whether an op is marked as :attr:`Op.left` that may have yet to be acted on."""
        self._paths = paths
        self._keeper = Keeper(paths, self._group, self._pump)
        self._notifier = Notifier(self._wait_for_any)

    # --- beginning and end ------------------------------------------------------------

    def start(self, timeout: float) -> None:
        """Connect and join the group; wait up to *timeout* seconds for the daemon to appear.

        Whatever this raises, also an interrupt: the caller closes the connection.

        Raises:
            DaemonUnavailable: none did; says what was tried.
            MainThreadFailed: another call was told that only it keeps the program alive.
            ResourceExhausted: the daemon takes no more programs, or this process has no room for
                more open files; names the limit.
            Refused: the daemon does not want us in the group, or is not for this user.
        """
        group = self._group
        remember_main_thread()
        self.check_call()
        _forget_unreachable(group.name)
        _alive.add(self)
        atexit.unregister(_exiting)  # called first is what was registered last
        atexit.register(_exiting)
        self._keeper.start()
        self._pump.wait(
            lambda: group.info is not None or group.refusal is not None,
            time.monotonic() + timeout,
        )
        if group.info is None:
            refusal = group.refusal
            if self._keeper.turned_away:
                refusal = refusal or errors.ResourceExhausted(self._keeper.turned_away)
            refusal = refusal or self._keeper.refusal()
            trouble = group.trouble or f"{', '.join(self._paths)}: no answer yet"
            raise refusal or errors.DaemonUnavailable(
                f"no daemon within {timeout:g} s ({trouble}); "
                + (
                    self._keeper.why_silent()
                    or "start one with `ringd --config PATH`, or name its socket, which it logs as "
                    "it starts, with RINGD_SOCKET or socket="
                )
            )

    def close(self) -> None:
        """Leave the group in good order; calls that are open here end with an error.

        One that an interrupt ended goes on when it is called again.
        """
        if os.getpid() != self._pid or self._ended:
            return  # the parent goes on with its own
        try:
            channel = self._pump.run(self._leave)
        except errors.CalledFromHandler:  # beneath us is a call that cannot go on before we return
            self.abandon()
            return
        # The daemon hangs up when it has read the Detach; sooner, and we would count as having hung
        # up, and not as having left.
        try:
            if not self._keeper.join(_DETACH_TIMEOUT) and channel is not None:
                channel.hang_up()
                self._keeper.join(_DETACH_TIMEOUT)
        finally:
            self._pump.insist(self._end)

    def _leave(self) -> Channel | None:
        self._settle()
        self._closed = True
        self._keeper.end()
        self._group.leave()
        self._pump.tell()
        return self._pump.channel

    def _end(self) -> None:
        self._group.end(failed=self._failed)
        self._group.pool.close()
        self._pump.tell()
        self._ended = True

    def abandon(self) -> None:
        """End without ceremony, nor lock: for the garbage collector, and at the process's end.

        Also what an interrupt has left of :meth:`close`.
        """
        if os.getpid() == self._pid and not (self._ended or self._abandoned):
            self._closed = self._abandoned = True
            self._keeper.end()
            self._group.abandon()
            if (channel := self._pump.channel) is not None:
                channel.hang_up()

    def check(self) -> None:
        """Raise RingError unless this connection can be used, in this process."""
        if os.getpid() != self._pid:
            raise errors.RingError(
                "this ring belongs to the parent process; connect again after fork"
            )
        if self._closed:
            raise errors.RingError("the ring is closed")

    def check_call(self) -> None:
        """As :meth:`check`, before a call.

        A thread that makes one after the other, whatever their errors are, does not keep a program
        that has failed busy as well as alive, nor come back to the group.
        """
        new = self._group.info is None
        if (self._failed or new) and goes_on_after_failure():
            time.sleep(_PAUSE)
            raise errors.MainThreadFailed
        self.check()

    def holds(self, group: str) -> bool:
        """Whether it has, or wants, this process's place in *group*."""
        return self._group.name == group and not (self._ended or self._abandoned)

    def in_child(self) -> None:
        """After a fork, in the child: let go of what would keep the parent alive."""
        if (channel := self._pump.channel) is not None:
            channel.lifeline.close()

    # --- calls ------------------------------------------------------------------------

    @property
    def info(self) -> Attached:
        """What the daemon said last of itself."""
        self.check()
        with contextlib.suppress(
            errors.CalledFromHandler
        ):  # then what was known last is all there is
            self._pump.run(self._settle)
        return self.latest

    @property
    def latest(self) -> Attached:
        """The same, without a look at what has arrived since."""
        info = self._group.info
        assert info is not None  # noqa: S101 - start() has seen to it
        return info

    @property
    def shared_memory(self) -> bool:
        """Whether the system has any, as far as is known."""
        return self._group.pool.usable

    def wait_state(self, state: str, until: float | None) -> bool:
        """Wait until the ring is in *state*; whether it came to that before *until*.

        Raises:
            CalledFromHandler: a handler called this within a call of its thread.
            MainThreadFailed: only this keeps the program alive.
        """
        self.check()
        self._wait(lambda: self._closed or self.latest.state == state, until)
        return not self._closed and self.latest.state == state

    def reserve(self, lengths: Sequence[int], until: float | None) -> list[Block] | None:
        """Return blocks of shared memory, waiting for some to come back if need be.

        None where the system has no shared memory at all.

        Raises:
            ResourceExhausted: there is not that much, or not before *until*.
        """
        pool = self._group.pool

        def step() -> tuple[list[Block] | None, bool]:
            return pool.take_all(lengths), bool(pool.surplus)

        while True:
            self.check()
            try:
                blocks, surplus = self._pump.run(step)
            except errors.ResourceExhausted:
                if not pool.usable:
                    return None
                raise
            if blocks is not None:
                return blocks
            pool.surplus.give_back()  # not within run: it takes a while
            if surplus:
                continue
            self._pump.run(self._settle)
            waiting = bool(self._group.session.ops) and not self._closed
            if not pool.has_returns and not (
                waiting and self._wait(lambda: pool.has_returns or self._closed, until)
            ):
                raise errors.ResourceExhausted(
                    f"{sum(lengths)} bytes of shared memory are needed, but {pool.size} of "
                    f"ipc.segment_budget = {pool.budget} bytes are held by open calls"
                    f"{self._group.beyond_window()} and by arrays that the program keeps; drop "
                    "some of those, or raise the budget in the daemon's config"
                )

    def submit(self, op: Op, timeout: float | None, until: float | None) -> None:
        """Hand *op* over.

        Args:
            op: the call.
            timeout: in seconds; 0 for no deadline, None for the daemon's default.
            until: when that is over; None for never.

        Raises:
            GroupLost: or another reason why the stay in the group ended, if the user does not
                know yet; the next call joins anew.
            DeadlineExceeded: calls of the last stay, which is over, were open all the time.
            ResourceExhausted: too many calls wait to be handed over.
        """
        if until is not None:
            op.asked, op.timeout = timeout, until
            op.give_up = until + self.latest.lost_after + GRACE
        else:
            op.timeout = timeout
        while not self._pump.run(self._submit, op):
            if not self._wait(self._has_room, until):
                raise errors.DeadlineExceeded(
                    "calls that were made before the group lost a program have not ended yet"
                )

    def _submit(self, op: Op) -> bool:
        self.check()
        self._settle()
        session = self._group.room(0 if op.payload is None else len(op.payload))
        if session is None:
            return False
        self._group.submit(session, op)
        self._pump.sent()
        if self._group.waits_for_room:
            self._keeper.wake()
        return True

    def _has_room(self) -> bool:
        session = self._group.session
        return self._closed or not (session.over and session.open)

    def _wait(self, done: Callable[[], bool], until: float | None) -> bool:
        """Wait for the program; where that has failed, leave, so that the others are told."""
        try:
            return self._pump.wait(done, until)
        except errors.MainThreadFailed:
            self._failed = True
            self.abandon()
            raise

    def wait(self, op: Op, until: float | None) -> None:
        """Return when *op* has ended well; raise its error otherwise.

        Raises:
            DeadlineExceeded: the call's deadline, or *until*, has passed; in the latter case
                the call goes on.
        """
        if os.getpid() != self._pid:
            self.check()
        while not op.ended:
            times = (self._gives_up(op), until)
            limit = min((time for time in times if time is not None), default=None)
            if not self._wait(lambda: op.ended or self._abandoned, limit):
                self._pump.run(self._overdue, op)
            elif self._abandoned:
                self._pump.insist(self._end)
        error = op.error
        if error is not None:
            self._group.told(op, error)
            raise type(error)(*error.args)  # a new one: this may be raised in several places

    def tell(self, op: Op, callback: Callable[[], object]) -> None:
        """Have *callback* called in a thread of its own once *op* has ended."""
        self._notifier.watch(op, callback)
        with contextlib.suppress(errors.CalledFromHandler):  # its thread wakes them itself
            self._pump.run(self._pump.tell)

    def _wait_for_any(self, ops: Callable[[], Iterator[Op]]) -> None:
        """Return when one of *ops*, which may become more, has ended, or may have.

        Where the main thread has failed, all end: threads may wait for what is told of them.
        """
        limits = {op: limit for op in ops() if (limit := self._gives_up(op)) is not None}
        with contextlib.suppress(errors.MainThreadFailed):
            self._wait(
                lambda: self._abandoned or any(op.ended for op in ops()),
                min(limits.values(), default=None),
            )
        if self._abandoned:
            self._pump.insist(self._end)
        now = time.monotonic()
        for op, limit in limits.items():
            if now >= limit:
                self._pump.run(self._look_at, op)

    def done(self, op: Op) -> bool:
        """Whether *op* has ended, well or not."""
        if not op.ended:
            self.check()
            with contextlib.suppress(
                errors.CalledFromHandler
            ):  # then it has ended if that was seen before
                self._pump.run(self._look_at, op)
        return op.ended

    def leave_input(self) -> None:
        """Let the user write to what ops have lent for whose end nobody can wait any more.

        They are marked, and so is :attr:`inputs_left`, by two stores between which no interrupt
        can come; one into this leaves them to whoever comes next, and else to the keeper.
        """
        if os.getpid() != self._pid or self._ended:
            return
        try:
            self._pump.insist(self._leave_inputs)
        except errors.CalledFromHandler:  # a finaliser: done when its thread comes out of there
            self._pump.unsettled = True
            self._keeper.wake()
        except BaseException:
            self._keeper.wake()
            raise

    def _look_at(self, op: Op) -> None:
        self._settle()
        limit = self._gives_up(op)
        if not op.ended and limit is not None and time.monotonic() >= limit:
            self._overdue(op)

    def _gives_up(self, op: Op) -> float | None:
        """When the client decides that the deadline of *op* has passed.

        For one that no daemon has been handed, nobody else does, and nobody can have completed it.
        """
        return op.give_up if self._group.is_handed_over(op) else op.timeout or None

    def _overdue(self, op: Op) -> None:
        """The time to wait for *op* is over: its deadline has passed, or that of the wait."""
        group = self._group
        what = f"op {op.seq} of group {group.name!r}, {op.call}"
        limit = self._gives_up(op)
        if op.ended or limit is None or time.monotonic() < limit:
            if op.ended:
                return
            raise errors.DeadlineExceeded(f"{what}: not finished yet; it goes on")
        if self._pump.channel is None:
            state = f"is away ({group.trouble})"
        elif not group.is_handed_over(op):
            state = (
                f"had no room for it: {op.seq - op.session.released} calls before it are "
                "unfinished somewhere, and ipc.window lets no more be open"
            )
        else:
            state = "is there, but does not answer (see `ringd-cli status`; is it stopped?)"
            if group.broke:
                state = f"could not ask the others, as the ring broke: {group.broke}"
                state += " (if that is over: is it stopped? see `ringd-cli status`)"
        text = f"{what}: its deadline passed, and this machine's daemon {state}"
        group.give_up(op, errors.DeadlineExceeded(text))
        self._pump.tell()

    # --- results ----------------------------------------------------------------------

    def lend(self, block: Block, length: int, *, as_input: bool = False) -> Bytes | None:
        """Return *block* as the user's array; None when they hold too much already.

        Half of the budget is for the calls themselves; an input was asked for and counts there.
        """
        pool = self._group.pool

        def step() -> Bytes | None:
            if not as_input and pool.lent + pool.given_back + length > pool.budget // 2:
                return None
            return pool.lend(block, length, as_input=as_input)

        return self._pump.run(step)

    def find(self, array: npt.NDArray[Any]) -> tuple[Block, int] | None:
        """Return the input block that *array*, C-contiguous, lies in, and the offset in it."""
        return self._pump.run(self._group.pool.find, array)

    # --- what the daemon says ---------------------------------------------------------

    def _settle(self) -> None:
        """Take in every message that has arrived, and send what is due; within the pump's run."""
        if self.inputs_left:
            self._leave_inputs()
        channel = self._pump.channel
        if channel is None:
            return
        channel.sessions(partial(self._group.meet, channel))
        if channel.gap:
            self._group.install(channel)
            channel.gap = False
        news = False
        while True:
            channel.alert = False
            news = self._receive(channel) or news
            self._group.push()
            if not channel.alert:
                break
        if news:
            self._pump.tell()

    def _leave_inputs(self) -> None:
        self.inputs_left = False  # first: others may come while this is under way
        done = False
        try:
            done = self._group.leave_marked()
        finally:
            if not done:  # an interrupt; or the system has no memory now
                self.inputs_left = True

    def _receive(self, channel: Channel) -> bool:
        """Take in every message that has arrived; return whether there was one."""
        news = False
        try:
            while (received := channel.receive()) is not None:
                news = True
                self._group.receive(*received)
                channel.taken()
        except DecodeError as error:
            channel.taken()
            self._group.part(channel, f"it sent what is no message of this version: {error}")
        except OSError as error:
            self._group.part(channel, f"its messages cannot be received: {error}")
        return news

    def _lost(self, channel: Channel) -> None:
        """The daemon is gone; the keeper, which sees that too, closes the channel.

        Before it does, it calls this to the end, whatever interrupts have left of that.
        """
        self._group.lose(channel)
        if self._pump.channel is channel:
            self._pump.channel = None
        self._pump.tell()


def _forget_unreachable(group: str) -> None:
    """Hang up on rings of *group* in cycles of garbage: nobody else could free their place."""
    if any(other.holds(group) for other in list(_alive)):
        gc.collect()


def _forked() -> None:
    for connection in list(_alive):
        connection.in_child()
    _alive.clear()


def _exiting() -> None:
    """Let the others know now: the rest may take long."""
    for connection in list(_alive):
        connection.abandon()


os.register_at_fork(after_in_child=_forked)
