"""In which order a client is told of a loss."""

from __future__ import annotations

import pytest
from groups_bench import Bench, submission

from ringd.groups import actions


@pytest.mark.parametrize("on_loss", ["wait", "fail"])
def test_a_loss_is_told_before_the_calls_that_it_ends(on_loss):
    """Else the client's next call, made at once, would be in the lost session and end as well."""
    bench = Bench(2)
    bench.up()
    bench.join_all(on_loss=on_loss)
    for seq in range(3):
        bench.submit(0, submission(seq, large=True))
    bench.settle()
    bench.log[0].clear()
    if on_loss == "wait":
        bench.do(1, bench.engines[1].detach("b", "died", bench.now))
        bench.settle()
    else:
        bench.down()
    told = [a for a in bench.log[0] if isinstance(a, (actions.TellLost, actions.Report))]
    assert [type(action) for action in told] == [actions.TellLost] + [actions.Report] * 3
    assert {action.code for action in told} == {"group_lost" if on_loss == "wait" else "peer_lost"}
