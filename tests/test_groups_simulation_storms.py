"""Random programs of every kind, on any members of rings up to 64, under seeded storms of faults.

A failure names the storm, which ``chaos`` of :mod:`groups_storms` raises again.
"""

from __future__ import annotations

import pytest
from exhaustive import usually
from groups_storms import chaos

from ringd.collective.kinds import KINDS
from ringd.groups.op import OK

STORMS = {1: (3, 40), 2: (100, 800), 3: (10, 600), 4: (6, 400), 7: (1, 100), 16: (1, 20)}
"""By members of the ring: how many seeds are tried, and how many where all is tried."""


@pytest.mark.parametrize("n", STORMS)
@pytest.mark.parametrize("messages", [False, True], ids=["calls", "messages"])
@pytest.mark.parametrize("shared", [False, True], ids=["one each", "shared"])
def test_random_storms(n, shared, messages):
    """Whatever strikes, every value is right, every call ends and each message arrives once."""
    outcomes, kinds = set(), set()
    seeds = usually(*STORMS[n])
    for seed in range(seeds):
        witness = chaos(n, seed, shared=shared, messages=messages).witness
        outcomes |= set(witness.outcomes)
        kinds |= set(witness.kinds)
    assert OK in outcomes
    if n > 1 and seeds >= 20:  # the storms were rough enough to mean something
        assert kinds == {name for name in KINDS if messages or name != "message"}
        assert outcomes >= {OK, "group_lost", "mismatch"}


@pytest.mark.parametrize("seed", range(usually(1, 4)))
def test_storms_on_large_rings(seed):
    """The same with 64 members."""
    assert OK in chaos(64, seed, shared=seed % 2 == 1, messages=True).witness.outcomes
