"""What the engine asks for is carried out in order, whatever it leads to on the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.config.settings import IpcSettings, OpsSettings
from ringd.daemon.performer import Buffers, Performer
from ringd.groups.actions import Dropped, Run
from ringd.groups.op import Submission


class Stand:
    """A performer alone in its ring; a call that is through leads to *follow*."""

    def __init__(self, *follow):
        self.follow = follow
        config = SimpleNamespace(ops=OpsSettings(), ipc=IpcSettings())
        self.performer = Performer(
            SimpleNamespace(now=lambda: 0.0, call_soon=lambda callback: callback()),
            config,
            View(("a",), 0),
            SimpleNamespace(kick=lambda: None),
            None,
            on_finished=lambda _gid, _seq: self.performer.perform(self.follow),
        )

    @property
    def order(self):
        """The reasons of what was dropped, in order."""
        return list(self.performer.dropped)


def run(payloads):
    """Return an all-reduce that is through as soon as it runs."""
    call = Call("all_reduce", "sum", "float32", (1,), "")
    buffers = Buffers(memoryview(bytes(4)), None, None, 0.0)
    submission = Submission(0, call, None, None, None, hold=False, sealed=False, buffers=buffers)
    return Run(1, 0, (call,), submission, payloads, serve=False)


@pytest.mark.parametrize("payloads", [(b"\0\0\0\0",), None], ids=["small", "large"])
def test_what_follows_from_an_action_waits_for_those_before_it(payloads):
    """A call that is through at once does not let its news overtake what was asked for before."""
    stand = Stand(Dropped("third"), Dropped("fourth"))
    stand.performer.perform([Dropped("first"), run(payloads), Dropped("second")])
    assert stand.order == ["first", "second", "third", "fourth"]


def test_a_failing_action_leaves_the_rest_in_order():
    """Nothing is skipped or done twice, and nothing waits for good."""
    stand = Stand()
    with pytest.raises(KeyError):
        stand.performer.perform([Dropped("first"), object(), Dropped("second")])
    stand.performer.perform([Dropped("third")])
    assert stand.order == ["first", "second", "third"]
