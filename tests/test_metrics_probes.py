"""The probes: an answer is proof that the daemon gets on."""

from __future__ import annotations

import re

import pytest
from netkit import run_until

from ringd.metrics import probes as probing
from ringd.metrics.probes import Probes, Stalls

OP = (1, 0)


class Stand:
    """Probes of a daemon that proves what it is told to."""

    def __init__(self, loop, **how):
        self.loop = loop
        self.waiting = []
        self.obstacle = ""
        self.positions = {}
        self.probes = Probes(
            loop,
            prove=how.get("prove", self.waiting.append),
            forget=self.waiting.remove,
            obstacle=lambda: self.obstacle,
            positions=lambda: self.positions,
            patience=how.get("patience", 10.0),
        )

    def ask(self, question):
        """Return the status and the text of an answer."""
        box = []
        question(box.append)
        run_until(self.loop, lambda: box)
        return box[0].status.value, box[0].body.decode().strip()


def at_once(told):
    """Prove."""
    told()


def test_proof(loop):
    """There is no answer before the proof, and one with it."""
    stand = Stand(loop)
    box = []
    stand.probes.live(box.append)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert box == []
    stand.waiting.pop()()
    assert box[0].status == 200
    assert loop._earliest() is None


def test_no_proof(loop, monkeypatch):
    """What does not come in time does not count later."""
    monkeypatch.setattr(probing, "WITHIN", 0.02)
    stand = Stand(loop)
    status, text = stand.ask(stand.probes.live)
    assert (status, text) == (503, "what programs send was not read within 0.02 s")
    assert stand.waiting == []


def test_a_ring_that_is_not_up(loop):
    """The daemon is alive, and of no use now; the text says why."""
    stand = Stand(loop, prove=at_once)
    stand.obstacle = "forming; waits for b: connection refused"
    assert stand.ask(stand.probes.live) == (200, "ok")
    assert stand.ask(stand.probes.ready) == (503, stand.obstacle)
    stand.obstacle = ""
    assert stand.ask(stand.probes.ready) == (200, "ok")


def test_a_call_that_stands_still(loop):
    """All have made it, and nothing moves; when it moves again all is well."""
    stand = Stand(loop, prove=at_once, patience=0.0)
    stand.probes._patience = 0.01
    stand.positions = {OP: (3, 4)}
    assert stand.ask(stand.probes.ready)[0] == 200
    loop.call_later(0.05, loop.stop)
    loop.run()
    status, text = stand.ask(stand.probes.ready)
    assert status == 503
    assert re.fullmatch(r"a call that all members have made has not moved for \d+ s", text)
    stand.positions = {OP: (4, 4)}
    assert stand.ask(stand.probes.ready)[0] == 200


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([], 0.0),
        ([({}, 5.0)], 0.0),
        ([({OP: 1}, 5.0)], 0.0),
        ([({OP: 1}, 5.0), ({OP: 1}, 7.0), ({OP: 1}, 9.0)], 4.0),
        ([({OP: 1}, 5.0), ({OP: 2}, 7.0), ({OP: 2}, 9.0)], 2.0),
        ([({OP: 1}, 5.0), ({}, 7.0), ({OP: 1}, 9.0)], 0.0),  # it began anew
        ([({OP: 1, (2, 0): 1}, 5.0), ({OP: 2, (2, 0): 1}, 7.0)], 2.0),
    ],
)
def test_stalls(looks, expected):
    """The longest time for which an op was seen in one place."""
    stalls = Stalls()
    seconds = 0.0
    for positions, now in looks:
        seconds = stalls.look(positions, now)
    assert seconds == expected
