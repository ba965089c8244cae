"""How much of a large call is on its way at once, and what it depends on."""

from __future__ import annotations

import msgspec
import pytest
from netkit import control, run_until

from ringd.net.link import LATELY
from ringd.ring.pace import AT_EASE, bytes_on_way


@pytest.mark.parametrize(
    ("seconds", "alone", "beside"),
    [
        pytest.param(1e-4, AT_EASE, 250e3, id="next to it"),
        pytest.param(None, AT_EASE, 2.5e6, id="not known yet"),
        pytest.param(0.1, 250e6, 250e6, id="far away"),
    ],
)
def test_bytes_on_their_way(seconds, alone, beside):
    """A round trip's worth at 20 Gbit/s, and more only where nobody waits behind it."""
    assert bytes_on_way(seconds, shared=False) == alone
    assert bytes_on_way(seconds, shared=True) == pytest.approx(beside)


def test_a_link_is_shared_while_another_group_calls(loop, link_pair, monkeypatch):
    """At both of its ends; by calls whose tensor is in the message, not by a large one's offer."""
    (right, _), (left, received) = link_pair
    offer, small = control(b"offer", 1), control(b"offer and tensor", 2)
    right.send(msgspec.structs.replace(offer, index=offer.length), b"offer")
    run_until(loop, lambda: len(received.frames) == 1)
    assert not right.is_shared(5)
    assert not left.is_shared(5)
    right.send(msgspec.structs.replace(small, group=7, index=5), b"offer and tensor")
    run_until(loop, lambda: len(received.frames) == 2)
    for link in right, left:
        assert link.is_shared(5)
        assert not link.is_shared(7)
    later = loop.now() + LATELY
    monkeypatch.setattr(loop, "now", lambda: later)
    assert not right.is_shared(5)
    assert not left.is_shared(5)
