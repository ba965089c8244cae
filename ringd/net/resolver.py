"""Names to addresses, without holding up the loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Union

from ringd.loop import Loop

Endpoint = tuple[socket.AddressFamily, Any]
"""A family and a socket address of that family."""

Found = Union[list[Endpoint], OSError]


class Resolver:
    """Looks names up in threads, since getaddrinfo can block for many seconds.

    A name whose lookup is still under way is not looked up a second time, so a name server
    that does not answer costs one thread for each name, whatever the number of attempts.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[tuple[str, int], list[Callable[[Found], None]]] = {}

    def resolve(self, host: str, port: int, callback: Callable[[Found], None]) -> None:
        """Call ``callback(found)`` from the loop: the endpoints, or why there are none.

        The caller may have lost interest by then, and must notice that itself.
        """
        try:
            found = _look_up(host, port, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            pass  # not a literal address
        else:
            self._loop.call_soon(lambda: callback(found))
            return
        key = (host, port)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(callback)
            return
        self._waiting[key] = [callback]
        thread = threading.Thread(target=self._run, args=key, name=f"resolve {host}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads to be had
            self._deliver(key, OSError(str(error)))

    def _run(self, host: str, port: int) -> None:
        found: Found
        try:
            found = _look_up(host, port)
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(str(error))
        self._loop.call_threadsafe(lambda: self._deliver((host, port), found))

    def _deliver(self, key: tuple[str, int], found: Found) -> None:
        for callback in self._waiting.pop(key):
            callback(found)


def _look_up(host: str, port: int, flags: int = 0) -> list[Endpoint]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
