"""Word to the service manager: systemd's notification protocol, sd_notify(3).

One datagram per message to the socket named by ``$NOTIFY_SOCKET``; silence where there is none
(launchd, a terminal). What that socket does not take at once is sent later, the latest word on each
matter. The watchdog is fed from the loop, and only with proof of progress: a daemon that is stuck,
or goes round and serves nobody, starves it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping

from ringd.loop import Loop, Timer

_FIRST_RETRY, _LAST_RETRY = 0.05, 5.0  # seconds


class ServiceManager:
    """The service manager that started this process, if any."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        # Children must not speak in our name.
        self._path = environ.pop("NOTIFY_SOCKET", "")
        self._watchdog = 0.0
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if usec.isdigit() and pid in ("", str(os.getpid())):
            self._watchdog = int(usec) / 1e6
        self._unsent: dict[str, str] = {}
        self._loop: Loop | None = None
        self._progress: Callable[[], bool] = lambda: True
        self._retry: Timer | None = None
        self._delay = _FIRST_RETRY

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._path)

    def use(self, loop: Loop, progress: Callable[[], bool]) -> None:
        """Let *loop* send what cannot be sent at once, and feed the watchdog from now on.

        That is fed while *progress*, asked twice in its interval, says that the daemon got on.
        """
        self._loop = loop
        self._progress = progress
        self._send()
        self._feed_watchdog()

    def tell(self, *assignments: str) -> None:
        """Send *assignments* such as ``READY=1``; nobody listening is no error."""
        if not self._path:
            return
        for assignment in assignments:
            key, _, value = assignment.partition("=")
            self._unsent[key] = value
        if self._retry is None:
            self._send()

    def _send(self) -> None:
        self._retry = None
        if not self._unsent:
            return
        message = "\n".join(f"{key}={value}" for key, value in self._unsent.items())
        path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), path)
        except OSError:  # it has much to read: the whole machine starts, perhaps
            if self._loop is not None:
                self._retry = self._loop.call_later(self._delay, self._send)
                self._delay = min(2 * self._delay, _LAST_RETRY)
        else:
            self._unsent.clear()
            self._delay = _FIRST_RETRY

    def _feed_watchdog(self) -> None:
        if self._watchdog and self._loop is not None:
            if self._progress():
                self.tell("WATCHDOG=1")
            self._loop.call_later(self._watchdog / 2, self._feed_watchdog)
