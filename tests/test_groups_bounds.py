"""What other members say of programs and calls is kept up to a bound, whatever they say."""

from __future__ import annotations

import pytest

from ringd.collective.call import Call
from ringd.collective.eager import EagerRule
from ringd.collective.view import View
from ringd.errors import Refused, ResourceExhausted
from ringd.groups import absences, roll
from ringd.groups.actions import Deny, Dropped, Report
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import Submission
from ringd.groups.seat import Join
from ringd.groups.session import Peers, session_number
from ringd.wire.link.control import Joined, Left, Offer, Opened, Poll, Verdict

NAMES = ("a", "b", "c")
IDS = (1, 2, 3)
GID = session_number("g", IDS)
BARRIER = Call("barrier", "", "", (), "")


def engine(**options):
    """Return that of the member a, in a ring."""
    engine = Engine(view=View(NAMES, 0), **options)
    engine.ring_up(0.0)
    return engine


def hear(engine, message, *, origin=2, gid=0, seq=0, payload=b""):
    """Have the member *origin* say something; return what follows."""
    return engine.received(origin, origin, gid, seq, message, payload, 0.0)


def dropped(actions):
    """Return why what was said was of no use."""
    return [action.reason for action in actions if isinstance(action, Dropped)]


@pytest.fixture
def live():
    """Give an engine with a client in a session of three that is live."""
    live = engine(window=4, rules=Rules(fits=EagerRule(1024, together=0).fits))
    live.attach("client", Join("g", 1), 0.0)
    for session in ((), IDS):
        for origin in (1, 2):
            hear(live, Joined("g", IDS[origin], session), origin=origin)
    assert live.roll.seats[1].session.live
    return live


def test_programs_of_a_member_are_kept_up_to_a_bound(monkeypatch):
    """Beyond it they are as if they had not come; another member's count by themselves."""
    monkeypatch.setattr(roll, "MOST_HEARD", 10 * 1024)
    one = engine()
    said = [dropped(hear(one, Joined(f"g{number}", number + 1, ()))) for number in range(20)]
    assert said == [[]] * 10 + [["more programs of one member than are kept"]] * 10
    assert len(one.roll.groups) == 10
    assert dropped(hear(one, Joined("h", 1, ()), origin=1)) == []
    hear(one, Left("g0", 1, 0, "lost", "gone"))
    assert dropped(hear(one, Joined("h", 99, ()))) == []
    one.ring_down("cut", 0.0)
    one.ring_up(1.0)
    assert dropped(hear(one, Joined("i", 1, (1, 2, 3)))) == []


def test_a_program_that_is_said_again_counts_as_it_is(monkeypatch):
    """However often, and with however long a session."""
    monkeypatch.setattr(roll, "MOST_HEARD", 10 * 1024)
    one = engine()
    for _ in range(20):
        assert dropped(hear(one, Joined("g", 5, ()))) == []
    session = tuple(range(1, 301))
    assert dropped(hear(one, Joined("g", 5, session, (1,) * 300))) != []


def test_own_programs_have_the_same_bound(monkeypatch):
    """A program is told, whose group the others would not know."""
    monkeypatch.setattr(roll, "MOST_HEARD", 3 * 1024)
    one = engine()
    for number in range(1, 4):
        one.attach("client", Join(f"g{number}", number), 0.0)
    denied = [
        action for action in one.attach("client", Join("h", 9), 0.0) if isinstance(action, Deny)
    ]
    assert [action.code for action in denied] == [ResourceExhausted.code]


def test_absent_clients_are_kept_up_to_a_bound(monkeypatch):
    """Those that others count on, and that are not here."""
    monkeypatch.setattr(absences, "MOST_ABSENT", 20 * 1024)
    one = engine()
    for number in range(100):
        hear(one, Joined(f"g{number}", number + 1, (1000 + number, number + 1), (0, 2)))
    assert 10 < len(one.roll.absences.absent) < 20
    one.tick(10.1)
    assert one.roll.absences.absent == {}
    hear(one, Joined("h", 1, (7, 8), (0, 2)))
    assert list(one.roll.absences.absent) == [7]


def test_a_session_is_numbered_once(monkeypatch):
    """However many of its programs are said to be here: each would cost a hash of all."""
    counted = []

    def number(*words):
        counted.append(words)
        return session_number(*words)

    monkeypatch.setattr(roll, "session_number", number)
    hear(engine(), Joined("g", 5, tuple(range(1, 1001)), (0,) * 1000))
    assert len(counted) == 1


def test_calls_beyond_the_window_are_not_kept(live):
    """No member can have made them: it waits until ours are through."""
    offer = Offer(BARRIER, 0, eager=True, prompt=False, outcome="", message="")
    for message in (offer, Poll(3, completed=False), Verdict(3, "", "")):
        for seq in (4, 100, (1 << 64) - 1):
            reasons = dropped(hear(live, message, gid=GID, seq=seq))
            assert reasons == ["of a call beyond the window"]
        hear(live, message, gid=GID, seq=3)
    assert list(live.roll.seats[1].calls.ops) == [3]


def test_each_rank_asks_once_about_a_call(live):
    """Whatever numbers its polls have, no more of them are waited for."""
    for number in range(100):
        hear(live, Poll(number, completed=False), gid=GID, seq=0)
    assert len(live.roll.seats[1].calls.ops[0].polls) == len(IDS)


def test_channels_that_wait_to_be_opened_are_bounded(live, monkeypatch):
    """Of each stay."""
    monkeypatch.setattr(roll, "MAX_CHANNELS", 5)
    for gid in range(100, 120):
        live.received(2, 0, gid, 0, Opened(False, "g", (3, 1), 0), b"", 0.0)
    assert len(live.roll.seats[1].knocks) == 5


@pytest.mark.parametrize(
    ("call", "eager", "payload", "why"),
    [
        (BARRIER, False, b"", "a tensor in chunks"),
        (Call("all_reduce", "sum", "float32", (4,), ""), False, b"", "a tensor in chunks"),
        (Call("all_reduce", "sum", "float32", (4,), ""), True, b"x", "1 bytes"),
        (
            Call("all_reduce", "sum", "float32", (1 << 20,), ""),
            True,
            bytes(4 << 20),
            "4194304 byte",
        ),
        (Call("all_gather", "", "float32", (1,), "", -1, (1,) * 7), True, bytes(4), "7 counts"),
    ],
)
def test_an_offer_that_cannot_be_ends_the_call(live, call, eager, payload, why):
    """On all members, with the reason: nothing is computed with it."""
    submission = Submission(0, call, payload, None, None, hold=False, sealed=False)
    live.submit("client", 1, submission, 0.0)
    offer = Offer(call, 0, eager=eager, prompt=False, outcome="", message="")
    actions = hear(live, offer, gid=GID, seq=0, payload=payload)
    (report,) = [action for action in actions if isinstance(action, Report)]
    assert report.code == Refused.code
    assert why in report.message


@pytest.mark.parametrize("said", ["joined", "left"])
def test_what_is_said_of_one_group_costs_the_same_among_hundreds(monkeypatch, said):
    """Only the programs of that group are looked at."""
    looked = []
    find = Peers.rank_of
    monkeypatch.setattr(Peers, "rank_of", lambda *given: looked.append(1) or find(*given))
    costs = []
    for groups in (1, 300):
        one = engine()
        for number in range(groups):
            ids = tuple(3 * number + own for own in IDS)
            one.attach("client", Join(f"g{number}", ids[0]), 0.0)
            for origin in (1, 2):
                hear(one, Joined(f"g{number}", ids[origin], ids), origin=origin)
        assert all(seat.session.live for seat in one.roll.seats.values())
        looked.clear()
        if said == "joined":
            hear(one, Joined("g0", 3, IDS))
        else:
            hear(one, Left("g0", 3, 0, "group_lost", "it left"), gid=session_number("g0", IDS))
        costs.append(len(looked))
    assert costs[0] == costs[1] > 0
