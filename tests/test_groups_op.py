"""The table of an op's life: what may happen when, and what a reset leaves."""

from __future__ import annotations

import pytest

from ringd.collective.call import Call
from ringd.groups.op import MOVES, OK, IllegalMove, Move, Op, Phase
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
    op.offers = [offer, offer]
    op.payloads = [b"x", b"y"]
    op.finished_by.add(1)
    op.holds.add(7)
    op.announced = True
    op.move(Move.END)
    op.outcome = OK
    op.reset()
    assert (op.offers, op.payloads) == ([None, None], [b"", b""])
    assert (op.finished_by, op.holds, op.announced) == (set(), set(), False)
    assert (op.phase, op.outcome) == (Phase.ENDED, OK)


def test_missing_names_ranks_without_an_offer():
    """An op knows for whom it waits."""
    op = Op(0, 3, 0.0)
    offer = Offer(
        Call("barrier", "", "", (), ""), 0, eager=True, prompt=False, outcome="", message=""
    )
    op.offers[1] = offer
    assert (op.missing(), op.complete, op.prompt) == ([0, 2], False, False)
