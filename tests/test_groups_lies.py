"""A member of a session says anything that can be decoded, thousands of times; no engine fails."""

from __future__ import annotations

import os
import random
import typing
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from ringd.border.validate import unfit
from ringd.collective import kinds
from ringd.collective.arrange import arrange
from ringd.collective.call import Call
from ringd.collective.eager import EagerRule
from ringd.collective.layout import Layout
from ringd.collective.view import View
from ringd.daemon.performer import _arithmetic
from ringd.groups.actions import Run, Stop
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import Submission
from ringd.groups.seat import Join
from ringd.groups.session import session_number
from ringd.ring.bulk import flat
from ringd.wire.link import control
from ringd.wire.link.control import Joined, Offer
from ringd.wire.link.frames import FrameError
from tests.test_ring_lies import OURS, TRIO, Fuzz

EAGER = 1024
RULE = EagerRule(EAGER, together=0)
IDS = (1, 2, OURS)
GID = session_number(TRIO, IDS)

CALLS = [
    Call("all_reduce", "sum", "float32", (4,), "grad"),
    Call("all_reduce", "mean", "float16", (5000,), ""),
    Call("all_gather", "", "int64", (2, 3), "", -1, (2, 2, 2)),
    Call("all_to_all", "", "int32", (6,), "", -1, (1, 2, 3, 1, 1, 1)),
    Call("broadcast", "", "float64", (3,), "", 2),
    Call("reduce_scatter", "max", "uint8", (6,), ""),
    Call("barrier", "", "", (), ""),
]


class Member:
    """The member a, with a client that makes calls, and b, which is honest, as the engine sees."""

    def __init__(self):
        self.rules = Rules(refusal=unfit, eager=RULE.is_eager, fits=RULE.fits)
        self.now = 0.0
        self.engine = Engine(view=View(("a", "b", "c"), 0), window=8, rules=self.rules)
        self.running = set()
        self.computed = 0
        self.join_id = 1
        self.begin()

    def begin(self):
        """Have the ring form, and the session go live."""
        self.do(self.engine.ring_up(self.now))
        if self.engine.roll.seats.get(self.join_id) is None:
            self.do(self.engine.attach("client", Join(TRIO, self.join_id), self.now))
        for session in ((), (self.join_id, *IDS[1:])):
            for origin in (1, 2):
                self.hear(Joined(TRIO, IDS[origin], session), origin)

    @property
    def gid(self):
        """The number of the session that the client counts on."""
        return session_number(TRIO, (self.join_id, *IDS[1:]))

    def hear(self, message, origin, *, gid=0, seq=0, rank=None, payload=b""):
        """Hear what comes over a link, as far as the daemon lets it through."""
        try:
            message = control.decode_group(msgspec.msgpack.encode(message), 3)
        except (*control.DecodeError, FrameError):
            return
        if len(payload) <= EAGER:
            rank = origin if rank is None else rank
            self.do(self.engine.received(origin, rank, gid, seq, message, payload, self.now))

    def do(self, actions):
        """Compute what is to be computed, as the daemon does."""
        later = []
        for action in actions:
            if isinstance(action, Run):
                self.compute(action)
                later.append((action.gid, action.view.rank, action.seq))
                self.running.add(later[-1])
            elif isinstance(action, Stop):
                self.running.discard((action.gid, action.rank, action.seq))
        for key in later:
            if key in self.running:
                self.running.discard(key)
                self.do(self.engine.finished(*key, self.now))

    def compute(self, run):
        """Compute a small call, and arrange a large one."""
        rank, size = run.view.rank, run.view.size
        call = run.calls[rank]
        dtype, reduction = _arithmetic(call.kind, call.reduction, call.dtype, size)
        self.computed += 1
        if run.payloads is None:
            layout = Layout.of(run.view.places, run.view.place)
            wide = dtype if reduction is None else reduction.accumulator
            arrange(
                tuple(map(kinds.bare, run.calls)),
                layout,
                itemsize=dtype.itemsize,
                accumulator_itemsize=wide.itemsize,
                chunk_bytes=4096,
                by_rank=False,
            )
            return
        inputs = [flat(payload, dtype) for payload in run.payloads]
        target = np.empty(kinds.target_count(run.calls[rank], rank, size), dtype)
        kinds.of(run.calls[rank]).compute(
            kinds.Inputs(inputs, run.calls, rank, reduction, run.view.order), target
        )


def lies(seed, count):
    """Have a member say *count* things; return how many calls were computed with it."""
    member = Member()
    heard = {(place, TRIO): Joined(TRIO, IDS[place], ()) for place in (0, 1)}
    liar = SimpleNamespace(heard=heard, offered={})
    fuzz, pick = Fuzz(liar, seed, 1), random.Random(seed).choice
    for step in range(count):
        member.now += 0.01
        seat = member.engine.roll.seats.get(member.join_id)
        if seat is None or seat.calls.limit is not None or step % 500 == 499:
            member.do(member.engine.ring_down("cut", member.now))
            member.do(member.engine.detach("client", "left", member.now))
            member.join_id += 10
            heard[0, TRIO] = Joined(TRIO, member.join_id, ())
            member.begin()
            continue
        gid, seq = member.gid, seat.caller.next_seq
        if step % 3 == 0:
            call = CALLS[seq % len(CALLS)]
            taken, _ = kinds.nbytes(call, 0, 3)
            payload = bytes(taken or 0) if (taken or 0) <= EAGER else None
            submission = Submission(seq, call, payload, None, 9.0, hold=False, sealed=True)
            member.do(member.engine.submit("client", member.join_id, submission, member.now))
            offer = Offer(call, seq, payload is not None, False, "", "")
            honest = b"" if payload is None else bytes(kinds.source_bytes(call, 1, 3) or 0)
            member.hear(offer, 1, gid=gid, seq=seq, payload=honest)
            liar.offered[gid] = seq, offer, bytes(kinds.source_bytes(call, 2, 3) or 0)[:EAGER]
            if pick([True, False]):
                _, offer, payload = liar.offered[gid]
                member.hear(offer, 2, gid=gid, seq=seq, payload=payload if offer.eager else b"")
        message = fuzz.twisted(pick(fuzz.messages(gid)))
        if not isinstance(message, typing.get_args(control.GroupMessage)):
            continue
        now, _, payload = liar.offered.get(gid, (0, None, b""))
        member.hear(
            message,
            2,
            gid=pick([gid, gid, gid, 0, 7]),
            seq=pick([now, now, now, now + 1, now + 7, now + 8, 0, (1 << 64) - 1]),
            rank=pick([2, 2, 2, 0, 3]),
            payload=pick([payload, payload, b"", b"x" * 8]) if isinstance(message, Offer) else b"",
        )
        member.do(member.engine.tick(member.now))
        for seat in member.engine.roll.seats.values():
            assert len(seat.calls.ops) <= 3 * 8
    return member.computed


@pytest.mark.parametrize("seed", range(200 if os.environ.get("RINGD_TEST_EXHAUSTIVE") else 3))
def test_no_engine_fails(seed):
    """Whatever is said, calls end, and no more of them are kept than the window has."""
    assert lies(seed, 2000) > 10
