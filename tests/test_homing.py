"""Back to the preferred address, without daemons: what is tried, how often, and when it moves."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from netkit import run_until

from ringd.ring.homing import PROBES, Homing
from ringd.wire.link.handshake import Peer

PEER = Peer("b", 1, 1, "link", 7)


class Way:
    """A preferred address that answers or not, and what is done with it."""

    def __init__(self, loop):
        self.loop = loop
        self.answers = True
        self.calm = False
        self.tried = []
        """Purposes, in order."""
        self.asked = 0
        """How often somebody wanted to know whether it is quiet."""
        self.links = []
        self.homing = Homing(
            loop,
            config=lambda: SimpleNamespace(join=SimpleNamespace(prefer_after=0.03)),
            addresses=lambda: ("better:1", "used:1"),
            attempt=self.attempt,
            quiet=self.quiet,
            on_link=lambda *made: self.links.append(made),
            on_stay=lambda: None,
        )
        self.homing.linked("used:1", PEER)

    def attempt(self, addresses, purpose, on_link, on_failed):
        """Answer soon, as the address does."""
        assert addresses == ("better:1",)
        self.tried.append(purpose)
        if self.answers:
            self.loop.call_soon(lambda: on_link(socket.socket(), PEER, "better:1", b""))
        else:
            self.loop.call_soon(lambda: on_failed({"better:1": "better:1: gone"}))
        return SimpleNamespace(stop=lambda: None)

    def quiet(self):
        """Count the question."""
        self.asked += 1
        return self.calm


@pytest.fixture
def way(loop):
    """Give a way whose links are closed."""
    way = Way(loop)
    yield way
    way.homing.stop()
    for sock, *_ in way.links:
        sock.close()


def test_it_is_tried_on_while_it_is_not_quiet(loop, way):
    """Whether it is quiet is asked at each try, not in between; the link moves when it is."""
    run_until(loop, lambda: len(way.tried) > 3 * PROBES)
    assert set(way.tried) == {"probe"}
    assert way.asked == len(way.tried) - PROBES - (way.homing._trying is not None)
    way.calm = True
    run_until(loop, lambda: way.links)
    assert way.tried[-1] == "link"
    assert way.tried.count("link") == 1


def test_an_address_that_fails_while_it_waits_begins_anew(loop, way):
    """What answered long ago does not count when the quiet moment comes."""
    run_until(loop, lambda: way.asked > 1)
    way.answers = False
    tried = len(way.tried)
    run_until(loop, lambda: len(way.tried) > tried + 1)
    way.answers, way.calm = True, True
    tried = len(way.tried)
    run_until(loop, lambda: way.links)
    assert way.tried[tried:].count("probe") >= PROBES
