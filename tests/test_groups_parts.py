"""The parts of the groups engine, each alone: what it keeps, whatever is around it."""

from __future__ import annotations

import pytest
from groups_bench import call, submission

from ringd.collective.view import View
from ringd.errors import DeadlineExceeded, GroupLost
from ringd.groups import actions
from ringd.groups.absences import Absences
from ringd.groups.caller import Caller
from ringd.groups.calls import Calls
from ringd.groups.engine import Engine
from ringd.groups.ledger import Ledger
from ringd.groups.mail import Mail
from ringd.groups.offers import Offers, Rules
from ringd.groups.op import OK, Move, Op, Phase, Told
from ringd.groups.polls import Polls
from ringd.groups.reasons import Reasons
from ringd.groups.roll import Roll
from ringd.groups.seat import Before, Join, Seat
from ringd.groups.session import NOBODY, Part, Peers, Session, session_number
from ringd.groups.submissions import Submissions
from ringd.groups.timing import ASK_WITHIN, OpTimers
from ringd.wire.link.control import Done, Joined, Offer, Poll, Verdict

VIEW = View(("a", "b"), 0)
PEERS = Peers((10, 11), (0, 1))


class Parts:
    """The parts of a seat of rank 0 of two, whose session is live."""

    def __init__(self, *, released=0, expected=0):
        self.out = []
        ops = {}
        self.session = session = Session("g", 10, Part(), Mail(VIEW, self.out))
        session.form(PEERS)
        session.confirm(1)
        self.caller = caller = Caller("client", 10, released, expected, self.out)
        self.ledger = ledger = Ledger(session, caller, ops, self.out, released)
        self.calls = calls = Calls(session, caller, ops, ledger, self.out)
        self.offers = Offers(session, caller, ledger, calls, Rules(), self.out)
        self.polls = polls = Polls(session, caller, ledger, calls)
        self.submissions = Submissions(session, caller, ledger, calls, self.offers, polls, self.out)

    def did(self, kind):
        """Return what was asked for, of one kind."""
        return [action for action in self.out if isinstance(action, kind)]

    def said(self, kind):
        """Return the messages for the others, of one kind."""
        messages = [action.message for action in self.did((actions.Broadcast, actions.Relay))]
        return [message for message in messages if isinstance(message, kind)]

    def called(self, *moves, seq=0, **kwargs):
        """Return an op of the client after some moves."""
        op = self.calls.op(seq, 0.0)
        op.submission = submission(seq, **kwargs)
        self.caller.next_seq = seq + 1
        for move in moves:
            op.move(move)
        return op


def offer(what=None, *, outcome="", message="", prompt=False):
    """Return a member's part in a call."""
    return Offer(
        call=call() if what is None else what,
        behind=0,
        eager=True,
        prompt=prompt,
        outcome=outcome,
        message=message,
    )


RAN = (Move.OFFER, Move.START)


# --- session --------------------------------------------------------------------------


def test_a_session_is_live_while_all_have_confirmed_it():
    """A break takes that back, and nothing else."""
    session = Session("g", 10, Part(), Mail(VIEW, []))
    session.form(PEERS)
    gid = session.gid
    assert (session.formed, session.live, session.unconfirmed()) == (True, False, ["b"])
    assert [session.confirm(1), session.confirm(1)] == [True, False]
    assert session.live
    session.suspend()
    assert (session.live, session.gid, session.peers) == (False, gid, PEERS)


def test_a_session_that_was_given_up_does_not_come_back():
    """Late news of it may come yet."""
    session = Session("g", 10, Part(), Mail(VIEW, []))
    assert session.may_be(PEERS)
    session.form(PEERS)
    session.counts[1] = 4
    session.give_up()
    assert (session.formed, session.live) == (False, False)
    assert (session.peers, session.counts) == (NOBODY, [0])
    others = [Peers(ids, (0, 1)) for ids in ((10, 12), (13, 11), (11, 10))]
    assert [session.may_be(peers) for peers in (PEERS, *others)] == [False, True, False, False]


# --- caller ---------------------------------------------------------------------------


def ended(*, told=Told.NO, sealed=True, outcome=OK):
    """Return an op that has ended."""
    op = Op(0, 2, 0.0, submission=submission(0, sealed=sealed), told=told)
    op.end(outcome)
    return op


def test_a_caller_is_told_once_and_again_if_it_asks():
    """Each outcome is reported once as something new."""
    out = []
    caller, op = Caller("client", 10, 0, 0, out), ended()
    caller.tell_outcome(op, 0, again=True)  # not told yet
    for _ in range(2):
        caller.tell_outcome(op, 0)
    caller.tell_outcome(op, 0, again=True)
    assert [action.again for action in out] == [False, True]
    assert op.told is Told.YES


def test_a_caller_that_is_gone_is_told_nothing():
    """Nobody is there to hear it."""
    out = []
    caller = Caller("client", 10, 0, 0, out)
    caller.client = None
    caller.tell_accepted()
    caller.tell_session(*PEERS)
    caller.tell_outcome(ended(), 1)
    caller.tell_released(1)
    caller.tell_lost(0, GroupLost.code, "")
    assert out == []
    assert not caller.lacks_news(7)


@pytest.mark.parametrize(
    ("op", "acked", "left", "has"),
    [
        (ended(sealed=True), 0, False, True),
        (ended(sealed=False), 0, False, False),
        (ended(sealed=False), 1, False, True),
        (ended(sealed=False), 0, True, True),
        (ended(sealed=False, told=Told.KNEW), 0, False, True),
        (ended(sealed=False, told=Told.YES), 0, False, False),
        (ended(sealed=True, outcome="mismatch"), 0, False, False),
        (Op(0, 2, 0.0, submission=submission(0)), 1, False, False),
    ],
)
def test_what_a_caller_has_for_sure(op, acked, left, has):
    """What is sealed, acknowledged, its own word, or of no use to it any more."""
    caller = Caller("client", 10, 0, 0, [])
    caller.acked, caller.left = acked, left
    assert caller.has(op) is has


def test_a_caller_that_comes_back_owes_what_it_has_not_handed_over():
    """As long as it has not left."""
    caller = Caller("client", 10, 2, 4, [])
    assert [caller.will_resubmit(seq) for seq in range(6)] == [
        False,
        False,
        True,
        True,
        *[False] * 2,
    ]
    caller.next_seq = 3
    assert [caller.will_resubmit(seq) for seq in (2, 3)] == [False, True]
    caller.left = True
    assert not caller.will_resubmit(3)


# --- ledger ---------------------------------------------------------------------------


def test_what_all_are_done_with_is_forgotten_in_order():
    """The lowest floor decides, and each submission is freed once."""
    parts = Parts()
    for seq in range(3):
        parts.called(*RAN, seq=seq).end(OK)
    parts.ledger.advance()
    assert (parts.ledger.own, parts.ledger.released) == (3, 0)
    parts.calls.peer_done(1, 2)
    parts.calls.peer_done(1, 1)
    assert parts.ledger.done == [3, 2]
    assert (parts.ledger.released, list(parts.calls.ops)) == (2, [2])
    assert [action.submission.seq for action in parts.did(actions.Free)] == [0, 1]


def test_a_floor_does_not_pass_what_the_client_may_lack():
    """Though later outcomes are sure."""
    parts = Parts()
    parts.called(*RAN, seq=0, sealed=False).end(OK)
    parts.called(*RAN, seq=1).end(OK)
    parts.ledger.advance()
    assert parts.ledger.own == 0
    parts.ledger.ack(5)  # more than it has called
    assert (parts.ledger.own, parts.caller.acked) == (2, 2)


def test_lenders_hear_once_that_their_input_was_read():
    """And only when a restart cannot undo it."""
    parts = Parts()
    op = parts.called(*RAN)
    op.take(1, offer(prompt=True), b"")
    parts.ledger.announce(op)
    assert parts.said(Done) == []
    op.end(OK)
    for _ in range(2):
        parts.ledger.announce(op)
    assert parts.said(Done) == [Done(0, 0)]


# --- calls ----------------------------------------------------------------------------


def test_a_result_is_held_back_by_a_poll_and_then_by_its_lender():
    """Until the verdict is there, and the other rank has read the input."""
    parts = Parts()
    op = parts.called(*RAN, hold=True)
    op.polls.add(7)
    parts.calls.finished(0)
    assert op.phase is Phase.FINISHED
    op.polls.clear()
    parts.calls.go_on(op)
    assert (op.phase, parts.calls.ranks_that_may_need_input(op)) == (Phase.HELD, [1])
    assert len(parts.did(actions.Seal)) == 1
    parts.calls.peer_read_input(1, 0)
    assert (op.outcome, len(parts.did(actions.Report))) == (OK, 1)


def test_a_loss_ends_what_has_no_result_and_is_told_first():
    """What stands here completes all the same; whoever left first decides."""
    parts = Parts()
    done = parts.called(*RAN, Move.FINISH, Move.HOLD, seq=0, hold=True)
    running = parts.called(*RAN, seq=1)
    parts.calls.cut(0, GroupLost.code, "b died")
    parts.calls.cut(1, GroupLost.code, "c died")
    assert (done.outcome, running.outcome, running.message) == (OK, GroupLost.code, "b died")
    assert parts.calls.op(2, 0.0).message == "b died"
    kinds = [type(action) for action in parts.out]
    assert kinds == [
        actions.Report,
        actions.TellLost,
        actions.Stop,
        actions.Report,
        actions.Free,
    ]


def test_a_break_leaves_ops_to_be_asked_about_again():
    """Those whose deadline has passed, and nothing runs any more."""
    parts = Parts()
    late, other = parts.called(*RAN, seq=0), parts.called(*RAN, seq=1)
    late.overdue = True
    assert parts.calls.suspend() == [late]
    assert [op.phase for op in (late, other)] == [Phase.OFFERED] * 2
    assert len(parts.did(actions.Stop)) == 2


# --- offers ---------------------------------------------------------------------------


def test_an_op_runs_once_all_have_offered_it():
    """And not before."""
    parts = Parts()
    op = parts.called()
    parts.offers.offer(op)
    assert parts.did(actions.Run) == []
    parts.offers.offered(1, 0, offer(), b"theirs", 0.0)
    (run,) = parts.did(actions.Run)
    assert (run.payloads, run.serve, op.phase) == ((b"input", b"theirs"), False, Phase.RUNNING)


@pytest.mark.parametrize(
    ("theirs", "outcome"),
    [
        (offer(call(shape=4)), "mismatch"),
        (offer(outcome="mismatch", message="as they say"), "mismatch"),
        (offer(outcome=GroupLost.code, message="as they say"), GroupLost.code),
    ],
)
def test_a_difference_or_an_error_ends_an_op(theirs, outcome):
    """Whatever comes first, ours or theirs."""
    for ours_first in (True, False):
        parts = Parts()
        if ours_first:
            parts.offers.offer(parts.called())
        parts.offers.offered(1, 0, theirs, b"", 0.0)
        if not ours_first:
            parts.offers.offer(parts.called())
        (report,) = parts.did(actions.Report)
        assert report.code == outcome
        assert parts.did(actions.Run) == []


def test_a_result_that_stands_is_kept_whatever_others_offer():
    """An outcome never changes."""
    parts = Parts()
    op = parts.called(*RAN)
    op.end(OK)
    parts.offers.offer(op)
    parts.offers.offered(1, 0, offer(call(shape=4)), b"", 0.0)
    assert (op.outcome, parts.did(actions.Run)) == (OK, [])


# --- polls ----------------------------------------------------------------------------


def test_who_has_not_completed_holds_back_until_the_verdict():
    """A verdict without an error lets it complete."""
    parts = Parts()
    op = parts.called(*RAN)
    parts.polls.polled(1, 0, Poll(7, completed=False), 0.0)
    parts.calls.finished(0)
    assert (parts.said(Poll), op.ended) == ([Poll(7, completed=False)], False)
    parts.polls.judged(0, Verdict(7, "", ""), 0.0)
    assert op.outcome == OK


def test_who_has_completed_says_so():
    """Then the verdict is no error."""
    parts = Parts()
    parts.called(*RAN, Move.FINISH, Move.HOLD, hold=True)
    parts.polls.polled(1, 0, Poll(7, completed=False), 0.0)
    assert parts.said(Poll) == [Poll(7, completed=True)]


@pytest.mark.parametrize("completed", [False, True])
def test_our_own_poll_decides_when_it_is_back(completed):
    """Nobody had completed: nobody will."""
    parts = Parts()
    op = parts.called(Move.OFFER, timeout=3.0)
    parts.polls.expire(op, "", patient=True)
    parts.polls.polled(0, 0, Poll(op.own_poll, completed=completed), 0.0)
    code = "" if completed else DeadlineExceeded.code
    assert [verdict.code for verdict in parts.said(Verdict)] == [op.outcome] == [code]


def test_a_poll_waits_for_a_client_that_is_about_to_say_the_answer():
    """A break takes it along."""
    for breaks in (False, True):
        parts = Parts(expected=1)
        parts.polls.polled(1, 0, Poll(7, completed=False), 0.0)
        assert parts.said(Poll) == []
        parts.caller.next_seq = 1
        if breaks:
            parts.polls.suspend()
        parts.polls.answer_early()
        assert len(parts.said(Poll)) == (not breaks)


def test_others_are_waited_for_if_they_may_know_more():
    """They have our offer, and cannot be asked."""
    parts = Parts(released=0, expected=1)
    asked = [parts.called(seq=0), parts.called(seq=1), parts.called(Move.OFFER, seq=2)]
    assert not any(parts.polls.must_wait_to_ask(op) for op in asked)
    parts.session.suspend()
    assert [parts.polls.must_wait_to_ask(op) for op in asked] == [True, False, True]


# --- submissions ----------------------------------------------------------------------


def test_calls_are_taken_in_order_and_once():
    """What comes again must be the same."""
    parts = Parts()
    taken = submission(0)
    assert "skips op 0" in parts.submissions.fault(submission(1), 256)
    parts.submissions.take(taken, 0.0)
    assert parts.submissions.fault(submission(0), 256) == ""
    other = parts.submissions.fault(submission(0, what=call(shape=4)), 256)
    assert "was submitted as" in other
    parts.submissions.take_again(submission(0))
    assert "has 1 open ops before it" in parts.submissions.fault(submission(1), 1)
    assert len(parts.did(actions.Free)) == 1


@pytest.mark.parametrize(
    ("outcome", "hold", "phase", "told"),
    [
        ("", False, Phase.OPEN, Told.NO),
        (OK, False, Phase.ENDED, Told.KNEW),
        (OK, True, Phase.HELD, Told.NO),
        ("mismatch", False, Phase.ENDED, Told.KNEW),
    ],
)
def test_what_a_client_that_comes_back_knows_counts(outcome, hold, phase, told):
    """A lender was not told yet, though its result stands."""
    parts = Parts(expected=1)
    parts.session.suspend()
    told_before = submission(0, hold=hold)
    told_before.outcome = outcome
    op = parts.submissions.take(told_before, 0.0)
    assert (op.phase, op.told) == (phase, told)
    assert len(parts.did(actions.Free)) == (outcome == "mismatch")
    assert parts.did(actions.Report) == []


# --- seat -----------------------------------------------------------------------------


def seat(join_id=10, out=None, **kwargs):
    """Return a seat of rank 0 of two."""
    join = Join("g", join_id, **kwargs)
    out = [] if out is None else out
    return Seat("client", join, Session("g", join_id, Part(), Mail(VIEW, out)), Rules())


def test_a_seat_pledges_before_it_offers():
    """The client knows its peers when the others hear of a call."""
    out = []
    stay = seat(out=out)
    stay.submissions.take(submission(0), 0.0)
    stay.form(PEERS)
    assert out == []
    stay.session.confirm(1)
    stay.go_live()
    told = [getattr(action, "message", action) for action in out]
    assert [type(what) for what in told] == [actions.TellSession, Done, Offer]


def test_a_seat_that_is_left_is_finished_when_all_are_done():
    """What was handed over is still completed for the others."""
    stay = seat()
    stay.form(PEERS)
    stay.session.confirm(1)
    stay.go_live()
    stay.submissions.take(submission(0), 0.0)
    left = stay.leave("the client of rank 0 on 'a' left")
    assert (left.submitted, stay.finished) == (1, False)
    stay.offers.offered(1, 0, offer(), b"", 0.0)
    stay.calls.finished(0)
    stay.calls.peer_done(1, 1)
    assert stay.finished


# --- absences, roll -------------------------------------------------------------------


GID = session_number("g", PEERS.join_ids)


def test_the_same_is_said_of_one_that_is_gone_however_often_others_ask():
    """It had its time to come back."""
    absences = Absences(VIEW, 5.0)
    assert absences.counted_on("g", PEERS, GID, 0, 0, None, 0.0) is None
    assert absences.overdue(4.9, "did not come back") == []
    (notice,) = absences.overdue(5.0, "did not come back")
    assert notice.left.message == "the client of rank 0 on 'a' did not come back"
    assert absences.counted_on("g", PEERS, GID, 0, 0, None, 9.0) == notice
    assert absences.absent == {}


def test_an_absent_one_can_be_given_more_time_and_makes_way_for_a_successor():
    """Whose word on why it came counts, if it is the same client."""
    for before, text in ((Before(10, "b died"), "b died"), (Before(), "was replaced by another")):
        absences = Absences(VIEW, 5.0)
        absences.counted_on("g", PEERS, GID, 0, 0, None, 0.0)
        absences.postpone(9.0)
        assert absences.overdue(8.0, "") == []
        assert absences.taken("h", 20, 0, before) == []
        (notice,) = absences.taken("g", 20, 0, before)
        assert text in notice.left.message


@pytest.mark.parametrize("early", [False, True], ids=["later", "already there"])
def test_one_whose_channel_is_asked_for_first_makes_way_for_a_successor_too(early):
    """A channel's word comes the shorter way round; whose place it was, the session's word says."""
    absences, before = Absences(VIEW, 5.0), Before()
    pair = Peers((PEERS.join_ids[0], 11), (0, 1))
    assert absences.counted_on("g", pair, GID + 1, 0, None, None, 0.0) is None
    successor = before if early else None
    notice = absences.counted_on("g", PEERS, GID, 0, 0, successor, 0.1)
    assert absences.counted_on("g", pair, GID + 1, 0, None, None, 0.2) is None or early
    if not early:
        (notice,) = absences.taken("g", 20, 0, before)
    assert (notice.gid, notice.rank) == (session_number("g", PEERS.join_ids), 0)
    assert "was replaced by another" in notice.left.message
    assert absences.absent == {}


def test_a_roll_has_one_local_seat_in_a_group():
    """The one before leaves, and is dropped if nobody counts on it."""
    out = []
    roll = Roll(Mail(VIEW, out), Absences(VIEW, 5.0))
    first, second = seat(10, out), seat(20, out)
    for stay in (first, second):
        roll.admit(stay, NOBODY)
    roll.drop_finished()
    assert (roll.local("g"), list(roll.seats)) == (second, [20])
    assert "joined it anew" in roll.used_up(10, "g")
    assert roll.used_up(30, "g") == ""


def test_a_roll_forms_a_session_when_all_are_free():
    """Once the ring is up."""
    out = []
    roll = Roll(Mail(VIEW, out), Absences(VIEW, 5.0))
    stay = seat(10, out)
    roll.admit(stay, NOBODY)
    roll.ring_up()
    assert not stay.session.formed
    roll.joined(1, Joined("g", 11, ()), 0.0)
    assert (stay.session.peers, roll.by_gid) == (PEERS, {stay.session.gid: {0: stay}})
    assert not stay.session.live


# --- timing, reasons ------------------------------------------------------------------


def test_timers_forget_ops_that_ended_long_before():
    """At most twice as many entries as ops, and some."""
    roll = Roll(Mail(VIEW, []), Absences(VIEW, 5.0))
    stay = seat()
    roll.admit(stay, NOBODY)
    timers = OpTimers(roll)
    for seq in range(500):
        op = stay.calls.op(seq, 0.0)
        timers.add(100.0 + seq, stay, op)
        if seq:
            op.end(OK)
    assert len(timers) < 100
    assert timers.next == 100.0
    assert timers.due(1000.0) == [(stay, stay.calls.ops[0])]
    assert timers.next == float("inf")


def test_time_in_which_the_daemon_stood_still_counts_against_nobody():
    """A call that others may have completed waits for them from then on."""
    engine = Engine(view=VIEW, lost_after=3.0)
    engine.attach("client", Join("g", 10, expected=1, session=PEERS), 0.0)
    engine.submit("client", 10, submission(0, timeout=1.0), 0.0)
    ended = []
    for now in (50.0 + step / 10 for step in range(20)):  # it was stopped until then
        reports = [act for act in engine.tick(now) if isinstance(act, actions.Report)]
        ended += [(now, report.code) for report in reports]
    ((when, code),) = ended
    assert code == DeadlineExceeded.code
    assert 0 <= when - 50.0 - ASK_WITHIN < 0.2


@pytest.mark.parametrize(
    ("up", "joined", "slow", "reason"),
    [
        (False, False, "", "the ring is not up: b is away"),
        (True, False, "b writes", "b writes"),
        (True, False, "", "no client in the group on: b"),
        (True, True, "", "no client back in the group on: b"),
    ],
)
def test_what_hides_all_else_is_named_first(up, joined, slow, reason):
    """The ring, then a disk, then a client."""
    roll = Roll(Mail(VIEW, []), Absences(VIEW, 5.0))
    stay = seat()
    roll.admit(stay, NOBODY)
    if up:
        roll.ring_up()
    if joined:
        roll.joined(1, Joined("g", 11, ()), 0.0)
    reasons = Reasons(roll, lambda: "b is away", lambda: slow)
    assert reasons.waiting_for(stay, stay.calls.op(0, 0.0)) == reason
