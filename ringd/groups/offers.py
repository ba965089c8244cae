"""What the members call, op by op, and the decision that follows.

* Every member broadcasts its *offer*. A member that holds all ``n`` offers decides by itself, and
  as all see the same offers all decide the same: run, or :class:`~ringd.errors.Mismatch`.
* A member that cannot run what another one offers says so at once, whatever its own client is
  about to do: without its offer nobody can complete the op.
* After the ring broke, everyone offers again what is not released, with the outcome it has. The
  order of the sum is fixed by rank, so a rerun gives those that missed the end the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from ringd.collective import kinds
from ringd.collective.call import MAX_TEXT, Call
from ringd.collective.view import View
from ringd.errors import Mismatch, Refused
from ringd.groups.actions import Action, Run
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.ledger import Ledger
from ringd.groups.op import OK, Move, Op, Phase, Submission
from ringd.groups.session import Session
from ringd.groups.words import differences, shorten
from ringd.wire.link.control import Offer, Verdict


class Rules(NamedTuple):
    """What this daemon knows of calls."""

    refusal: Callable[[Call, int], str] = lambda _call, _size: ""
    """Says why a call of so many ranks cannot be run here; empty if it can. Asked with a bare one,
    as what it has said is kept."""
    ends_together: Callable[[Call], bool] = lambda _call: True
    """Whether no member's part in a large call is through long before the others'."""
    short: int = 0
    """Bytes up to which a tensor travels with its offer, whatever the call is."""
    eager: Callable[[Call, int, View], bool] = lambda _call, _nbytes, _view: True
    """Whether so many bytes of a rank, which are more, do."""
    fits: Callable[[Call, int | None, int, int, bool], bool] = lambda *_: True
    """Whether so many bytes can be the tensor that a rank hands over with its offer; None for one
    that comes in chunks. Asked with the call, the bytes, the rank, the number of ranks, and whether
    each is on a member of its own."""


ANY_CALL = Rules()
"""Rules for which every call is right."""


@dataclass(slots=True, eq=False)
class Offers:
    """Runs an op once all members have offered it.

    Invariant: an op runs only if all calls fit together and some member lacks the result.
    """

    _session: Session
    _caller: Caller
    _ledger: Ledger
    _calls: Calls
    _rules: Rules
    _out: list[Action]

    def offer_all(self) -> None:
        """Offer everything that is not released, in order."""
        for seq in sorted(self._calls.ops):
            op = self._calls.ops.get(seq)  # an earlier one may have released it
            if op is not None and op.submission is not None:
                self.offer(op)

    def offer(self, op: Op) -> None:
        """Tell the others what our client calls, and how that ended here if it has."""
        submission = op.submission
        assert submission is not None  # noqa: S101 - nothing else is offered
        false = "" if submission.fault is None else self._judge(op, submission, submission.fault)
        session = self._session
        view, payload, rules, ledger = session.view, submission.payload, self._rules, self._ledger
        if payload is not None and (
            op.failed
            or (len(payload) > rules.short and not rules.eager(submission.call, len(payload), view))
        ):
            payload = None
        ledger.announced = ledger.done[view.rank]
        offer = Offer(
            call=submission.call,
            behind=op.seq - ledger.announced,
            eager=payload is not None,
            prompt=submission.hold,
            outcome=OK if op.has_result else op.outcome,
            message=op.message,
        )
        if false:
            payload = None
            offer = msgspec.structs.replace(
                offer, eager=False, outcome=Refused.code, message=shorten(false, MAX_TEXT)
            )
        if op.phase is Phase.OPEN:
            op.move(Move.OFFER)
        session.counts[view.rank] = max(op.seq + 1, session.counts[view.rank])
        session.mail.broadcast(view, session.gid, op.seq, offer, payload or b"")
        op.take(view.rank, offer, payload or b"")
        # All but the last offer of a call decide nothing, as a rule.
        if not op.lacking or op.ended or op.has_result or op.refused:
            self._consider(op)

    def _judge(self, op: Op, submission: Submission, fault: Callable[[int, int], str]) -> str:
        """End a call that turns out not to fit the session, which had yet to form when it came.

        Returns:
            What is wrong with one of which the client says that it ended well under a former
            daemon. That stands for the client, but cannot be served to others.
        """
        text = fault(self._session.view.rank, self._session.view.size)
        if text and op.has_result:
            return text
        submission.fault = None
        if text and not op.ended:
            self._calls.end(op, Refused.code, text)
        return ""

    def offered(
        self, rank: int, seq: int, offer: Offer, payload: bytes | memoryview, now: float
    ) -> None:
        """A member's part in op *seq* arrived."""
        session, call = self._session, offer.call
        view, counts = session.view, session.counts
        if seq >= counts[rank]:
            counts[rank] = seq + 1
        self._calls.peer_done(rank, seq - offer.behind)
        if seq >= self._ledger.released:
            op = self._calls.ops.get(seq) or self._calls.op(seq, now)
            nbytes = len(payload) if offer.eager else None
            special = call.name or call.counts or call.tensors or offer.outcome
            if special or not self._rules.fits(call, nbytes, rank, view.size, view.apart):
                offer = self._believable(rank, seq, offer, nbytes)
            op.take(rank, offer, payload)
            if op.submission is None:
                self._refuse(op, offer)
            elif not op.lacking or op.ended or op.has_result or op.refused:
                self._consider(op)

    def _believable(self, rank: int, seq: int, offer: Offer, nbytes: int | None) -> Offer:
        """Return *offer*, or one that fails in its place: what cannot be would be computed with."""
        view, call = self._session.view, offer.call
        if len(call.counts) > 2 * view.size:
            call, text = call.cut(), f"{len(call.counts)} counts"
        elif offer.outcome in ("", OK) and not self._rules.fits(
            kinds.bare(call), nbytes, rank, view.size, view.apart
        ):
            came = "a tensor in chunks" if nbytes is None else f"{nbytes} bytes"
            text = f"{came}, which cannot be that of {call}"
        else:
            return offer
        message = shorten(f"{view.describe(rank)} sent {text}", MAX_TEXT)
        self._session.broadcast(seq, Verdict(0, Refused.code, message))
        return msgspec.structs.replace(
            offer, call=call, eager=False, outcome=Refused.code, message=message
        )

    def _refuse(self, op: Op, offer: Offer) -> None:
        """End an op that could not be run here if our client took part in it, as it has yet to."""
        # What it has handed over was judged then, and what a former daemon had will be.
        if offer.outcome or self._caller.will_resubmit(op.seq):
            return
        text = self._rules.refusal(kinds.bare(offer.call), self._session.view.size)
        if text:
            self._session.broadcast(op.seq, Verdict(0, Refused.code, text))
            if not op.ended:
                self._calls.end(op, Refused.code, text)

    def _consider(self, op: Op) -> None:
        """Decide, as every member will, whether the op can run now or has ended.

        Invariant: the decision follows from the offers alone, which all members see alike; a
        result that stands here is kept, whatever the others offer.
        """
        if op.active or op.phase is Phase.FINISHED:
            return
        if op.ended or op.has_result:  # those that have released it offer nothing any more
            self._ledger.announce(op)
        elif op.refused:
            offer = next(offer for offer in op.offers if offer is not None and offer.failed)
            self._calls.end(op, offer.outcome, offer.message)
            return
        if not op.lacking and not op.failed:
            self._decide(op)

    def _decide(self, op: Op) -> None:
        offered, eager, lacks, failed = [], True, False, False
        for offer in op.offers:
            assert offer is not None  # noqa: S101 - all have offered it
            offered.append(offer.call)
            eager = eager and offer.eager
            if not offer.outcome:
                lacks = True
            elif offer.failed:
                failed = True
        calls = tuple(offered)
        reason = kinds.disagreement(calls)
        if reason is not None:
            if not op.has_result:
                names = self._session.view.described()
                text = differences(self._session.title(op.seq), calls, names, reason)
                self._calls.end(op, Mismatch.code, text)
        elif lacks and not failed:  # somebody lacks the result, and nobody has an error
            self._start(op, calls, eager=eager)

    def _start(self, op: Op, calls: tuple[Call, ...], *, eager: bool) -> None:
        submission, serve = op.submission, op.has_result
        assert submission is not None  # noqa: S101 - what all offered was submitted here too
        if serve and eager:
            return  # the payloads are round already: a member that lacks the result computes it
        op.move(Move.START)
        op.waits_for_all = not eager and not self._rules.ends_together(submission.call)
        payloads = tuple(op.payloads) if eager else None
        gid = self._session.gid
        view = self._session.view
        self._out.append(Run(gid, view, op.seq, calls, submission, payloads, serve))
