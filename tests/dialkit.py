"""What the tests of dialing share: a dialer among listeners, and hosts that do not answer."""

from __future__ import annotations

import random
import socket
from contextlib import contextmanager

from netkit import KEY, bound, identity, open_fds, welcome

from ringd.config.settings import JoinSettings
from ringd.loop import Loop
from ringd.net.backoff import Backoff
from ringd.net.dialer import Attempt, Dialer
from ringd.net.listener import Listener
from ringd.net.resolver import Resolver
from tests.cluster import wait_until
from tests.ownports import free_ports

PATIENT = JoinSettings(connect_timeout=60, handshake_timeout=60)
"""Who answers has all the time that a busy machine takes."""

QUICK = JoinSettings(connect_timeout=0.2, handshake_timeout=0.2)
"""Who does not answer is soon given up; so may be one who answers, if the machine is busy."""


class NoWait(Backoff):
    """A backoff that never waits, and counts."""

    def __init__(self):
        super().__init__(0.1, 1, random.Random(1))
        self.waits = 0
        self.resets = 0

    def next(self):
        """Return no wait."""
        self.waits += 1
        return 0.0

    def reset(self):
        """Count."""
        self.resets += 1


class Forever(NoWait):
    """A backoff that does not end by itself."""

    def next(self):
        """Return a wait that only a knock ends."""
        super().next()
        return 3600.0


class Scene:
    """A loop, a dialer of rank 0 towards rank 1, and what happened to it; leaves nothing open."""

    def __init__(self):
        self._open_before = open_fds()
        self.loop = Loop()
        self.links = []
        self.failures = []
        self.knocks = []
        self.answered = []
        self.unanswered = []
        self.accepted = []
        self.refused = []
        self.closables = []

    def dialer(self, *addresses, backoff=None, settings=PATIENT, **changes):
        """Return a dialer that was started."""
        values = {
            "identity": identity,
            "key": KEY,
            "target": "b",
            "addresses": lambda: addresses,
            "settings": settings,
            "backoff": backoff or NoWait(),
            "on_link": lambda sock, peer, address, leftover: self.links.append(
                (sock, peer, address, leftover)
            ),
            "on_failure": lambda address, reason: self.failures.append((address, reason)),
            "resolver": Resolver(self.loop),
        }
        dialer = Dialer(self.loop, **(values | changes))
        self.closables.append(dialer)
        dialer.start()
        return dialer

    def listener(self, rank=1, host="127.0.0.1", port=0):
        """Return the address of a listener that was started, and the listener."""
        listener = Listener(
            self.loop,
            bind=[(host, port)],
            identity=lambda: identity(rank),
            key=KEY,
            settings=PATIENT,
            on_link=lambda sock, peer, *_: self.accepted.append((sock, peer)),
            on_knock=self.knocks.append,
            on_refused=lambda address, reason, _cause: self.refused.append((address, reason)),
            judge=welcome,
        )
        listener.start()
        self.closables.append(listener)
        return address(*bound(listener)[0]), listener

    def knock(self, *addresses):
        """Return a knock of rank 1 at rank 0, which is under way."""
        knock = Attempt(
            self.loop,
            identity=lambda: identity(1),
            key=KEY,
            target="a",
            addresses=addresses,
            settings=PATIENT,
            resolver=Resolver(self.loop),
            purpose="knock",
            on_link=lambda sock, _peer, address, _leftover: (
                sock.close(),
                self.answered.append(address),
            ),
            on_failed=self.unanswered.append,
        )
        self.closables.append(knock)
        return knock

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for closable in self.closables:
            closable.stop()
        for sock, *_ in [*self.links, *self.accepted]:
            sock.close()
        self.loop.close()
        # Fewer, where what former tests left was collected meanwhile; a thread may yet end.
        wait_until(lambda: open_fds() <= self._open_before, "nothing is left open")


def address(host, port):
    """Return an address as configured."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port():
    """Return a port on which nobody listens, and nobody else will."""
    (port,) = free_ports(1)
    return port


@contextmanager
def full_host():
    """Give the address of a host that drops every SYN: a listener whose queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        queued = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            queued.append(sock)
        yield address(*server.getsockname())
        for sock in queued:
            sock.close()
