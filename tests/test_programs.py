"""What the border asks of the programs' side."""

from __future__ import annotations

from types import SimpleNamespace

from groups_bench import Bench

from ringd.daemon.programs import Programs


def test_a_place_is_told_once_it_is_for_good():
    """A session that has yet to be live may be given up: calls that depend on it wait for that."""
    bench = Bench(2)
    bench.up()
    bench.attach(0, 10)
    bench.attach(1, 11)
    bench.step(0)
    programs = SimpleNamespace(engine=bench.engines[1])
    assert bench.engines[1].roll.seats[11].session.formed
    assert Programs.place(programs, None, 11) is None
    bench.settle()
    assert Programs.place(programs, None, 11) == (1, 2)
    assert Programs.place(programs, None, 12) is None
