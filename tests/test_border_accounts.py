"""Who may have how much: a program, a user, and all of them."""

from __future__ import annotations

import random
import threading

import pytest

from ringd.border.accounts import Held, Limit, Resource, Share

ALL = 1000


def resource(each: int | None = None) -> Resource:
    """Return one of which there are a thousand."""
    return Resource(Limit("things", ALL, "ipc.things", each, "ipc.thing"))


def grab(share: Share) -> int:
    """Take all that can be had, one by one; return how much that was."""
    count = 0
    while not share.refusal():
        share.take()
        count += 1
    return count


def test_a_user_has_three_quarters_of_what_others_leave():
    """So one that is alone has most of it, and whoever comes later has something."""
    things = resource()
    shares = [Share(things, uid) for uid in (501, 502, 503)]
    assert [grab(share) for share in shares] == [750, 187, 47]
    assert things.by_user() == {501: 750, 502: 187, 503: 47}
    shares[0].give(700)
    assert grab(shares[1]) == 677 - 187  # three quarters of 903
    assert things.used() == 50 + 677 + 47


def test_programs_of_one_user_share_its_part():
    """Whoever is first has it; what one gives back is another's to take."""
    things = resource()
    first, second = Share(things, 501), Share(things, 501)
    assert (grab(first), grab(second)) == (750, 0)
    first.give(10)
    assert grab(second) == 10
    assert (first.used, second.used, things.used(501)) == (740, 10, 750)


def test_a_program_may_have_a_limit_of_its_own():
    """Named by its setting; the user's next program has the same again."""
    things = resource(each=100)
    first, second = Share(things, 501), Share(things, 501)
    assert (grab(first), grab(second)) == (100, 100)
    assert first.refusal(5) == (
        "this program has 100 things, and may have 100 (ipc.thing), not 5 more"
    )


def test_a_refusal_says_whose_the_rest_is():
    """With the setting that bounds all."""
    things = resource()
    Share(things, 7).take(600)
    share = Share(things, 501)
    share.take(250)
    assert share.refusal(51) == (
        "programs of user 501 have 250 things, and may have 300, not 51 more: three quarters of "
        "what other users leave of 1000 (ipc.things)"
    )
    assert not share.refusal(50)


def test_nothing_can_always_be_had():
    """Also by one whose part has shrunk, as others came: barriers go on."""
    things = resource()
    share = Share(things, 501)
    grab(share)
    Share(things, 502).take(200)
    assert share.refusal(1)
    assert not share.refusal(0)


def test_the_quick_answer_is_the_right_one():
    """At random: what is granted without a look at the users would be granted with it."""
    seed = random.Random(20)
    for _ in range(2000):
        things = resource()
        users = [seed.randint(0, 400) for _ in range(3)]
        for uid, used in enumerate(users):
            Share(things, uid).take(used)
        amount = seed.randint(0, 900)
        allowed = int(0.75 * (ALL - users[1] - users[2]))
        assert (not Share(things, 0).refusal(amount)) == (users[0] + amount <= allowed)


def test_the_total_may_change():
    """As the limit of open files does."""
    total = [10]
    things = Resource(lambda: Limit("things", total[0], "the limit"))
    share = Share(things, 1)
    assert grab(share) == 7
    total[0] = 20
    assert grab(share) == 8


def test_what_is_held_counts_as_long_as_it_lives():
    """Whoever lets go of it last, in whatever thread."""
    things = resource()
    share = Share(things, 501)
    held = [[Held(share, 3) for _ in range(25)] for _ in range(4)]
    held[0][0].grow(7)
    assert things.used() == 307
    threads = [threading.Thread(target=part.clear) for part in held]
    for thread in threads:
        thread.start()
        thread.join()
    assert (things.used(), things.by_user()) == (0, {})


def test_what_is_held_counts_at_once():
    """Before anybody has looked at whose it is; and no longer than it is held."""
    things = resource()
    other = Share(things, 502)
    held = [Held(Share(things, 501), 10) for _ in range(60)]
    assert other.refusal(301)
    for number in range(20):
        held[number].grow(10)
    assert not other.refusal(150)
    assert other.refusal(151)
    held.clear()
    assert not other.refusal(750)


@pytest.mark.parametrize("threads", [8])
def test_many_threads_give_back_without_a_loss(threads):
    """Memory is freed by whoever looks at it last, and Python's sums are no one step."""
    things = resource()
    share = Share(things, 501)
    share.take(threads * 10_000)
    started = threading.Barrier(threads)

    def give():
        started.wait()
        for _ in range(10_000):
            share.give()

    givers = [threading.Thread(target=give) for _ in range(threads)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
    assert (share.used, things.used(), things.by_user()) == (0, 0, {})


def test_what_is_given_back_is_not_piled_up():
    """A daemon makes calls for years, and few of them need a close look."""
    things = resource()
    share = Share(things, 501)
    for _ in range(1000):
        assert not share.refusal(1)
        Held(share, 0)
        Held(share, 1)
    assert len(things.changes) < 100
    assert things.used() == 0
