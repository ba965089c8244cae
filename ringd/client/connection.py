"""A program's connection to its daemon, through all the daemon's lives, for any number of groups.

A blocking call needs no second thread: the caller itself sleeps on the sockets
(:mod:`ringd.client.pump`). For what must be done also while the program computes there is one
thread per connection, the keeper (:mod:`ringd.client.keeper`). What one group's calls do is in
:mod:`ringd.client.stay`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from ringd import errors
from ringd.client.channel import Channel
from ringd.client.daemon import Daemon
from ringd.client.group import Group
from ringd.client.groups import Groups
from ringd.client.keeper import Keeper
from ringd.client.notifier import Notifier
from ringd.client.pool import Block, Bytes, Pool
from ringd.client.pump import Pump
from ringd.wire.border.messages import Attached, DecodeError

_CALLBACK_PATIENCE = 1.0  # seconds, at the program's end, for a callback under way

_alive: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """See the module's docstring. All methods may be called from any thread."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.pool = Pool()
        self.daemon = Daemon(self.pool)
        self.groups = Groups(self.daemon)
        self.pump = Pump(self.settle, self.is_settled, self._lost, self.fail)
        self.keeper = Keeper(paths, self.daemon, self.groups, self.pump)
        self.wait = self.pump.wait
        """:meth:`ringd.client.pump.Pump.wait`, for the program."""
        self.notifier = Notifier(self.wait)
        self._pid = os.getpid()
        self.closed = False
        """No group is left, or all were hung up on."""
        self.abandoned = False
        """Closed without ceremony: whatever waits ends now."""
        self.ended = False
        """Closed, and nothing is left to be done for that."""
        self.failed = False
        """Abandoned as the main thread has failed."""
        self.enders: dict[Group, None] = {}
        """Forgotten groups that may be the last: while there are some, no group can join."""
        self.some_forgotten = False
        """Whether a group is marked as :attr:`Group.forgotten` that may have yet to be left."""
        self.inputs_left = False
        """Whether an op is marked as :attr:`Op.left` that may have yet to be acted on."""

    # --- beginning and end ------------------------------------------------------------

    def start(self) -> None:
        """Begin to look for a daemon."""
        _alive.add(self)
        atexit.unregister(_exiting)  # called first is what was registered last
        atexit.register(_exiting)
        self.keeper.start()

    @property
    def ours(self) -> bool:
        """Whether it was made in this process, and not in the parent of a fork."""
        return os.getpid() == self._pid

    def enter(self, group: Group) -> bool:
        """Begin to join *group*; False if it is too late for that. Within the pump's run.

        Raises:
            Refused: an earlier ring of this process has its place.
        """
        self.settle()  # those that were forgotten leave first
        if self.closed:
            return False
        holder = self.groups.of_name(group)
        if holder is not None:
            raise errors.Refused(self._has_a_client(holder))
        self.groups.add(group)
        if self.closed or self.enders:  # looked at last: see :meth:`forget`
            self.let_go(group)
            return False
        self.settle()
        if group.fails_on_loss:
            self.keeper.watch()
        return True

    def _has_a_client(self, holder: Group) -> str:
        info = self.daemon.info
        where = "this machine" if info is None else repr(info.node)
        about = errors.open_here(holder.program, os.getpid())
        return f"group {holder.name!r} has a client on {where} already: {about}"

    def let_go(self, group: Group) -> None:
        """*group* has ended: forget it, and close the connection behind the last one.

        Within the pump's run.
        """
        for end in group.ends.values():
            self.groups.remove(end)
        self.groups.remove(group)
        if not self.groups:
            self.closed = True
            self.keeper.end()
            if self.pump.channel is not None:
                self.pump.channel.hang_up()
            self.pool.close()
            self.ended = True
        self.pump.tell()

    def forget(self, group: Group) -> None:
        """Leave *group* as soon as that can be, without the lock: nobody has a ring of it any more.

        The daemon is hung up on at once if no other group is left. One that joins at this moment
        either is seen here, or sees that it comes too late.
        """
        self.enders[group] = None
        group.abandon()
        if all(other.forgotten or other.ended for other in self.groups):
            self.abandon()
            return
        self.enders.pop(group, None)
        self.some_forgotten = True
        self.pump.unsettled = True  # for a thread that this interrupted inside
        self.keeper.wake()

    def abandon(self) -> None:
        """End without ceremony, nor lock: for the garbage collector, and at the process's end.

        Also what an interrupt has left of :meth:`let_go`.
        """
        if self.ours and not (self.ended or self.abandoned):
            self.closed = self.abandoned = True
            self.keeper.end()
            for group in self.groups:
                group.abandon()
            if (channel := self.pump.channel) is not None:
                channel.hang_up()

    def fail(self) -> None:
        """The main thread has failed: leave, so that the others are told."""
        self.failed = True
        self.abandon()

    def unavailable(self, timeout: float) -> errors.RingError:
        """Return why no daemon took a group in for *timeout* seconds."""
        if self.keeper.turned_away:
            return errors.ResourceExhausted(self.keeper.turned_away)
        trouble = self.daemon.trouble or f"{', '.join(self.paths)}: no answer yet"
        return self.keeper.refusal() or errors.DaemonUnavailable(
            f"no daemon within {timeout:g} s ({trouble}); "
            + (
                self.keeper.why_silent()
                or "start one with `ringd --config PATH`, or name its socket, which it logs as it "
                "starts, with RINGD_SOCKET or socket="
            )
        )

    def end_error(self) -> errors.RingError:
        """Return what ends calls that are open when their ring is closed."""
        if self.failed:
            return errors.MainThreadFailed()
        return errors.RingError("the ring was closed before the call had ended")

    def holds(self, name: str) -> bool:
        """Whether it has, or wants, this process's place in the group *name*."""
        if self.ended or self.abandoned:
            return False
        groups = (group for group in self.groups if group.name == name)
        return any(not (group.left or group.forgotten) for group in groups)

    def is_at(self, path: str) -> bool:
        """Whether it is with the daemon at *path*, so that a group could join here at once."""
        channel = self.pump.channel
        unusable = self.closed or self.enders or self.daemon.silent or not self.ours
        return not unusable and channel is not None and channel.attached and channel.path == path

    def in_child(self) -> None:
        """After a fork, in the child: let go of what would keep the parent alive."""
        if (channel := self.pump.channel) is not None:
            channel.in_child()

    # --- what its groups share --------------------------------------------------------

    @property
    def latest(self) -> Attached:
        """What the daemon said last of itself."""
        info = self.daemon.info
        assert info is not None  # noqa: S101 - no ring is made before
        return info

    @property
    def shared_memory(self) -> bool:
        """Whether the system has any, as far as is known."""
        return self.pool.usable

    def refresh(self) -> None:
        """Take in what has arrived, where that can be done now."""
        with contextlib.suppress(errors.CalledFromHandler):
            self.pump.run(self.settle)

    def lend(self, block: Block, length: int, *, as_input: bool = False) -> Bytes | None:
        """Return *block* as the user's array; None when they hold too much already.

        Half of the budget is for the calls themselves; an input was asked for and counts there.
        """
        pool = self.pool

        def step() -> Bytes | None:
            if not as_input and pool.lent + pool.given_back + length > pool.budget // 2:
                return None
            return pool.lend(block, length, as_input=as_input)

        return self.pump.run(step)

    def find(self, array: npt.NDArray[Any]) -> tuple[Block, int] | None:
        """Return the input block that *array*, C-contiguous, lies in, and the offset in it."""
        return self.pump.run(self.pool.find, array)

    def leave_input(self) -> None:
        """Let the user write to what ops have lent for whose end nobody can wait any more.

        They are marked, and so is :attr:`inputs_left`, by two stores between which no interrupt
        can come; one into this leaves them to whoever comes next, and else to the keeper.
        """
        if not self.ours or self.ended:
            return
        try:
            self.pump.insist(self._leave_inputs)
        except errors.CalledFromHandler:  # a finaliser: done when its thread comes out of there
            self.pump.unsettled = True
            self.keeper.wake()
        except BaseException:
            self.keeper.wake()
            raise

    # --- what the daemon says ---------------------------------------------------------

    def settle(self) -> None:
        """Take in every message that has arrived, and send what is due; within the pump's run."""
        if self.inputs_left:
            self._leave_inputs()
        if self.some_forgotten:
            self._leave_forgotten()
        channel = self.pump.channel
        if channel is None:
            self.groups.push()  # for what can be done without one
            return
        news = bool(channel.heard) and channel.sessions(partial(self.groups.meet, channel))
        news = self._receive(channel) or news
        if self.groups.unsent:
            self.groups.push()
        if news and (self.pump.waiters or self.pump.sleeper is not None):
            self.pump.tell()

    def is_settled(self) -> bool:
        """Whether :meth:`settle` has nothing to do but for what the sockets may tell of."""
        channel = self.pump.channel
        return not (
            channel is None
            or self.inputs_left
            or self.some_forgotten
            or self.groups.unsent
            or channel.heard
            or channel.calls.holds
        )

    def _leave_inputs(self) -> None:
        self.inputs_left = False  # first: others may come while this is under way
        done = False
        try:
            done = self.groups.leave_marked_inputs()
        finally:
            if not done:  # an interrupt; or the system has no memory now
                self.inputs_left = True

    def _leave_forgotten(self) -> None:
        self.some_forgotten = False  # as above
        done = False
        try:
            for group in self.groups:
                if group.forgotten and group in self.groups and not self.abandoned:
                    group.leave(hung_up=True)
                    group.end(self.end_error())
                    self.let_go(group)
            done = True
        finally:
            if not done:
                self.some_forgotten = True

    def _receive(self, channel: Channel) -> bool:
        """Take in every message that has arrived; return whether there was one."""
        news, more, calls = False, True, channel.calls
        try:
            while more and (received := channel.receive()) is not None:
                news = True
                self.groups.receive(*received)
                more = calls.taken()
            if calls.unsent:
                calls.send()
        except DecodeError as error:
            calls.taken()
            self.daemon.part(f"it sent what is no message of this version: {error}")
        except ConnectionError:
            channel.hang_up()  # as it did
        except OSError as error:
            self.daemon.part(f"its call socket broke: {error}")
        return news

    def _lost(self, channel: Channel) -> None:
        """The daemon is gone; the keeper, which sees that too, closes the channel.

        Before it does, it calls this to the end, whatever interrupts have left of that.
        """
        self.groups.lose(channel)
        if self.pump.channel is channel:
            self.pump.channel = None
        self.pump.tell()


def connection_at(paths: Sequence[str]) -> Connection | None:
    """Return a connection of this process to the daemon that a new one to *paths* would find."""
    for path in paths:
        for connection in list(_alive):
            if connection.is_at(path):
                return connection
        if os.path.lexists(path):  # it would be asked first
            return None
    return None


def holders(name: str) -> Iterator[Connection]:
    """Return the connections of this process that have a place in the group *name*."""
    return (connection for connection in list(_alive) if connection.holds(name))


def _forked() -> None:
    for connection in list(_alive):
        connection.in_child()
    _alive.clear()


def _exiting() -> None:
    """Let the others know now: the rest may take long."""
    for connection in list(_alive):
        connection.abandon()
    for connection in list(_alive):
        connection.notifier.stop(_CALLBACK_PATIENCE)


os.register_at_fork(after_in_child=_forked)
