"""What a ring does over its connection: a stay in one group, from its beginning to its end.

Here is what waits; what is known and sent stands in :mod:`ringd.client.group`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from ringd import errors
from ringd.client.connection import Connection, holders
from ringd.client.ending import goes_on_after_failure, remember_main_thread
from ringd.client.group import Group, Place
from ringd.client.pool import Block
from ringd.client.session import SHORT_WINDOW, Op, Session
from ringd.wire.border.messages import Attached

GRACE = 2.5
"""Seconds, beyond those that the daemon may take to notice a deadline, until the client stops to
wait for its word."""

_DETACH_TIMEOUT = 1.0
"""Seconds that the daemon may take to read that we leave; and again, to hang up when told to."""

_PAUSE = 1.0
"""Seconds, as long as a call waits at least before it is told that the main thread has failed."""

_ASK_EVERY = 1.0
"""Seconds between questions for whom the group waits."""

_LOOK_FIRST = 256 << 10
"""Bytes of a tensor from which on fresh memory costs far more than a look at the sockets."""


class Stay:
    """The stay in *group*, over *connection*; any thread may call its methods."""

    source: int | None = None
    """The rank from which messages come; None where its calls are none."""

    def __init__(self, connection: Connection, group: Group) -> None:
        self.connection = connection
        self.group = group
        self.pid = os.getpid()
        """The process whose it is; a child is another one, of whatever fork."""
        self.left = False
        """The program has closed this ring; an attribute, as each call asks for it."""
        self._ended = False
        """Closed, and nothing is left to be done for that."""

    # --- beginning and end ------------------------------------------------------------

    def begin(self, timeout: float, *, new: bool) -> bool:
        """Join the group; wait up to *timeout* seconds for the daemon to take us in.

        Whatever this raises, also an interrupt: the caller closes the stay.

        Args:
            timeout: in seconds.
            new: the connection has yet to look for a daemon.

        Returns:
            False if the connection has been closed meanwhile, and another one is to be used.

        Raises:
            DaemonUnavailable: none did; says what was tried.
            MainThreadFailed: another call was told that only it keeps the program alive.
            ResourceExhausted: the daemon takes no more programs, or this process has no room for
                more open files; names the limit.
            Refused: the daemon does not want us in the group, or is not for this user.
        """
        connection, group = self.connection, self.group
        remember_main_thread()
        self._check_failure()
        if any(holders(group.name)):
            gc.collect()  # rings in cycles of garbage: nobody else could free their place
        if not connection.pump.run(connection.enter, group):
            return False
        if new:
            connection.start()
        connection.pump.wait(
            lambda: group.accepted or group.refusal is not None or self.hung_up,
            time.monotonic() + timeout,
        )
        if not group.accepted:
            self.check()
            raise group.refusal or connection.unavailable(timeout)
        return True

    @property
    def closed(self) -> bool:
        """Whether the program has closed its ring."""
        return self.left

    @property
    def hung_up(self) -> bool:
        """Whether it has ended without ceremony: whatever waits ends now."""
        return self.group.forgotten or self.connection.abandoned

    def close(self) -> None:
        """Leave the group in good order; calls that are open here end with an error.

        One that an interrupt ended goes on when it is called again.
        """
        connection, group = self.connection, self.group
        if not connection.ours or self._ended:
            return  # the parent goes on with its own
        try:
            connection.pump.run(self._leave)
        except errors.CalledFromHandler:  # beneath us is a call that cannot go on before we return
            self.abandon()
            return
        # Calls end, and the connection behind the last group, when the daemon has read that we
        # leave; sooner, and we would count as having hung up.
        try:
            until = time.monotonic() + _DETACH_TIMEOUT
            connection.pump.wait(lambda: group.parted, until, for_user=False)
        finally:
            connection.pump.insist(self._end)
        if connection.ended:
            connection.keeper.join(_DETACH_TIMEOUT)

    def _leave(self) -> None:
        self.connection.settle()
        self.left = True
        if self.group in self.connection.groups:
            self.group.leave()
        else:  # an interrupt has kept it from being joined
            self.group.left = self.group.parted = True
        self.connection.pump.tell()

    def _end(self) -> None:
        self.left = True
        self.group.end(self.connection.end_error())
        self.connection.let_go(self.group)
        self._ended = True

    def abandon(self) -> None:
        """End without ceremony, nor lock: for the garbage collector.

        Also what an interrupt has left of :meth:`close`.
        """
        if self.connection.ours and not self._ended:
            self.left = True
            self.connection.forget(self.group)

    def check(self) -> None:
        """Raise RingError unless this stay goes on, in this process."""
        if os.getpid() != self.pid:
            raise errors.RingError(
                "this ring belongs to the parent process; connect again after fork"
            )
        if self.left or self.connection.closed:
            raise errors.RingError("the ring is closed")

    def check_call(self) -> None:
        """As :meth:`check`, before a call; raises MainThreadFailed where that is so."""
        if self.connection.failed or not self.group.accepted:
            self._check_failure()
        self.check()

    def _check_failure(self) -> None:
        """A thread that makes one call after the other, whatever their errors are, is told.

        So it does not keep a program that has failed busy as well as alive, nor come back to the
        group.
        """
        if goes_on_after_failure():
            time.sleep(_PAUSE)
            raise errors.MainThreadFailed

    # --- what and where ---------------------------------------------------------------

    @property
    def info(self) -> Attached:
        """What the daemon said last of itself."""
        self.check()
        self.connection.refresh()
        return self.connection.latest

    def wait_state(self, state: str, until: float | None) -> bool:
        """Wait until the ring is in *state*; whether it came to that before *until*.

        Raises:
            CalledFromHandler, MainThreadFailed: as :meth:`Connection.wait`.
        """
        self.check()
        connection = self.connection
        connection.wait(lambda: self.closed or connection.latest.state == state, until)
        return not self.closed and connection.latest.state == state

    def place(self, until: float | None) -> Place:
        """Return where we are in the group; waits until that is known for the first time.

        Raises:
            DeadlineExceeded: not before *until*; says for whom that waits.
            RingError: as any call.
        """
        self.check()
        group = self.group
        if group.place is None:
            self.until_formed(lambda: group.place is not None, until)
        assert group.place is not None  # noqa: S101 - as of now
        return group.place

    def wait_for_peers(self, session: Session, until: float | None) -> None:
        """Wait until the members of *session* are known: some call of it has ended well.

        Raises:
            DeadlineExceeded: not before *until*.
            RingError: as any call.
        """
        group = self.group
        known = self.connection.wait(
            lambda: self.closed or bool(session.members) or group.session is not session, until
        )
        self.check()
        if not known:
            raise errors.DeadlineExceeded(f"group {group.name!r}: {self._why_unknown()}")
        if not session.members:
            self.connection.pump.run(group.raise_loss)
            raise errors.GroupLost(f"group {group.name!r} has formed anew since")

    def until_formed(self, step: Callable[[], bool], until: float | None) -> None:
        """Do *step*, within the pump's run, once the group has formed: again until it returns True.

        Asks the daemon meanwhile for whom that waits.

        Raises:
            DeadlineExceeded: not before *until*; says for whom that waits.
            RingError: as any call.
        """
        connection, group = self.connection, self.group
        while not connection.pump.run(step):
            connection.pump.run(self._ask)
            again = time.monotonic() + _ASK_EVERY
            connection.wait(
                lambda: (
                    self.closed or group.formed or group.conflict or group.pending_error is not None
                ),
                again if until is None else min(again, until),
            )
            self.check()
            if not group.formed:
                connection.pump.run(group.raise_loss)
                if group.conflict:
                    raise errors.Mismatch(group.awaited)
                if until is not None and time.monotonic() >= until:
                    lack = "its ranks are not known" if group.place is None else "it has not formed"
                    raise errors.DeadlineExceeded(
                        f"group {group.name!r}: {lack} yet; {self._why_unknown()}"
                    )

    def _ask(self) -> None:
        self.connection.settle()
        self.group.ask_awaited()

    def _why_unknown(self) -> str:
        daemon = self.connection.daemon
        if daemon.channel is None:
            return f"this machine's daemon is away ({daemon.trouble})"
        return self.group.awaited or (
            "this machine's daemon is there, but does not answer (see `ringd-cli status`; is it "
            "stopped?)"
        )

    # --- calls ------------------------------------------------------------------------

    def reserve(self, lengths: Sequence[int], until: float | None) -> list[Block] | None:
        """Return blocks of shared memory, waiting for some to come back if need be.

        None where the system has no shared memory at all.

        Raises:
            ResourceExhausted: there is not that much, or not before *until*.
        """
        connection, pool = self.connection, self.connection.pool

        def step() -> tuple[list[Block] | None, bool]:
            if max(lengths) >= _LOOK_FIRST:
                connection.settle()  # the daemon may have said that an input is needed no more
            return pool.take_all(lengths), bool(pool.surplus)

        while True:
            self.check()
            try:
                blocks, surplus = connection.pump.run(step)
            except errors.ResourceExhausted:
                if not pool.usable:
                    return None
                raise
            if blocks is not None:
                return blocks
            pool.surplus.give_back()  # not within run: it takes a while
            if surplus:
                continue
            connection.pump.run(connection.settle)
            waiting = connection.groups.have_ops and not self.closed
            if not pool.has_returns and not (
                waiting and connection.wait(lambda: pool.has_returns or self.closed, until)
            ):
                raise errors.ResourceExhausted(
                    f"{sum(lengths)} bytes of shared memory are needed, but {pool.size} of "
                    f"ipc.segment_budget = {pool.budget} bytes are held by open calls"
                    f"{self.group.beyond_window()} and by arrays that the program keeps; drop "
                    "some of those, or raise the budget in the daemon's config"
                )

    def submit(
        self,
        op: Op,
        timeout: float | None,
        until: float | None,
        *,
        then: Op | None = None,
        beside: Sequence[Op] = (),
        waits: bool = False,
    ) -> Stay:
        """Hand *op* over, and return the stay itself, by which it is to be waited for.

        Args:
            op: the call.
            timeout: in seconds; 0 for no deadline, None for the daemon's default.
            until: when that is over; None for never.
            then: a second call, which belongs to it.
            beside: calls that follow it at once; all of them are made, or none.
            waits: the caller is about to wait, and so takes messages in itself.

        Raises:
            GroupLost: or another reason why the stay in the group ended, if the user does not
                know yet; the next call joins anew.
            DeadlineExceeded: calls of the last stay, which is over, were open all the time.
            ResourceExhausted: too many calls wait to be handed over.
        """
        self.set_times(op, timeout, until)
        if then is not None:
            then.asked, then.timeout = op.asked, None if timeout else timeout
        for other in beside:
            self.set_times(other, timeout, until)
        while self.connection.pump.run(self._submit, op, then, beside, waits) is None:
            if not self.connection.wait(self._has_room, until):
                raise errors.DeadlineExceeded(
                    "calls that were made before the group lost a program have not ended yet"
                )
        return self

    def set_times(self, op: Op, timeout: float | None, until: float | None) -> None:
        """Say when the time for *op* is over; as of :meth:`submit`."""
        op.timeout = timeout
        if until is not None:
            grace = self.connection.daemon.lost_after + GRACE
            op.asked, op.timeout, op.give_up = timeout, until, until + grace

    def _submit(self, op: Op, then: Op | None, beside: Sequence[Op], waits: bool) -> bool | None:
        connection, group, session = self.connection, self.group, self.group.session
        if self.left or connection.closed:
            self.check()
        if session.acked < session.next_seq:  # else nothing has come that the call depends on
            connection.settle()
        if beside:
            length = max(len(one.payload or b"") for one in (op, *beside))
            if group.room(length, 1 + len(beside)) is None:
                return None
        sent = connection.groups.submit(group, op, then)
        for other in beside:
            sent = connection.groups.submit(group, other)
        if sent is not None and not (sent or waits):
            connection.keeper.wake()
        return sent

    @property
    def grace(self) -> float:
        """Seconds beyond a deadline until the client decides by itself that it has passed."""
        return self.connection.daemon.lost_after + GRACE

    def _has_room(self) -> bool:
        session = self.group.session
        return self.closed or not (session.over and session.open)

    def wait(self, op: Op, until: float | None) -> None:
        """Return when *op* has ended well; raise its error otherwise.

        Raises:
            DeadlineExceeded: the call's deadline, or *until*, has passed; in the latter case
                the call goes on.
        """
        connection, group = self.connection, self.group
        if os.getpid() != self.pid:
            self.check()
        while not op.ended:
            if group.forgotten or connection.abandoned:
                connection.pump.insist(self._end)
                continue
            # Without a Python function: a wait asks several times, and nearly all calls are such.
            done: Callable[[], bool] = partial(getattr, op, "over")
            gives_up = op.give_up
            if op.filler is not None or op.seq >= op.session.handed:
                gives_up = op.gives_up
                # Another time to give up comes as it is handed over.
                done = lambda: op.over or op.gives_up != gives_up  # noqa: B023, E731
            sooner = until is None or (gives_up is not None and gives_up < until)
            if connection.wait(done, gives_up if sooner else until):
                continue
            if not sooner or op.gives_up == gives_up:  # else another thread has put that off
                connection.pump.run(self._overdue, op)
        error = op.error
        if error is not None:
            group.told(op, error)
            raise type(error)(*error.args)  # a new one: this may be raised in several places

    def tell(self, op: Op, callback: Callable[[], object]) -> None:
        """Have *callback* called in a thread of its own once *op* has ended."""
        self.connection.notifier.watch(self, op, callback)
        with contextlib.suppress(errors.CalledFromHandler):  # its thread wakes them itself
            self.connection.pump.run(self.connection.pump.tell)

    def look_at(self, op: Op) -> None:
        """End *op* if its time is over, or the stay; for who does not wait for it alone."""
        pump, limit = self.connection.pump, op.gives_up
        if self.hung_up:
            pump.insist(self._end)
        elif not op.ended and limit is not None and time.monotonic() >= limit:
            pump.run(self._look_at, op)

    def done(self, op: Op) -> bool:
        """Whether *op* has ended, well or not."""
        if not op.ended:
            self.check()
            with contextlib.suppress(
                errors.CalledFromHandler
            ):  # then it has ended if that was seen before
                self.connection.pump.run(self._look_at, op)
        return op.ended

    def _look_at(self, op: Op) -> None:
        self.connection.settle()
        limit = op.gives_up
        if not op.ended and limit is not None and time.monotonic() >= limit:
            self._overdue(op)

    def _overdue(self, op: Op) -> None:
        """The time to wait for *op* is over: its deadline has passed, or that of the wait."""
        if op.filler is not None and (limit := op.gives_up) and time.monotonic() >= limit:
            op = op.filler.first
        group, daemon = self.group, self.connection.daemon
        what = f"{group.title(op.seq)}, {op.call}"
        limit = op.gives_up
        if op.ended or limit is None or time.monotonic() < limit:
            if op.ended:
                return
            raise errors.DeadlineExceeded(f"{what}: not finished yet; it goes on")
        if daemon.channel is None:
            state = f"is away ({daemon.trouble})"
        elif not op.handed_over and not daemon.silent:
            state = (
                f"had no room for it: {op.seq - op.session.released} calls before it are "
                "unfinished somewhere, and no more may be open (ipc.window, and "
                f"{SHORT_WINDOW >> 20} MiB of short tensors)"
            )
        else:
            state = "is there, but does not answer (see `ringd-cli status`; is it stopped?)"
            if daemon.broke:
                state = f"could not ask the others, as the ring broke: {daemon.broke}"
                state += " (if that is over: is it stopped? see `ringd-cli status`)"
        text = f"{what}: its deadline passed, and this machine's daemon {state}"
        group.give_up(op, errors.DeadlineExceeded(text))
        self.connection.pump.tell()
