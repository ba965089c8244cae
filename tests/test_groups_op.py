"""The table of an op's life: what may happen when, and what a reset leaves."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from ringd.collective.call import Call
from ringd.groups import op as op_module
from ringd.groups.op import MOVES, OK, IllegalMove, Move, Op, Phase, Told
from ringd.wire.link.control import Offer

ALL = [(phase, move) for phase in Phase for move in Move]


@pytest.mark.parametrize(("phase", "move"), [pair for pair in ALL if pair in MOVES])
def test_legal_moves_lead_where_the_table_says(phase, move):
    """Each row of the table is what happens."""
    op = Op(0, 2, 0.0, phase=phase)
    op.move(move)
    assert op.phase is MOVES[phase, move]


@pytest.mark.parametrize(("phase", "move"), [pair for pair in ALL if pair not in MOVES])
def test_illegal_moves_raise_and_change_nothing(phase, move):
    """What the table does not have cannot happen."""
    op = Op(0, 2, 0.0, phase=phase)
    with pytest.raises(IllegalMove, match=f"op 0 cannot {move.value} while {phase.value}"):
        op.move(move)
    assert op.phase is phase


def test_every_phase_can_be_reached_and_reset():
    """No row is dead, and the ring may break at any time."""
    assert {Phase.OPEN, *MOVES.values()} == set(Phase)
    assert all((phase, Move.RESET) in MOVES for phase in Phase)


def test_a_reset_never_leaves_anything_running():
    """Whatever was computed with others is computed no more."""
    running = {Phase.RUNNING, Phase.LENDING, Phase.SERVING}
    assert not running & {MOVES[phase, Move.RESET] for phase in Phase}


def test_a_final_outcome_is_left_by_no_move():
    """From the end one gets to serving others and back, nowhere else."""
    final = {Phase.ENDED, Phase.SERVING}
    assert {after for (before, _), after in MOVES.items() if before in final} == final


def test_reset_forgets_the_others_and_keeps_the_outcome():
    """What can be computed again goes, what is certain stays."""
    op = Op(4, 2, 0.0)
    offer = Offer(
        Call("barrier", "", "", (), ""), 0, eager=True, prompt=True, outcome="", message=""
    )
    op.take(0, offer, b"x")
    op.take(1, offer, b"y")
    assert (op.payloads, op.lacking, op.prompt) == ([b"x", b"y"], 0, True)
    op.input_read_by.add(1)
    op.polls.add(7)
    op.said_input_read = True
    op.end(OK)
    op.reset()
    assert (op.offers, op.payloads) == ([None, None], [b"", b""])
    assert (op.lacking, op.prompt) == (2, False)
    assert (op.input_read_by, op.polls, op.said_input_read) == (set(), set(), False)
    assert (op.phase, op.outcome) == (Phase.ENDED, OK)


def test_missing_names_ranks_without_an_offer():
    """An op knows for whom it waits."""
    op = Op(0, 3, 0.0)
    offer = Offer(
        Call("barrier", "", "", (), ""), 0, eager=True, prompt=False, outcome="", message=""
    )
    for _ in range(2):  # an offer may come again
        op.take(1, offer, b"")
        assert (op.missing(), op.lacking, op.prompt) == ([0, 2], 2, False)


def test_an_op_knows_whether_it_failed_anywhere():
    """The offer of one rank says so; when the ring breaks that has to be heard again."""
    call = Call("barrier", "", "", (), "")
    op = Op(0, 2, 0.0)
    for outcome, refused in (("", False), (OK, False), ("refused", True), ("", True)):
        op.take(1, Offer(call, 0, eager=True, prompt=False, outcome=outcome, message=""), b"")
        assert op.refused is refused
    op.reset()
    assert not op.refused


def after(way):
    """Return an op that went *way*, of moves and of (move, outcome) where it ends."""
    op = Op(0, 2, 0.0)
    for step in way:
        if isinstance(step, tuple):
            op.end(step[1], move=step[0])
        else:
            op.move(step)
    return op


def ways():
    """Give the shortest way to each phase and outcome."""
    found, todo = {}, [()]
    for way in todo:
        op = after(way)
        if found.setdefault((op.phase, op.outcome), way) is not way:
            continue
        for phase, move in MOVES:
            if phase is op.phase and move in {Move.END, Move.KEEP}:
                todo += [(*way, (move, outcome)) for outcome in (OK, "mismatch")]
            elif phase is op.phase:
                todo.append((*way, move))
    return found.values()


@pytest.mark.parametrize("way", ways())
def test_what_follows_from_the_phase_and_the_outcome_is_kept_with_them(way):
    """After each move, and also where an op is reset or ends by another one."""
    op = after(way)
    assert op.active == (op.phase in {Phase.RUNNING, Phase.LENDING, Phase.SERVING})
    assert op.ended == (op.phase in {Phase.ENDED, Phase.SERVING}) == (op.outcome != "")
    assert op.failed == (op.outcome not in {"", OK})
    assert op.has_result == (op.outcome == OK or op.phase in {Phase.HELD, Phase.LENDING})


# --- marks ----------------------------------------------------------------------------

ROW = re.compile(r"\| `(\w+)` \| .+? \| (.*?) ?\| (.*?) ?\|")
MARKS = {mark: (used, forgotten) for mark, used, forgotten in ROW.findall(op_module.__doc__)}
"""By mark, the modules that use it and what forgets it, as the table beside MOVES says."""

IDENTITY = {"seq", "size"}
PHASE = {"phase", "outcome", "message"}
FOLLOWS = {"active", "ended", "failed", "has_result"}
"""What follows from these."""
MARKED = {
    "submission": object(),
    "since": 5.0,
    "told": Told.YES,
    "offers": ["offer", None],
    "lacking": 1,
    "refused": True,
    "prompt": True,
    "payloads": [b"x", b""],
    "input_read_by": {1},
    "waits_for_all": True,
    "computed_by": {1},
    "polls": {7},
    "overdue": True,
    "own_poll": 7,
    "said_input_read": True,
}
"""A value of each mark that says something."""


def marked():
    """Return an op with every mark set."""
    op = Op(0, 2, 0.0)
    for mark, value in MARKED.items():
        setattr(op, mark, value)
    return op


def test_whatever_is_no_phase_is_in_the_table_of_marks():
    """No flag is left to itself."""
    fields = {field.name for field in msgspec.structs.fields(Op)}
    assert set(MARKS) == set(MARKED) == fields - IDENTITY - PHASE - FOLLOWS


@pytest.mark.parametrize("event", ["reset", "end"])
def test_marks_are_forgotten_when_the_table_says(event):
    """What the table names is as new, and all the rest is as it was."""
    op, new = marked(), Op(0, 2, 0.0)
    op.reset() if event == "reset" else op.end("mismatch")
    for mark, (_, forgotten) in MARKS.items():
        expected = getattr(new, mark) if event in forgotten.split() else MARKED[mark]
        assert getattr(op, mark) == expected, mark


def test_marks_are_used_where_the_table_says():
    """By methods of the op itself, and in these modules."""
    users = {mark: set() for mark in MARKS}
    for path in Path(op_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                of_op = isinstance(node.value, ast.Name) and node.value.id == "op"
                if of_op and node.attr in users:
                    users[node.attr].add(path.stem)
    assert {mark: sorted(modules) for mark, modules in users.items()} == {
        mark: sorted(used.split()) for mark, (used, _) in MARKS.items()
    }


@pytest.mark.parametrize("phase", Phase)
def test_an_outcome_is_there_in_the_final_phases_only(phase):
    """And an op that cannot end where it is stays as it was."""
    final = {Phase.ENDED, Phase.SERVING}
    op = Op(0, 2, 0.0, phase=phase)
    if phase in final:
        with pytest.raises(IllegalMove):
            op.end("mismatch")
        assert op.outcome == ""
    else:
        assert not op.ended
        op.end("mismatch")
        assert (op.ended, op.failed, op.outcome) == (True, True, "mismatch")
        assert op.phase in final
