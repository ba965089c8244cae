"""Who is let in: within the account of its user, and the descriptors that the daemon has."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from ringd.border import gate, lifeline
from ringd.border.accounts import Account, Accounts
from ringd.host.credentials import peer_credentials
from ringd.host.limits import OpenFiles

_ROOM_AGAIN = 2 * (gate.DESCRIPTORS + lifeline.DESCRIPTORS)
"""Descriptors; else the log would go to and fro with the last one."""
_FOR = 0.5
"""Seconds, in which nobody was refused; likewise."""

_SOON_FREE = gate.DESCRIPTORS - 1
"""Of a ZeroMQ connection that is parted with: libzmq may keep its own for a while."""

Part = Callable[[], None]
"""Parts with a connection."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    cause: str
    """As it is counted."""
    reason: str
    """As it is told."""


class _Idle:
    """Connections of one kind that are for nothing yet."""

    def __init__(self) -> None:
        self._by_user: dict[int, dict[Account, Part]] = {}
        """The oldest first."""
        self._count = 0

    def count(self, uid: int | None = None) -> int:
        """Return how many there are, of a user or of all."""
        return self._count if uid is None else len(self._by_user.get(uid, ()))

    def add(self, account: Account, part: Part) -> None:
        """One has come; *part* parts with it, and has it removed here."""
        self._by_user.setdefault(account.uid, {})[account] = part
        self._count += 1

    def remove(self, account: Account) -> None:
        """It is none of these any more; harmless if it was none."""
        of_user = self._by_user.get(account.uid, {})
        if of_user.pop(account, None) is not None:
            self._count -= 1
            if not of_user:
                del self._by_user[account.uid]

    def part(self, uid: int) -> bool:
        """Part with the oldest one of a user; return whether there was any."""
        of_user = self._by_user.get(uid)
        if not of_user:
            return False
        next(iter(of_user.values()))()
        return True


class Admission:
    """Opens accounts, and closes them.

    When there is no room for a connection, the oldest one of its user that is for nothing yet
    makes room. Behind each lifeline that is for nothing yet a ZeroMQ connection is expected.

    Args:
        accounts: What everybody has.
        open_files: Of this process.
        refused: Where those that are turned away are counted, by cause.
        log: The border's.
    """

    def __init__(
        self,
        accounts: Accounts,
        open_files: OpenFiles,
        refused: Counter[str],
        log: FilteringBoundLogger,
    ) -> None:
        self._accounts = accounts
        self._open_files = open_files
        self._refused = refused
        self._log = log
        self._lifelines = _Idle()
        self._at_gate = _Idle()
        self._full = False  # of open files
        self._refused_at = 0.0

    def to_gate(self, connection: socket.socket, part: Part, to_accept: int) -> Account | None:
        """Return the account of one that wants to speak ZeroMQ; None to turn it away.

        libzmq ends the process when it accepts a connection for which there is no descriptor; so
        many are *to_accept* yet.
        """
        account = self._open(connection)
        if account is None:
            return None
        refusal = self._refusal(account, gate.DESCRIPTORS, 0, to_accept)
        if refusal and self._at_gate.part(account.uid):
            self._open_files.given_back(_SOON_FREE)
            refusal = self._refusal(account, gate.DESCRIPTORS, 0, to_accept)
        self._say(refusal)
        if refusal:
            return None
        account.enter(gate.DESCRIPTORS)
        self._at_gate.add(account, part)
        return account

    def to_lifeline(self, connection: socket.socket, part: Part) -> Account | str:
        """Return the account of one that wants a lifeline, or why it gets none."""
        account = self._open(connection)
        if account is None:
            return "it is gone"
        refusal = self._refusal_of_lifeline(account)
        for idle, files in (
            (self._lifelines, lifeline.DESCRIPTORS),
            (self._at_gate, _SOON_FREE),
        ):
            if refusal and idle.part(account.uid):
                self._open_files.given_back(files)
                refusal = self._refusal_of_lifeline(account)
        self._say(refusal)
        if refusal:
            return f"this machine's daemon takes no more programs: {refusal.reason}"
        account.enter(lifeline.DESCRIPTORS)
        self._lifelines.add(account, part)
        return account

    def is_in_use(self, account: Account) -> None:
        """It has become what it came for, and makes no room for others."""
        self._lifelines.remove(account)
        self._at_gate.remove(account)

    def leave_gate(self, account: Account) -> None:
        """That connection has ended."""
        self._at_gate.remove(account)
        account.leave(gate.DESCRIPTORS)

    def leave_lifeline(self, account: Account) -> None:
        """That lifeline has ended."""
        self._lifelines.remove(account)
        account.leave(lifeline.DESCRIPTORS)

    def _open(self, connection: socket.socket) -> Account | None:
        try:
            return self._accounts.open(peer_credentials(connection).uid)
        except OSError:
            return None

    def _refusal_of_lifeline(self, account: Account) -> _Refusal | None:
        uid = account.uid
        expected = 1 + max(0, self._lifelines.count(uid) - self._at_gate.count(uid))
        of_all = 1 + max(0, self._lifelines.count() - self._at_gate.count())
        files = lifeline.DESCRIPTORS
        return self._refusal(account, files, expected, of_all * gate.DESCRIPTORS)

    def _refusal(
        self, account: Account, files: int, expected: int, promised: int
    ) -> _Refusal | None:
        """Return why a connection that takes so many files cannot be had, if it cannot.

        So many more of the same user are *expected* over ZeroMQ; and so many files are *promised*
        to anybody.
        """
        if reason := account.connections.refusal(1 + expected):
            return _Refusal("programs", reason)
        if reason := account.files.refusal(files + expected * gate.DESCRIPTORS):
            return _Refusal("open files", reason)
        if reason := self._open_files.refusal(files, promised=promised):
            return _Refusal("open files", reason)
        return None

    def _say(self, refusal: _Refusal | None) -> None:
        if refusal is None:
            over = time.monotonic() - self._refused_at > _FOR
            if self._full and over and self._open_files.room >= _ROOM_AGAIN:
                self._full = False
                self._log.info("there is room for programs again")
            return
        self._refused[refusal.cause] += 1
        count = self._refused[refusal.cause]
        self._refused_at = time.monotonic()
        if refusal.cause == "open files" and not self._full:
            self._full = True
            self._log.error(
                "near the limit of open files, programs are refused", reason=refusal.reason
            )
        elif refusal.cause == "programs" and count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th...
            self._log.warning("programs are refused", reason=refusal.reason, refused_so_far=count)
