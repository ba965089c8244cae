"""What a client cannot ask for, and what is harmless to say twice."""

from __future__ import annotations

import pytest
from groups_bench import Bench, all_reduce, call, ready, submission

from ringd.collective.call import Call
from ringd.collective.coalesced import written
from ringd.collective.view import View
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import OK


def test_submitting_twice_is_harmless():
    """Open, running, ended or released: the second one is freed; one that ended is told again."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.submit(0, submission(0))
    assert bench.freed()[1:2] + bench.freed()[3:] == [1, 1]
    assert bench.reports(0) == [(0, OK)] * 2
    assert bench.reports(1) == [(0, OK)]
    assert [a.reason for a in bench.did(0, actions.Dropped)] == ["submitted twice"] * 2


def test_a_changed_resubmission_is_refused():
    """Another call under the same number is an error that names both; the first one stands."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.submit(0, submission(0, what=call(shape=9)))
    deny = bench.did(0, actions.Deny)[0]
    assert deny.code == "refused"
    assert "float32[3]" in deny.message
    assert "float32[9]" in deny.message
    bench.submit(1, submission(0))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_other_bytes_under_the_same_number_are_refused():
    """A client that changes its mind is told so, and what it said first counts."""
    bench = ready(2)
    bench.submit(0, submission(0))
    other = submission(0)
    other.payload = bytes(len(other.payload) - 1) + b"!"
    bench.submit(0, other)
    (denied,) = bench.did(0, actions.Deny)
    assert "other bytes" in denied.message


def test_a_skipped_number_is_refused():
    """Ops are numbered without gaps."""
    bench = ready(2)
    bench.submit(0, submission(2))
    assert "skips op 0" in bench.did(0, actions.Deny)[0].message
    assert bench.freed() == [1]


def test_the_window_bounds_what_is_kept():
    """One op too many is refused, and the number can be used once others are released."""
    bench = ready(2, window=2)
    for seq in range(3):
        bench.submit(0, submission(seq))
    assert "ipc.window" in bench.did(0, actions.Deny)[0].message
    for seq in range(2):
        bench.submit(1, submission(seq))
    bench.settle()
    bench.tick(1.0)
    bench.settle()
    bench.submit(0, submission(2))
    assert len(bench.did(0, actions.Deny)) == 1


def test_a_lent_input_needs_a_sealed_target():
    """Holders would otherwise wait for each other's acknowledgements."""
    bench = ready(2)
    bench.submit(0, submission(0, hold=True, sealed=False))
    assert "sealed" in bench.did(0, actions.Deny)[0].message


def test_a_client_cannot_acknowledge_the_future():
    """A wild acknowledgement costs no time and settles nothing that is open."""
    bench = ready(2)
    bench.submit(0, submission(0, sealed=False), acked=2**62)
    bench.submit(1, submission(0, sealed=False))
    bench.settle()
    assert bench.engines[1].roll.groups["g"].local[0].ledger.released == 0


def test_a_stranger_cannot_submit_for_another():
    """A join belongs to the connection that made it."""
    bench = ready(2)
    bench.submit(0, submission(0), client="mallory")
    assert bench.did(0, actions.Deny)[0].message == "attach to the group first"


@pytest.mark.parametrize(("join_id", "released"), [(0, 0), (2**64, 0), (-1, 0), (5, -1)])
def test_an_impossible_join_is_refused(join_id, released):
    """Numbers come from a program and may be anything."""
    bench = Bench(1)
    bench.attach(0, join_id, released=released)
    assert [a.code for a in bench.did(0, actions.Deny)] == ["refused"]


def test_a_second_client_of_the_group_is_refused_here():
    """The place is taken until its owner leaves."""
    bench = ready(2)
    bench.attach(0, 99, client="other")
    assert bench.did(0, actions.Deny)[0].code == "refused"
    assert "has a client on 'a' already: close it first" in bench.did(0, actions.Deny)[0].message
    bench.gone(0)
    bench.attach(0, 99, client="other")
    assert bench.did(0, actions.Accept)[-1].join_id == 99


def test_a_join_id_is_used_once():
    """Who was given up has to join anew."""
    bench = ready(2)
    bench.gone(0)
    bench.settle()
    bench.attach(0, 10)
    assert bench.did(0, actions.Deny)[0].code == "group_lost"


def test_attaching_twice_is_harmless():
    """The same client with the same join is accepted again."""
    bench = ready(2)
    bench.attach(0, 10)
    assert len(bench.did(0, actions.Accept)) == 2
    all_reduce(bench)
    assert bench.reports(1) == [(0, OK)]


ALIEN = Call("all_reduce", "sum", "alien", (3,), "grad")


def picky(bench, rank):
    """Have *rank* get a daemon that refuses a dtype."""
    rules = Rules(lambda call, _size: "c has no such dtype" if call.dtype == "alien" else "")
    bench.engines[rank] = Engine(view=View(bench.names, rank), rules=rules)


def refused(bench, *ranks):
    """Return whether the last call of each of *ranks* ended with that refusal."""
    return all(
        bench.reports(rank)[-1][1] == "refused" and bench.message(rank) == "c has no such dtype"
        for rank in ranks
    )


def test_what_a_member_cannot_run_is_asked_without_names_and_shapes():
    """The daemon keeps what it has asked: 256 calls of up to 256 KiB of shapes would be 64 MiB."""
    asked = []
    bench = ready(2, rules=Rules(lambda call, _size: asked.append(call) or ""))
    shapes = written([(1,)] * 1000)
    many = Call("all_reduce_coalesced", "sum", "float32", (1000,), "grad", tensors=shapes)
    bench.submit(0, submission(0, what=many))
    bench.settle()
    assert [(one.name, one.tensors) for one in asked] == [("", "[[1000]]")]


def test_what_a_member_cannot_run_ends_before_its_client_calls():
    """All others read why at once; the member's client gets it with its call of that number."""
    bench = Bench(3)
    picky(bench, 2)
    bench.up()
    bench.join_all()
    bench.submit(0, submission(0, what=ALIEN))
    bench.settle()
    assert refused(bench, 0)
    bench.submit(1, submission(0, what=ALIEN))
    bench.submit(2, submission(0))
    bench.settle()
    assert refused(bench, 1, 2)
    all_reduce(bench, 1)
    assert [bench.reports(rank)[-1] for rank in range(3)] == [(1, OK)] * 3


def test_a_refusal_that_was_lost_is_said_again():
    """The ring broke before anybody heard it."""
    bench = Bench(3)
    picky(bench, 2)
    bench.up()
    bench.join_all()
    for rank in range(2):
        bench.submit(rank, submission(0, what=ALIEN))
    bench.step(0)
    bench.step(1)
    assert bench.reports(0) == bench.reports(1) == []
    bench.down()
    bench.up()
    assert refused(bench, 0, 1)
