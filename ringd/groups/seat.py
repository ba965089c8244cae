"""One local client's stay in a group: with whom it calls, from when on, and until when."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from ringd.errors import GroupLost, PeerLost
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.ledger import Ledger
from ringd.groups.offers import Offers, Rules
from ringd.groups.op import Op
from ringd.groups.polls import Polls
from ringd.groups.session import NOBODY, Part, Peers, Session
from ringd.groups.submissions import Submissions
from ringd.groups.words import client_on
from ringd.wire.link.control import Left


class Before(NamedTuple):
    """Where a client comes from that joins."""

    join_id: int = 0
    """Of its stay before this one; 0 for none."""
    loss: str = ""
    """Why that was lost, if it was: who left that session first, in words."""


class Join(NamedTuple):
    """What a client says when it joins, anew or (with the same join id) a restarted daemon."""

    group: str
    join_id: int
    on_loss: str = "wait"
    released: int = 0
    expected: int = 0
    """Ops from *released* up to this one are those that it is going to submit again."""
    session: Peers = NOBODY
    """What a former daemon told it of its peers (:class:`~ringd.groups.actions.TellSession`)."""
    before: Before = Before()
    part: Part = Part()


class Seat:
    """Has the parts of a stay, and starts, suspends and ends them together.

    Invariant: nothing is offered before the session is live and the client was told its peers;
    such a session is for good, and any other can be forgotten without a trace.

    Args:
        session: Of its group, or of a channel.
        rules: What this daemon knows of calls.
    """

    def __init__(
        self,
        client: Hashable,
        join: Join,
        session: Session,
        rules: Rules,
    ) -> None:
        self.group, self.join_id, self.on_loss = join.group, join.join_id, join.on_loss
        self.before = join.before
        self.left: Left | None = None
        """What the others were told when the client left, if it did."""
        self.pledged = False
        """The client knows its peers, as something may have been offered to them."""
        self.session = session
        out = session.mail.out
        self.channels: dict[tuple[int, int, int], Seat] = {}
        """Those that its client has opened: by sender's rank, receiver's rank, tag."""
        self.knocks: dict[int, tuple[int, int]] = {}
        """Channels whose other end is open, and that our client has yet to open: by number, our
        rank in it and the other end's member."""
        self.caller = caller = Caller(
            client, join.join_id, join.released, join.expected, out, join.group
        )
        ops: dict[int, Op] = {}
        self.ledger = ledger = Ledger(session, caller, ops, out, join.released)
        self.calls = calls = Calls(session, caller, ops, ledger, out)
        self.offers = offers = Offers(session, caller, ledger, calls, rules, out)
        self.polls = polls = Polls(session, caller, ledger, calls)
        self.submissions = Submissions(session, caller, ledger, calls, offers, polls, out)

    # --- the session ------------------------------------------------------------------

    def form(self, peers: Peers) -> None:
        """Take *peers* as the session's members."""
        self.session.form(peers)
        self.calls.meet_peers()
        self.ledger.advance()

    def unform(self) -> None:
        """Forget the members: they never agreed on this session; the client's ops wait on."""
        self.session.give_up()
        self.calls.forget_peers()

    def introduce(self) -> None:
        """Tell the others that the client is in the group, or leaves it, and how far it is.

        The done floor goes with it, as the session may never be live again: a member that knew
        all to be done has forgotten it.
        """
        self.session.introduce()
        session = self.session
        if self.left is not None:
            session.mail.announce(self.left, session.gid, beside=session.part.local_size > 1)
        if session.formed and self.ledger.own:
            self.ledger.announce_done()

    def go_live(self) -> None:
        """Offer everything that is not released, with the outcome it has here."""
        if not self.pledged:
            self.pledged = True
            self.caller.tell_session(*self.session.peers)
        self.ledger.advance()
        self.ledger.announce_done()
        self.polls.ask_overdue()
        self.offers.offer_all()

    def suspend(self) -> list[Op]:
        """The ring broke; return the ops about whose deadlines the others must be asked again."""
        self.session.suspend()
        self.polls.suspend()
        return self.calls.suspend()

    # --- the client -------------------------------------------------------------------

    def tell_again(self) -> None:
        """Tell the client what became of its stay; an interrupt may have lost what it was told."""
        self.caller.tell_accepted()
        if self.pledged:
            self.caller.tell_session(*self.session.peers)
        if self.calls.limit is not None:
            self.caller.tell_lost(self.calls.limit, *self.calls.loss)
        self.caller.tell_released(self.ledger.released)

    def leave(self, message: str, code: str = GroupLost.code) -> Left:
        """The client takes part no more; what it handed over is still completed for others."""
        submitted = self.caller.next_seq if self.session.formed else 0
        limit = self.calls.limit
        if limit is not None:
            if self.caller.next_seq >= limit:
                code, message = self._cause(message)
            submitted = min(submitted, limit)
        channels = tuple(
            (*key, channel.leave(message, code).submitted) for key, channel in self.channels.items()
        )
        self.left = Left(self.group, self.join_id, submitted, code, message, channels)
        self.caller.left = True
        self.calls.leave(submitted, code, message)
        return self.left

    def _cause(self, message: str) -> tuple[str, str]:
        """Return what the others are told of a client that leaves because its session is over.

        That is who left first, in the same words for all: some may only hear that the survivors
        leave, as when the ring broke in between.
        """
        code, loss = self.calls.loss
        if code in (GroupLost.code, PeerLost.code):
            return code, loss
        return GroupLost.code, f"{message}: {loss}"

    @property
    def client_waits(self) -> bool:
        """Whether the client has an open call, or waits to make one."""
        return self.calls.client_waits

    def abandon(self) -> None:
        """The client is not there any more to hear how its calls end."""
        self.caller.client = None
        self.calls.settle()

    def peer_left(self, rank: int, submitted: int, code: str, message: str) -> None:
        """The client of *rank* takes part no more from op *submitted* on."""
        if code == PeerLost.code and self.on_loss != "fail":
            code, view = GroupLost.code, self.session.view
            reason = f'waits for nobody (on_loss="fail"): {message}'
            message = client_on(view.names[rank], reason, f"rank {rank}")
        self.calls.cut(submitted, code, message)

    @property
    def finished(self) -> bool:
        """Whether the client left and nobody needs anything of its calls any more."""
        return self.left is not None and (self.calls.over or not self.session.formed)
