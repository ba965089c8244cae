"""Programs that disagree on who they are: all read so, and nobody waits for what cannot be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from groups_bench import Bench, all_reduce, call, ready, submission

from ringd import errors
from ringd.collective.call import MAX_LOCAL_SIZE
from ringd.collective.view import View
from ringd.daemon.programs import Programs
from ringd.groups import actions
from ringd.groups.op import OK
from ringd.groups.session import Part
from ringd.wire.border import messages as border
from ringd.wire.link.control import Joined

MISMATCH = errors.Mismatch.code


class Shared(Bench):
    """A bench whose ring is up; programs are named after their member and local rank."""

    def __init__(self, n, **settings):
        super().__init__(n, **settings)
        self.up()

    def program(self, member, local_rank=0, local_size=1, *, members=(), ordered=False, **kwargs):
        """Have a program join; its join id is 10 times its member's number and its local rank."""
        part = Part(local_rank, local_size, members, ordered)
        client = f"{self.names[member]}{local_rank}"
        self.attach(member, 10 * (member + 1) + local_rank, client=client, part=part, **kwargs)
        self.settle()

    def call(self, member, local_rank=0, seq=0, **kwargs):
        """Have it call."""
        client, join_id = f"{self.names[member]}{local_rank}", 10 * (member + 1) + local_rank
        what = submission(seq, now=self.now, **kwargs)
        self.submit(member, what, join_id=join_id, client=client)
        self.settle()

    def ends(self, member, local_rank=0):
        """Return how the calls of a program ended."""
        join_id = 10 * (member + 1) + local_rank
        reports = self.did(member, actions.Report)
        return [report.code for report in reports if report.join_id == join_id]


# --- on one member --------------------------------------------------------------------


def test_programs_of_a_member_name_the_same_number_of_them():
    """The second one is told what the first one said, and the first one goes on."""
    bench = Shared(1)
    bench.program(0, 0, 2)
    bench.program(0, 1, 3)
    (deny,) = bench.did(0, actions.Deny)
    assert (deny.client, deny.code) == ("a1", errors.Refused.code)
    assert deny.message == (
        "group 'g' on 'a': the program with local rank 0 says local_size=2, "
        "this one says local_size=3"
    )
    bench.program(0, 1, 2)
    bench.call(0, 0)
    bench.call(0, 1)
    assert bench.reports(0) == [(0, OK)] * 2


def test_programs_of_a_member_name_the_same_members():
    """Before anything is said to others."""
    bench = Shared(3)
    bench.program(0, 0, 2, members=(0, 2))
    bench.program(0, 1, 2)
    (deny,) = bench.did(0, actions.Deny)
    assert deny.code == errors.Refused.code
    assert deny.message == (
        "group 'g' on 'a': the program with local rank 0 says that a, c take part, "
        "this one says all members"
    )


def test_a_local_rank_is_taken_once():
    """The second program is refused while the first one is there, and takes its place after it."""
    bench = Shared(2)
    bench.program(0, 1, 2)
    bench.attach(0, 99, client="twin", part=Part(1, 2))
    (deny,) = bench.did(0, actions.Deny)
    assert (deny.client, deny.join_id, deny.code) == ("twin", 99, errors.Refused.code)
    assert deny.message == (
        "group 'g' has a client with local rank 1 on 'a' already: close it first"
    )
    bench.gone(0, "a1")
    bench.attach(0, 99, client="twin", part=Part(1, 2))
    bench.program(0, 0, 2)
    bench.program(1)
    bench.call(0, 0)
    bench.call(1)
    bench.submit(0, submission(0), join_id=99, client="twin")
    bench.settle()
    assert (bench.reports(0), bench.reports(1)) == ([(0, OK)] * 2, [(0, OK)])


# --- on several -----------------------------------------------------------------------


@pytest.mark.parametrize("calls", ["first", "between", "last"])
def test_members_that_differ_end_every_call_and_are_named(calls):
    """On all ranks, whether they call before the difference shows or afterwards."""
    bench = Shared(3)

    def everybody():
        for member in present:
            bench.call(member)

    present = [0, 1]
    bench.program(0, members=(0, 1))
    if calls == "first":
        bench.call(0)
        present = [1]
    bench.program(1, members=(0, 1, 2))
    if calls != "last":
        everybody()
        present = []
    bench.program(2, members=(0, 1))
    if calls == "last":
        everybody()
    bench.call(2)
    for member in range(3):
        assert bench.ends(member) == [MISMATCH]
        text = bench.message(member)
        assert "the programs of group 'g' disagree on who takes part: " in text
        assert "a, b, c on 'b'" in text
    assert "a, b on 'a'" in bench.message(0)
    assert "a, b on 'a'" in bench.message(1)


def test_the_order_of_ranks_is_agreed_on_too():
    """As a split says it: the same members in another order are other ranks."""
    bench = Shared(2)
    for member, order in enumerate([(0, 1), (1, 0)]):
        bench.program(member, members=order, ordered=True)
        bench.call(member)
    assert [bench.ends(member) for member in range(2)] == [[MISMATCH]] * 2


def test_programs_that_disagree_can_leave_and_agree():
    """The group is usable once they do, for those that stayed too, with the first call of each."""
    bench = Shared(2)
    bench.program(0)
    bench.program(1, members=(1,))
    for member in range(2):
        bench.call(member)
        lost = bench.did(member, actions.TellLost)
        assert [(told.floor, told.code) for told in lost] == [(0, MISMATCH)]
    bench.attach(0, 66, client="a0")  # as its library does at once, or with the next call
    bench.gone(1, "b0")
    bench.attach(1, 77, client="next")
    bench.settle()
    bench.submit(0, submission(0), join_id=66, client="a0")
    bench.submit(1, submission(0), join_id=77, client="next")
    bench.settle()
    assert [bench.reports(member)[-1] for member in range(2)] == [(0, OK)] * 2


def test_a_group_that_cannot_form_is_joined_anew_for_a_call_alone():
    """A program that calls nothing would join it again and again otherwise."""
    bench = Shared(2)
    bench.program(0)
    bench.program(1, members=(1,))
    bench.settle()
    assert not any(bench.did(member, actions.TellLost) for member in range(2))


def test_a_session_that_has_formed_goes_on_without_the_one_that_disagrees():
    """Who comes later with other members is the only one to read of it."""
    bench = Shared(3)
    for member in (0, 1):
        bench.program(member, members=(0, 1))
    bench.program(2)
    for member in range(3):
        bench.call(member)
    assert [bench.ends(member) for member in range(3)] == [[OK], [OK], [MISMATCH]]
    assert "all members on 'c'" in bench.message(2)


def test_another_group_is_not_concerned():
    """Of the same members, at the same time."""
    bench = Shared(2)
    bench.program(0)
    bench.program(1, members=(1,))
    for member in range(2):
        bench.attach(member, 50 + member, group="h", client="h")
        bench.settle()
        bench.call(member)
    for member in range(2):
        bench.submit(member, submission(0), join_id=50 + member, client="h")
    bench.settle()
    assert [bench.reports(member) for member in range(2)] == [[(0, MISMATCH), (0, OK)]] * 2


# --- what a daemon knows before ---------------------------------------------------------


def attach(**fields):
    """Return what a program says when it joins."""
    known = {"token": b"", "group": "g", "join_id": 5, "next_seq": 0, "released": 0}
    last = {"on_loss": "wait", "pid": 1, "program": "p"}
    return border.Attach(**{"version": border.VERSION, **known, **last, **fields})


def part(**fields):
    """Return the part that a program on b gets, of a ring of a, b and c."""
    return Programs._part(SimpleNamespace(view=View(("a", "b", "c"), 1)), attach(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Part()),
        ({"local_rank": 1, "local_size": 4}, Part(1, 4)),
        ({"members": ("c", "b")}, Part(members=(1, 2))),
        ({"members": ("c", "b", "a")}, Part()),
        ({"members": ("c", "b"), "ordered": True}, Part(members=(2, 1), ordered=True)),
        (
            {"members": ("b", "a", "b"), "ordered": True, "local_rank": 1, "local_size": 2},
            Part(1, 2, (1, 0, 1), ordered=True),
        ),
    ],
)
def test_a_part_is_the_same_however_it_is_said(fields, expected):
    """Members are named in any order, unless the order is that of the ranks."""
    assert part(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"members": ("b", "nas", "tv")},
            "group 'g': no member of the ring is named 'nas', 'tv'; there are a, b, c",
        ),
        (
            {"members": ("a", "c")},
            "group 'g': 'b', this machine, is not among its members a, c",
        ),
        (
            {"local_rank": 2, "local_size": 2},
            "group 'g': local rank 2 is none of 2, which are 1 to 1000",
        ),
        (
            {"local_rank": -1},
            "group 'g': local rank -1 is none of 1, which are 1 to 1000",
        ),
        (
            {"local_size": 0},
            "group 'g': local rank 0 is none of 0, which are 1 to 1000",
        ),
        (
            {"local_size": MAX_LOCAL_SIZE + 1},
            "group 'g': local rank 0 is none of 1001, which are 1 to 1000",
        ),
        (
            {"members": ("b", "a", "b"), "ordered": True},
            "group 'g': 'b' is 2 times among its members, but has 1 programs",
        ),
    ],
)
def test_a_part_that_cannot_be_is_refused(fields, reason):
    """By the program's own daemon, with what is wrong and what there is."""
    with pytest.raises(errors.Refused) as caught:
        part(**fields)
    assert str(caught.value) == reason


# --- how programs are named -----------------------------------------------------------


def two_each(**kwargs):
    """Return two members with two programs each, ranks 0 to 3."""
    bench = Shared(2, **kwargs)
    for member in range(2):
        for local_rank in range(2):
            bench.program(member, local_rank, 2)
    return bench


def test_one_of_several_programs_that_dies_is_named_by_its_rank():
    """In the same words for those beside it and far from it."""
    bench = two_each()
    for member, local_rank in ((0, 0), (0, 1), (1, 0)):
        bench.call(member, local_rank)
    bench.gone(1, "b1")
    bench.settle()
    texts = [report.message for member in range(2) for report in bench.did(member, actions.Report)]
    assert texts == ["the client of rank 3 on 'b' died"] * 3
    assert bench.ends(1, 0) == [errors.GroupLost.code]


def test_the_only_program_of_its_member_is_named_by_its_rank():
    """As others have several, that is not its member's place."""
    bench = Shared(2)
    bench.program(0, 0, 2)
    bench.program(0, 1, 2)
    bench.program(1)
    bench.call(0, 0)
    bench.call(0, 1)
    bench.gone(1, "b0")
    bench.settle()
    texts = {report.message for report in bench.did(0, actions.Report)}
    assert texts == {"the client of rank 2 on 'b' died"}


def test_a_program_that_waits_for_nobody_is_named_by_its_rank():
    """Of those with on_loss="fail" the others read who it was and why."""
    bench = Shared(2)
    for member in range(2):
        for local_rank in range(2):
            alone = (member, local_rank) == (1, 0)
            bench.program(member, local_rank, 2, on_loss="fail" if alone else "wait")
    for member, local_rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if (member, local_rank) != (0, 0):
            bench.call(member, local_rank)
    bench.down()
    bench.gone(1, "b0")
    bench.up()
    text = bench.message(0)
    assert text.startswith("the client of rank 2 on 'b' waits for nobody (on_loss=\"fail\"): ")
    assert bench.ends(1, 1) == [errors.GroupLost.code]


def test_calls_wait_for_programs_by_their_rank():
    """Before the session by their local rank, as ranks are not known then."""
    bench = Shared(3)
    bench.program(0, 1, 2)
    bench.program(1, 0, 1)
    bench.call(0, 1)
    engine = bench.engines[0]
    seat, op = engine.roll.open_op(11, 0)
    assert engine.waiting_for(seat, op) == "no client in the group on: a (local rank 0), c"
    bench.program(0, 0, 2)
    bench.program(2)
    assert engine.waiting_for(seat, op) == "not submitted by: a (rank 0), b, c"


def test_calls_of_a_part_wait_for_programs_by_their_rank_from_the_beginning():
    """Also for two of a member from which none has come."""
    bench = Shared(3)
    bench.program(0, 0, 2, members=(2, 0, 1, 0, 2), ordered=True)
    bench.call(0, 0)
    engine = bench.engines[0]
    seat, op = engine.roll.open_op(10, 0)
    said = "no client in the group on: c (rank 0), b, a (rank 3), c (rank 4)"
    assert engine.waiting_for(seat, op) == said


def test_a_deadline_names_the_program_by_its_rank():
    """Both whose it was and whom it waited for."""
    bench = two_each()
    bench.call(1, 0, timeout=2.0)
    bench.call(0, 0)
    bench.tick(2.0)
    bench.settle()
    assert bench.reports(0) == [(0, "deadline_exceeded")]
    text = bench.message(0)
    assert "the deadline of 2 s passed on 'b (rank 2)'; not submitted by: " in text
    assert text.endswith("not submitted by: a (rank 1), b (rank 3)")


def test_different_calls_are_told_by_rank():
    """Which of a member's programs called what."""
    bench = two_each()
    for member, local_rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        bench.call(member, local_rank, what=call(shape=3 + local_rank))
    assert [bench.ends(m, lr) for m in range(2) for lr in range(2)] == [[MISMATCH]] * 4
    assert "a (rank 0), b (rank 2): all_reduce" in bench.message(0)
    assert "a (rank 1), b (rank 3): all_reduce" in bench.message(1)


@pytest.mark.parametrize(
    "part",
    [
        {"local_rank": -1},
        {"local_rank": 1},
        {"local_size": 0},
        {"local_size": 10**18},
        {"members": (3,)},
        {"members": (-1,)},
        {"members": (0,) * 4},
    ],
    ids=str,
)
def test_a_part_that_cannot_be_is_not_believed(part):
    """It would cost memory, or time without end; nothing else comes of it."""
    bench = ready()
    joined = Joined("g", 99, **{"session": (), **part})
    todo = bench.engines[0].received(1, 0, 0, 0, joined, b"", 0.0)
    assert todo == [actions.Dropped("a session that cannot be")]
    all_reduce(bench)
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "ok")]] * 3
