"""Who is let in: within the account of its user, and the descriptors that the daemon has."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from ringd.border import gate, lifeline
from ringd.border.accounts import Account, Accounts
from ringd.host.credentials import peer_credentials
from ringd.host.limits import OpenFiles

_ROOM_AGAIN = 2 * (gate.DESCRIPTORS + lifeline.DESCRIPTORS)
"""Descriptors; else the log would go to and fro with the last one."""


class Admission:
    """Opens accounts.

    Args:
        accounts: What everybody has.
        open_files: Of this process.
        refused: Where those that are turned away are counted, by cause.
        log: The border's.
        to_come: Returns how many of those that have a lifeline have yet to come over ZeroMQ.
        part_with_idle: Parts with the oldest of a user's connections that are for nothing yet, and
            returns how many descriptors that gave back.
    """

    def __init__(
        self,
        accounts: Accounts,
        open_files: OpenFiles,
        refused: Counter[str],
        log: FilteringBoundLogger,
        *,
        to_come: Callable[[], int],
        part_with_idle: Callable[[int], int],
    ) -> None:
        self._accounts = accounts
        self._open_files = open_files
        self._refused = refused
        self._log = log
        self._to_come = to_come
        self._part_with_idle = part_with_idle
        self._full = False

    def to_gate(self, connection: socket.socket) -> Account | None:
        """Return the account of one that wants to speak ZeroMQ; None to turn it away."""
        admitted = self._admit(connection, gate.DESCRIPTORS, lambda: 0)
        return None if isinstance(admitted, str) else admitted

    def to_lifeline(self, connection: socket.socket) -> Account | str:
        """Return the account of one that wants a lifeline, or why it gets none."""
        return self._admit(
            connection,
            lifeline.DESCRIPTORS,
            promised=lambda: (1 + self._to_come()) * gate.DESCRIPTORS,
        )

    def _admit(
        self, connection: socket.socket, files: int, promised: Callable[[], int]
    ) -> Account | str:
        try:
            uid = peer_credentials(connection).uid
        except OSError:
            return "it is gone"
        account = self._accounts.open(uid)
        refusal = self._refusal(account, files, promised())
        if refusal and (given_back := self._part_with_idle(uid)):
            self._open_files.given_back(given_back)
            refusal = self._refusal(account, files, promised())
        if refusal:
            return f"this machine's daemon takes no more programs: {refusal}"
        account.enter(files)
        return account

    def _refusal(self, account: Account, files: int, promised: int) -> str:
        """Return why there is no room for one that takes so many files, if there is none.

        libzmq ends the process when it accepts a connection and there is no descriptor for it.
        """
        if refusal := account.connections.refusal() or account.files.refusal(files):
            self._refused["programs"] += 1
            return refusal
        refusal = self._open_files.refusal(files, promised=promised)
        if refusal:
            self._refused["open files"] += 1
        if refusal and not self._full:
            self._full = True
            self._log.error("near the limit of open files, programs are refused", reason=refusal)
        elif self._full and not refusal and self._open_files.room >= _ROOM_AGAIN:
            self._full = False
            self._log.info("there is room for programs again")
        return refusal
