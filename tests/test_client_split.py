"""Parts of a group: who is in which, under which name, and what a split leaves behind."""

from __future__ import annotations

import gc
import itertools
import math
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from alarms import (
    LEAST_HITS,
    instants,
    interrupted,
    no_alarm_left,  # noqa: F401
)
from clientkit import LARGE, fake, session_of
from fake_daemon import eventually, open_fds
from hypothesis import given
from hypothesis import strategies as st

import ringd
from ringd.client.group import Place, Wish
from ringd.client.splitting import Choice, choices, part_of
from tests.cluster import Cluster
from tests.ringkit import BOUNDED, Call

NAMES = ("a", "b", "c", "d")
COLORS = st.none() | st.integers(-2, 2) | st.sampled_from(["1", "2", "x/y"])


def work(members=(11, 12, 13), seq=4):
    """Return what of a call names its split."""
    return SimpleNamespace(session=SimpleNamespace(members=members), seq=seq)


def parts(everyone, machines, wish=None, called=None):
    """Return the part of each rank."""
    wish = wish or Wish("g")
    return [
        part_of(everyone, Place(rank, tuple(machines)), wish, called or work(), NAMES)
        for rank in range(len(machines))
    ]


# --- who is in which part ---------------------------------------------------------------


@given(
    st.lists(st.tuples(COLORS, st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12),
)
def test_all_ranks_find_the_same_parts(ranks):
    """In the order of their keys; each rank once; local ranks count what is on a machine."""
    everyone = choices([Choice(color, key).pack() for color, key, _ in ranks])
    machines = [machine for _, _, machine in ranks]
    found = parts(everyone, machines)
    for color in {color for color, _, _ in ranks}:
        alike = [r for r, (other, _, _) in enumerate(ranks) if other == color]
        if color is None:
            assert all(found[rank] is None for rank in alike)
            continue
        order = sorted(alike, key=lambda rank: (ranks[rank][1], rank))
        there = tuple(machines[rank] for rank in order)
        assert [found[rank][1] for rank in order] == [Place(i, there) for i in range(len(order))]
        wishes = [found[rank][0] for rank in order]
        assert len({wish.name for wish in wishes}) == 1
        assert {(wish.members, wish.ordered, wish.root) for wish in wishes} == {
            (tuple(NAMES[machine] for machine in there), True, "g")
        }
        for machine in set(there):
            local = [wish for wish, other in zip(wishes, there, strict=True) if other == machine]
            assert [wish.local_rank for wish in local] == list(range(len(local)))
            assert {wish.local_size for wish in local} == {len(local)}


def test_no_two_parts_have_the_same_name():
    """Of another color, split, session, or group."""
    everyone = [Choice(1), Choice("1"), Choice(2)]
    machines = (0, 1, 2)
    names = [
        part[0].name
        for group, members, seq in itertools.product(
            ("g", "h"), ((1, 2, 3), (1, 2, 4)), (1, 3, 2**40)
        )
        for part in parts(everyone, machines, Wish(group), work(members, seq))
    ]
    assert len(set(names)) == len(names) == 36
    assert names[0].startswith("g/1-")
    assert all(len(name.rpartition("-")[2]) == 16 for name in names)


def test_the_name_of_a_part_of_a_part_is_no_longer():
    """However deep: it begins with the group that connect joined."""
    wish = Wish("g" * 64)
    for depth in range(20):
        wish, place = part_of([Choice("c" * 32)], Place(0, (1,)), wish, work((5,), depth), NAMES)
        assert (len(wish.name), place) == (64 + 1 + 32 + 17, Place(0, (1,)))
        assert wish.name.startswith("g" * 64 + "/" + "c" * 32 + "-")


def test_what_another_rank_made_up_is_an_error_in_words():
    """Whatever it is."""
    for data in (b"", b"\xc1", Choice(1).pack() + b"x", b"\x92\x91\x01\x01", b"\x92\xa1\xff\x01"):
        with pytest.raises(ringd.RingError, match="no color and key"):
            choices([data])


# --- with a daemon ------------------------------------------------------------------------


def test_a_part_is_asked_for_as_what_it_is(tmp_path):
    """Over the same connection, with its place, which is known at once."""
    with fake(tmp_path, size=3, on_loss="fail") as (daemon, ring):
        assert ring.rank == 0
        daemon.handler.forms = False
        with ring.split("left", key=-5) as part:
            assert (part.rank, part.size, part.local_rank, part.local_size) == (0, 3, 0, 1)
            assert part.nodes == ("n0", "n1", "n2")
            assert part._connection is ring._connection
            attach = daemon.handler.attaches[-1]
            assert attach.group.startswith("default/left-")
            assert (attach.members, attach.ordered) == (("n0", "n1", "n2"), True)
            assert (attach.local_rank, attach.local_size, attach.on_loss) == (0, 1, "fail")
            assert repr(part).startswith(f"<ringd.Ring group {attach.group!r}, rank 0 of 3 (fake)")
            assert part.all_reduce(1.0) == 3.0
            daemon.handler.forms = True
            (client,) = daemon.run(lambda: daemon.server.clients)
            daemon.run(lambda: daemon.handler.form(client, attach.join_id))
            with part.split(7) as inner:
                assert daemon.handler.attaches[-1].group.startswith("default/7-")
                np.testing.assert_array_equal(inner.all_reduce(LARGE), 3 * LARGE)
        assert ring.split(None) is None
        assert ring.all_reduce(1.0) == 3.0


def test_a_part_goes_on_when_the_whole_is_closed(tmp_path):
    """The connection goes with the last of them."""
    with fake(tmp_path) as (daemon, ring):
        part = ring.split(0)
        ring.close()
        assert part.all_reduce(1.0) == 2.0
        connection = part._connection
        part.close()
        assert connection.ended
        eventually(lambda: not daemon.run(lambda: daemon.server.clients))
        assert daemon.handler.gone == []


def test_a_split_ends_at_its_deadline(tmp_path):
    """As the calls of which it is made."""
    with fake(tmp_path, hold=True, timeout=0.05, lost_after=-2.5) as (_, ring):
        for timeout in (None, 0.05):
            with pytest.raises(ringd.DeadlineExceeded, match="named 'split'"):
                ring.split(0, timeout=timeout)


def test_a_refusal_of_the_part_is_told(tmp_path):
    """The group that was split goes on."""
    with fake(tmp_path) as (daemon, ring):
        assert ring.size == 2
        daemon.handler.deny_attach = ("refused", "no such member")
        with pytest.raises(ringd.Refused, match="no such member"):
            ring.split(0)
        daemon.handler.deny_attach = None
        assert ring.all_reduce(1.0) == 2.0
        with ring.split(0) as part:
            assert part.all_reduce(1.0) == 2.0
        assert len(list(ring._connection.groups)) == 1


@pytest.mark.parametrize(
    ("color", "key", "error", "text"),
    [
        (1.5, 0, TypeError, "color is a whole number, a string, or None"),
        (b"x", 0, TypeError, "color is a whole number"),
        (True, 0, TypeError, "color is a whole number"),
        (1 << 63, 0, ValueError, "64 bits"),
        ("", 0, ValueError, "1 to 32 printable"),
        ("x" * 33, 0, ValueError, "1 to 32 printable"),
        ("a\n", 0, ValueError, "1 to 32 printable"),
        (0, "1", TypeError, "key is a whole number"),
        (0, -(1 << 63) - 1, ValueError, "64 bits"),
        (None, None, TypeError, "key is a whole number"),
    ],
)
def test_what_cannot_be_a_color_or_key_is_refused(tmp_path, color, key, error, text):
    """Before anybody else hears of it."""
    with fake(tmp_path) as (daemon, ring):
        with pytest.raises(error, match=text):
            ring.split(color, key)
        assert daemon.handler.submitted == []
        with ring.split(np.int32(3), np.int64(-1)) as part:
            assert part.size == 2


def test_thousands_of_splits_leave_nothing_behind(tmp_path):
    """Made and closed, or made and forgotten; not even memory of their calls."""
    with fake(tmp_path) as (daemon, ring):

        def use(number):
            part = ring.split(number % 3)
            if number % 50 == 0:
                assert (part.all_reduce(LARGE) == 2 * LARGE).all()
            if number % 2:
                part.close()

        for number in range(60):
            use(number)
        gc.collect()
        before = open_fds()
        for number in range(2000):
            use(number)
        eventually(lambda: len(list(ring._connection.groups)) == 1)
        client = daemon.run(lambda: daemon.server.clients)[0]
        assert daemon.run(lambda: (list(client.stays.values()), len(daemon.handler.stays))) == (
            ["default"],
            1,
        )
        assert open_fds() <= before + 2  # segments come and go
        assert ring._connection.pool.kept <= 4 << 20


def test_interrupts_of_a_split_leave_the_group_in_step(tmp_path):
    """At each instant: both calls are made or none, and no part is left that nobody has."""
    hits = 0
    with fake(tmp_path) as (daemon, ring):
        for delay in instants(300, 4e-3):
            before = session_of(ring).next_seq
            made = []
            hits += interrupted(lambda made=made: made.append(ring.split(1)), delay)
            assert session_of(ring).next_seq - before in (0, 2)
            for part in made:
                assert part.all_reduce(1.0, timeout=10) == 2.0
                part.close()
            made.clear()
        gc.collect()
        assert ring.all_reduce(1.0, timeout=10) == 2.0
        eventually(lambda: list(daemon.handler.groups) == ["default"])
        eventually(lambda: len(list(ring._connection.groups)) == 1)
    assert hits >= LEAST_HITS


def test_a_ring_of_one_can_be_split(tmp_path):
    """With a real daemon: parts of parts, several at once, and the whole beside them."""
    with (
        Cluster(tmp_path, 1, settings=BOUNDED) as cluster,
        ringd.connect(cluster.start().sockets[0], "one", 10) as ring,
        ExitStack() as stack,
    ):
        rings = [ring]
        for number in range(6):
            rings.append(stack.enter_context(rings[-1].split(number % 2, timeout=20)))
            assert ring.split(None, timeout=20) is None
        for number, part in enumerate(rings):
            assert (part.rank, part.size, part.nodes) == (0, 1, ("n0",))
            assert (part.local_rank, part.local_size) == (0, 1)
            assert part.all_reduce(float(number)) == number
            assert part.all_gather_bytes(bytes(number)) == [bytes(number)]
        status = cluster[0].status()
        assert len(status["groups"]) == 7
        assert len(status["clients"]) == 1
        stack.pop_all().close()
        eventually(lambda: len(cluster[0].status()["groups"]) == 1)
        assert ring.all_reduce(1.0) == 1.0


# --- what connect is told -----------------------------------------------------------------


def test_connect_says_which_place_it_wants(daemon):
    """All fields, and of one process several places in a group."""
    options = {"members": ["n2", "n0"], "local_size": np.int8(3)}
    with ExitStack() as stack:
        rings = [
            stack.enter_context(
                ringd.connect(daemon.path, f"g{n}", timeout=10, local_rank=n, **options)
            )
            for n in range(3)
        ]
        for n, (ring, attach) in enumerate(zip(rings, daemon.handler.attaches, strict=True)):
            assert (attach.local_rank, attach.local_size) == (n, 3)
            assert (attach.members, attach.ordered) == (("n2", "n0"), False)
            assert (ring.local_rank, ring.local_size) == (n, 3)


def test_places_of_one_group_are_told_apart(daemon):
    """Only the same one twice is refused here; the rest is the daemon's to say."""
    with ringd.connect(daemon.path, timeout=10, local_size=2) as ring:
        with pytest.raises(ringd.Refused, match="it is this very process"):
            ringd.connect(daemon.path, timeout=10, local_size=2)
        with ringd.connect(daemon.path, timeout=10, local_size=2, local_rank=1) as other:
            assert other._connection is ring._connection


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"local_rank": 1}, ValueError, "local_rank counts .* local_size - 1, which is 0, not 1"),
        ({"local_rank": -1}, ValueError, "local_rank"),
        ({"local_rank": 0.0}, TypeError, "local_rank is a whole number"),
        ({"local_size": 0}, ValueError, "local_size is a number from 1 to 1000"),
        ({"local_size": 1001}, ValueError, "1000"),
        ({"local_size": None}, TypeError, "local_size is a whole number"),
        ({"members": "n0"}, TypeError, "members is a list"),
        ({"members": {"n0": 1}}, TypeError, "members is a list"),
        ({"members": []}, ValueError, "members is empty; write None"),
        ({"members": ["n0", "n1", "n0"]}, ValueError, "'n0' more than once"),
        ({"members": ["n0", 1]}, TypeError, "a member's name is a string"),
    ],
)
def test_what_cannot_be_a_place_is_refused(daemon, options, error, text):
    """Before the daemon hears of it."""
    with pytest.raises(error, match=text):
        ringd.connect(daemon.path, timeout=10, **options)
    assert daemon.handler.attaches == []


def test_a_split_that_waits_for_others_can_be_closed(tmp_path):
    """From another thread, as any call."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        call = Call(lambda: ring.split(0, timeout=math.inf))
        eventually(lambda: daemon.handler.submitted)
        ring.close()
        assert "closed" in str(call.outcome())
