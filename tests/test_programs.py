"""What the border asks of the programs' side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from groups_bench import Bench

from ringd.border.accounts import Limit, Resource, Share
from ringd.collective.call import Call
from ringd.collective.coalesced import written
from ringd.daemon.programs import Programs
from ringd.errors import ResourceExhausted
from ringd.wire.border.messages import Ref, Submit


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


def test_shapes_of_tensors_count_as_what_is_inside_a_message():
    """A program may have a window of calls with 256 KiB of them in each of its groups."""
    tensors = written([(1, 2)] * 1000)
    call = Call("all_reduce_coalesced", "sum", "float32", (2000,), "", tensors=tensors)
    source, target = Ref(1, 0, 8000), Ref(1, 8192, 8000)
    message = Submit(1, 0, call, None, source, target, acked=0, hold=False, outcome="", message="")
    share = Share(Resource(Limit("bytes", 3 * len(tensors), "a setting")), 501)
    client = SimpleNamespace(
        account=SimpleNamespace(messages=share), view=lambda ref, **_: memoryview(bytes(ref.length))
    )
    first = Programs._buffers(None, client, message, None, 0, 0.0)
    second = Programs._buffers(None, client, message, None, 0, 0.0)
    assert share.used == 2 * len(tensors)
    with pytest.raises(ResourceExhausted, match="a setting"):
        Programs._buffers(None, client, message, None, 0, 0.0)
    assert share.used == 2 * len(tensors)
    del first, second
    assert share.used == 0
