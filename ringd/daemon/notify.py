"""Word to the service manager: systemd's notification protocol, sd_notify(3).

One datagram per message to the socket named by ``$NOTIFY_SOCKET``; silence where there is none
(launchd, a terminal). The watchdog is fed from the loop, so a daemon that is stuck starves it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from ringd.net.loop import Loop


class ServiceManager:
    """The service manager that started this process, if any."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        # Children must not speak in our name.
        self._path = environ.pop("NOTIFY_SOCKET", "")
        self._watchdog = 0.0
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if usec.isdigit() and pid in ("", str(os.getpid())):
            self._watchdog = int(usec) / 1e6

    def tell(self, *assignments: str) -> None:
        """Send *assignments* such as ``READY=1``; nobody listening is no error."""
        if not self._path:
            return
        path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), path)

    def feed_watchdog(self, loop: Loop) -> None:
        """Feed the watchdog from *loop* from now on, at half its interval."""
        if self._watchdog:
            self.tell("WATCHDOG=1")
            loop.call_later(self._watchdog / 2, lambda: self.feed_watchdog(loop))
