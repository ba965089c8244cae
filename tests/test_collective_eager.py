"""Which tensors go round with their offers."""

import pytest

from ringd.collective.call import Call
from ringd.collective.eager import LONGEST, EagerRule
from ringd.collective.view import View

KIB = 1024
LIMIT = 32 * KIB
RULE = EagerRule.of(LIMIT)


def view(size, *, places=(), ring_size=0):
    """Return rank 0's of so many, by default each on a member of its own."""
    return View(tuple(f"m{place}" for place in places or range(size)), 0, places, ring_size)


def call(kind="all_reduce", nbytes=0, wire=""):
    """Return one of bytes, which every rank hands over."""
    return Call(kind, "sum", "uint8", (nbytes,), "", wire=wire)


def longest(kind, ranks, wire="", rule=RULE):
    """Return the KiB up to which a tensor is eager."""
    lengths = range(0, 600 * KIB, KIB)
    eager = [rule.is_eager(call(kind, n, wire), n, ranks) for n in lengths]
    assert eager == sorted(eager, reverse=True)  # up to a length, and none beyond
    return lengths[eager.count(True) - 1] // KIB


@pytest.mark.parametrize(
    ("size", "kib"), [(2, 256), (3, 128), (4, 85), (5, 64), (9, 32), (10, 32), (64, 32)]
)
def test_what_all_others_hand_over_is_bounded(size, kib):
    """Where it goes on members of their own, and all of it to all."""
    for kind in ("all_reduce", "reduce", "broadcast", "all_gather", "gather"):
        assert longest(kind, view(size)) == kib


@pytest.mark.parametrize("kind", ["reduce_scatter", "scatter", "all_to_all", "message"])
def test_what_is_only_for_some_is_not_told_all(kind):
    """Beyond the limit: chunks go to those that need them."""
    assert longest(kind, view(2)) == LIMIT // KIB


def test_several_ranks_on_a_member():
    """Beyond the limit they are reduced there first."""
    assert longest("all_reduce", view(2, places=(0, 0), ring_size=2)) == LIMIT // KIB
    assert longest("all_reduce", view(3, places=(0, 1, 1), ring_size=2)) == LIMIT // KIB


def test_members_without_a_rank_between():
    """They only pass on what comes by."""
    assert longest("all_reduce", view(2, places=(0, 3), ring_size=5)) == 256


def test_what_travels_encoded():
    """Beyond the limit a wire saves bytes, in chunks alone."""
    assert longest("all_reduce", view(2), wire="int8") == LIMIT // KIB


@pytest.mark.parametrize("limit", [0, 1, 4 * KIB, LONGEST])
def test_other_limits(limit):
    """Nothing beyond 0 where the limit is that, and nothing that has no room in a message."""
    rule = EagerRule.of(limit)
    assert rule.longest == min(8 * limit, LONGEST)
    assert longest("all_reduce", view(2), rule=rule) == rule.longest // KIB


@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize("kib", [1, 32, 33, 100, 128, 129, 300])
def test_an_offer_fits_if_it_has_what_the_rule_says(size, kib):
    """With all bytes of the tensor where that is eager, with none where it is not."""
    ranks, nbytes = view(size), kib * KIB
    made = call(nbytes=nbytes)
    eager = RULE.is_eager(made, nbytes, ranks)
    assert RULE.fits(made, nbytes, 1, size, apart=True) is eager
    assert RULE.fits(made, None, 1, size, apart=True) is not eager
    assert not RULE.fits(made, nbytes - 1, 1, size, apart=True)
