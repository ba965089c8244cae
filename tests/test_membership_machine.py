"""One machine alone: what each event makes it do."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from ringd.membership.machine import (
    GAP,
    PATIENCE,
    Broken,
    Changed,
    DropLinks,
    Event,
    Machine,
    Persist,
    Ready,
    Send,
    State,
)
from ringd.membership.states import TRANSITIONS
from ringd.membership.storage import DISK_RETRY
from ringd.wire.link.bounds import COUNTED_ON, MAX_COUNT, MAX_ERROR, NEARBY
from ringd.wire.link.control import Commit, LinkState, News, Propose


def other(rank, *, version=9, incarnation=1, epoch=2, **changes):
    """Return the state of a member with both links up, but for *changes*."""
    state = LinkState(rank, incarnation, version, True, True, 0, "", epoch=epoch)
    return msgspec.structs.replace(state, **changes)


def linked(rank=1, size=3, generation=0, now=0.0):
    """Return a machine with both links up that has heard that all others have them too."""
    machine = Machine(rank, size, 1, generation)
    machine.start(now)
    machine.link_up("left", 1, "left:1", now)
    machine.link_up("right", 1, "right:1", now)
    states = tuple(other(r) for r in range(size) if r != rank)
    machine.received("left", News(states), now)
    return machine


def ready(generation=5):
    """Return the machine of rank 1 of 3 in a ring of *generation*."""
    machine = linked()
    machine.received("left", Propose(1, generation - 1, (1,)), 0.0)
    machine.received("left", Commit(1, generation, (1, 1, 1)), 0.0)
    machine.persisted(generation, 0.0)
    assert machine.state is State.READY
    return machine


def kinds(actions):
    """Return the actions' types."""
    return [type(action) for action in actions]


def test_every_event_is_in_the_table_for_every_state():
    """The table leaves out only bugs: to form in a ring or drained, to resume undrained."""
    missing = set(product(State, Event)) - set(TRANSITIONS)
    formed = {(State.READY, Event.FORMED), (State.DRAINING, Event.FORMED)}
    assert missing == formed | {(State.FORMING, Event.RESUME), (State.READY, Event.RESUME)}


def test_a_ring_of_one_forms_at_once():
    """The only member persists the next generation and is ready."""
    machine = Machine(0, 1, 3, 7)
    assert machine.start(0.0) == [Persist(8, 3)]
    assert kinds(machine.persisted(8, 0.0)) == [Changed, Ready]
    assert (machine.generation, machine.in_use) == (8, 8)


def test_a_ring_of_one_rejoins():
    """There are no links to drop, but the ring is formed anew."""
    machine = Machine(0, 1, 3, 7)
    machine.start(0.0)
    machine.persisted(8, 0.0)
    assert kinds(machine.rejoin(1.0)) == [Broken, Changed, Persist]
    assert machine.persisted(9, 1.0)[-1] == Ready(9)


def test_a_new_neighbour_is_told_everything_and_the_other_one_the_change():
    """Whole table to the new link, the own state to the old one."""
    machine = Machine(1, 3, 1, 0)
    machine.start(0.0)
    machine.link_up("left", 1, "a", 0.0)
    machine.received("left", News((other(0), other(2))), 0.0)
    actions = machine.link_up("right", 1, "b", 0.0)
    own = machine._table[1]
    assert actions == [
        Send("left", News((own,))),
        Send("right", News((other(0), own, other(2)))),
    ]
    assert (own.left_up, own.right_up, own.address) == (True, True, "b")


def test_a_round_of_rank_0():
    """Propose, persist, commit, ready: in this order, and nothing before its time."""
    machine = Machine(0, 3, 1, 4)
    machine.link_up("left", 1, "", 0.0)
    machine.link_up("right", 1, "", 0.0)
    told = machine.received("right", News((other(1),)), 0.0)
    assert told == [Send("left", News((other(1),))), Send("right", News((other(1),)))]
    actions = machine.received("right", News((other(2),)), 0.0)
    assert actions[-1] == Send("right", Propose(1, 4, (1,)))
    assert machine.next_deadline == PATIENCE
    assert machine.received("left", Propose(1, 4, (1, 1, 1)), 0.0) == [Persist(5, 1)]
    commit = Commit(1, 5, (1, 1, 1))
    assert machine.received("left", commit, 0.0) == []
    assert machine.persisted(5, 0.0) == [Send("right", commit)]
    assert not machine.in_ring
    assert kinds(machine.received("left", commit, 0.0)) == [Changed, Ready]
    assert machine.next_deadline is None


def test_rank_0_leaves_a_gap_when_others_know_more():
    """A generation that rank 0 never wrote down tells of a lost state file."""
    machine = linked(rank=0)
    actions = machine.received("left", Propose(1, 7, (1, 1, 1)), 0.0)
    assert actions == [Persist(7 + GAP, 1)]


def test_rank_0_starts_over_when_a_round_does_not_return():
    """After its patience another attempt goes round, with twice the patience."""
    machine = linked(rank=0)
    assert machine.tick(PATIENCE / 2) == []
    assert machine.tick(PATIENCE) == [Send("right", Propose(2, 0, (1,)))]
    assert machine.next_deadline == 3 * PATIENCE
    assert machine.received("left", Propose(1, 0, (1, 1, 1)), 1.0) == []


def test_no_round_ends_because_rank_0_has_a_slow_disk():
    """Patience is with the others: it begins when the own write has ended, and does not grow."""
    machine = linked(rank=0)
    assert machine.received("left", Propose(1, 0, (1, 1, 1)), 0.5) == [Persist(1, 1)]
    assert machine.next_deadline is None
    assert machine.tick(60.0) == []
    commit = Commit(1, 1, (1, 1, 1))
    assert machine.persisted(1, 60.0) == [Send("right", commit)]
    assert machine.next_deadline == 60.0 + PATIENCE
    assert kinds(machine.received("left", commit, 60.1)) == [Changed, Ready]
    machine.rejoin(61.0)
    assert machine._patience == PATIENCE


def test_a_slow_disk_is_told_and_ends_nothing():
    """All learn whom they wait for; the commit that is being written stands."""
    machine = linked()
    machine.received("left", Propose(1, 4, (1,)), 0.0)
    machine.received("left", Commit(1, 5, (1, 1, 1)), 0.0)
    assert machine.entering == 5
    slow = machine.persist_slow("it takes long", 1.0)
    assert [(a.side, a.message.states[0].disk_slow) for a in slow] == [
        (side, "state file: it takes long") for side in ("left", "right")
    ]
    assert machine.missing() == {1: "state file: it takes long"}
    assert machine.entering == 5
    far = linked(rank=2)
    far.received("left", Propose(1, 4, (1, 1)), 0.0)
    far.received("left", Commit(1, 5, (1, 1, 1)), 0.0)
    far.persisted(5, 0.0)
    told = msgspec.structs.replace(slow[0].message.states[0], version=20, epoch=2)
    news = News((told,))
    assert far.received("left", news, 1.0) == [Send("right", news), Send("left", news)]
    assert far.state is State.READY
    assert far.members(2.0)[1].error == "state file: it takes long"
    over = machine.persisted(5, 3.0)
    assert [a.message.states[0].disk_slow for a in over if isinstance(a, Send)] == ["", ""]
    assert over[-1] == Ready(5)
    assert (machine.entering, machine.missing()) == (None, {})


def test_a_member_passes_a_commit_on_before_it_persists():
    """All disks work at the same time; ready comes after the own one."""
    machine = linked()
    assert machine.received("left", Propose(1, 4, (1,)), 0.0) == [
        Send("right", Propose(1, 4, (1, 1)))
    ]
    commit = Commit(1, 5, (1, 1, 1))
    assert machine.received("left", commit, 0.0) == [Send("right", commit), Persist(5, 1)]
    assert not machine.in_ring
    assert machine.persisted(5, 0.0)[-1] == Ready(5)
    assert (machine.generation, machine.in_use) == (5, 5)


@pytest.mark.parametrize(
    "commit",
    [
        Commit(2, 5, (1, 1, 1)),
        Commit(1, 5, (2, 1, 1)),
        Commit(1, 5, (1, 1, 2)),
        Commit(1, 0, (1, 1, 1)),
    ],
)
def test_a_commit_that_was_not_proposed_is_ignored(commit):
    """Another attempt, another life of a member, an old generation: nothing happens."""
    machine = linked()
    machine.received("left", Propose(1, 4, (1,)), 0.0)
    assert machine.received("left", commit, 0.0) == []


DISTURBANCES = {
    "link lost": lambda m: m.link_down("right", "cut", 0.0),
    "link replaced": lambda m: m.link_up("left", 1, "", 0.0),
    "news of a loss": lambda m: m.received(
        "left", News((other(2, version=10, epoch=3, right_up=False),)), 0.0
    ),
    "news of a flap": lambda m: m.received("right", News((other(2, version=11, epoch=4),)), 0.0),
    "news of a restart": lambda m: m.received("left", News((other(0, incarnation=2),)), 0.0),
    "another round": lambda m: m.received("left", Propose(2, 9, (1,)), 0.0),
    "rejoin": lambda m: m.rejoin(0.0),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbances_end_a_ring(name):
    """Whatever happened, a member leaves the ring in the same event, with a reason."""
    machine = ready()
    actions = DISTURBANCES[name](machine)
    assert kinds(actions).count(Broken) == 1
    assert kinds(actions).count(Changed) == 1
    assert (machine.state, machine.in_ring) == (State.FORMING, False)


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbances_end_a_commit(name):
    """A commit that is not on disk yet is void; the generation still counts as used."""
    machine = linked()
    machine.received("left", Propose(1, 4, (1,)), 0.0)
    machine.received("left", Commit(1, 5, (1, 1, 1)), 0.0)
    DISTURBANCES[name](machine)
    assert Ready(5) not in machine.persisted(5, 0.0)
    assert machine.generation == 5


def test_a_member_without_all_links_drops_proposals():
    """Only who believes that a ring can form passes a proposal on."""
    machine = linked()
    machine.received("right", News((other(2, version=10, epoch=3, left_up=False),)), 0.0)
    assert machine.received("left", Propose(1, 0, (1,)), 0.0) == []


def test_harmless_news_is_passed_on_and_ends_nothing():
    """An address, or a member that drains, is told round; the ring stays."""
    machine = ready()
    news = News((other(2, version=10, draining=True),))
    assert machine.received("left", news, 0.0) == [Send("right", news)]
    assert machine.received("right", news, 0.0) == []
    assert machine.state is State.READY


def test_a_member_that_leaves_tells_so_and_comes_back():
    """Its ring breaks, its links stay, the others hear of both; a round begins once it is back."""
    machine = ready()
    actions = machine.leave(1.0)
    assert kinds(actions) == [Send, Send, Broken, Changed]
    (state,) = actions[0].message.states
    assert (state.draining, state.left_up, state.right_up) == (True, True, True)
    assert state.epoch > linked()._flooding.own.epoch
    assert machine.state is State.DRAINING
    assert machine.received("left", Propose(2, 5, (1,)), 2.0) == []
    actions = machine.resume(3.0)
    assert [action.message.states[0].draining for action in actions[:2]] == [False, False]
    assert kinds(actions) == [Send, Send, Changed]
    assert kinds(machine.received("left", Propose(3, 5, (1,)), 4.0)) == [Send]
    assert machine.resume(5.0) == []


def test_others_leave_a_ring_with_one_that_has_left():
    """That is news which ends it, with the reason."""
    news = News((other(2, version=10, epoch=3, draining=True),))
    actions = ready().received("left", news, 0.0)
    assert kinds(actions) == [Send, Broken, Changed]
    assert actions[1].reason == "links changed elsewhere: rank 2: drained, or shutting down"


def test_a_full_disk_keeps_a_member_out_until_it_can_write():
    """The error is told round, writing is retried, and success is told as well."""
    machine = linked()
    machine.received("left", Propose(1, 4, (1,)), 0.0)
    machine.received("left", Commit(1, 5, (1, 1, 1)), 0.0)
    actions = machine.persist_failed("no space", 0.0)
    assert [a.message.states[0].error for a in actions] == ["state file: no space"] * 2
    assert machine.next_deadline == DISK_RETRY
    assert machine.tick(DISK_RETRY) == [Persist(5, 1)]
    assert machine.persist_failed("no space", DISK_RETRY) == []
    assert machine.tick(2 * DISK_RETRY) == [Persist(5, 1)]
    actions = machine.persisted(5, 2 * DISK_RETRY)
    assert [a.message.states[0].error for a in actions] == ["", ""]
    assert machine.next_deadline is None


def test_writes_one_state_at_a_time():
    """A commit that comes during a write waits for its end."""
    machine = linked()
    machine.received("left", Propose(1, 4, (1,)), 0.0)
    machine.received("left", Commit(1, 5, (1, 1, 1)), 0.0)
    machine.received("left", Propose(2, 5, (1,)), 0.0)
    assert kinds(machine.received("left", Commit(2, 6, (1, 1, 1)), 0.0)) == [Send]
    assert machine.persisted(5, 0.0) == [Persist(6, 1)]
    assert machine.persisted(6, 0.0)[-1] == Ready(6)


def test_persisted_must_have_been_asked_for():
    """The end of a write that nobody asked for is a caller's bug."""
    with pytest.raises(ValueError, match="was not to be persisted"):
        linked().persisted(5, 0.0)


def test_rises_above_its_older_self():
    """A member that hears of its former life takes a higher incarnation, on disk first."""
    machine = linked()
    older = other(1, incarnation=4)
    assert machine.received("left", News((older,)), 0.0) == [Persist(0, 5)]
    assert machine.incarnation == 1
    actions = machine.persisted(0, 0.0)
    states = [a.message.states[0] for a in actions if isinstance(a, Send)]
    assert [(s.incarnation, s.version) for s in states] == [(5, 1), (5, 1)]
    assert machine.incarnation == 5


@pytest.mark.parametrize(("side", "rank", "onward"), [("left", 0, "right"), ("right", 2, "left")])
def test_what_a_neighbour_tells_of_itself_goes_back_to_it(side, rank, onward):
    """If that is news, and only that: who never said so hears of it, and everybody else once."""
    machine = linked()
    of_itself, of_another = (other(r, version=10) for r in (rank, 2 - rank))
    told = machine.received(side, News((of_itself, of_another)), 0.0)
    assert told == [Send(onward, News((of_itself, of_another))), Send(side, News((of_itself,)))]
    assert machine.received(side, News((of_itself, of_another)), 0.0) == []


def test_dial_errors_are_told_once_each():
    """Attempts that fail in turn at several addresses make news only when a reason is new."""
    machine = Machine(1, 3, 1, 0, names=("studio", "mini", "air"))
    machine.link_up("left", 1, "", 0.0)
    assert kinds(machine.dial_failed("a:1", "refused", 0.0)) == [Send]
    assert kinds(machine.dial_failed("b:1", "no route", 0.0)) == [Send]
    assert machine.dial_failed("a:1", "refused", 1.0) == []
    assert machine.dial_failed("b:1", "no route", 1.0) == []
    assert kinds(machine.dial_failed("b:1", "refused", 5.0)) == [Send]
    view = machine.members(6.0)[2]
    assert (view.state, view.address, view.error_since) == ("down", "b:1", 5.0)
    assert view.error == "right neighbour air: a:1: refused; b:1: refused"


def test_each_error_has_its_own_age():
    """What is new about one neighbour makes nothing of the other's error younger, or part of it."""
    machine = ready()
    machine.link_down("left", "cut", 1.0)
    machine.link_down("right", "silent", 5.0)
    left, _, right = machine.members(9.0)
    assert (left.error, left.error_since) == ("left neighbour rank 0: cut", 1.0)
    assert (right.error, right.error_since) == ("right neighbour rank 2: silent", 5.0)


def test_a_member_is_missed_from_when_it_went_whatever_is_said_since():
    """Words change, as attempts fail in other ways; when it is back, all of that is over."""
    machine = ready()
    machine.link_down("right", "closed", 1.0)
    machine.dial_failed("a:1", "refused", 1.1)
    machine.dial_failed("a:1", "timed out", 7.0)
    missing = machine.members(9.0)[2]
    assert (missing.missed_since, missing.error_since) == (1.0, 7.0)
    machine.link_up("right", 1, "a:1", 10.0)
    back = machine.members(11.0)[2]
    assert (back.missed_since, back.error_since) == (None, 7.0)
    machine.link_down("right", "closed", 20.0)
    again = machine.members(21.0)[2]
    assert (again.missed_since, again.error_since) == (20.0, 20.0)


def dialed(instance, **changes):
    """Return the word of rank 2, who dials rank 0, on whom it has reached there."""
    return other(2, address="a:1", right_instance=instance, **changes)


def test_a_left_link_to_another_machine_of_that_name_is_dropped():
    """Who is dialed at the neighbour's address is the neighbour; a link from another one goes."""
    machine = Machine(1, 3, 1, 0, names=("studio", "mini", "air"))
    machine.link_up("left", 1, "x:1", 0.0, instance=66)
    machine.link_up("right", 1, "b:1", 0.0, instance=9)
    assert machine.rival(66) == ""
    actions = machine.received("right", News((dialed(7),)), 0.0)
    reason = (
        "'air' is still linked to another process under the name 'studio', at a:1: try again, or "
        "give one of the two a name of its own"
    )
    assert DropLinks(reason, ("left",)) in actions
    assert machine.rival(66) == reason
    assert [machine.rival(instance) for instance in (7, 0)] == ["", ""]
    assert machine._table[1].left_error == f"left neighbour studio: {reason}"
    assert not any(
        isinstance(a, DropLinks) for a in machine.link_up("left", 1, "a:2", 1.0, instance=7)
    )
    # And the other way round: known before the link, which an owner who asks would not have made.
    assert DropLinks(reason, ("left",)) in machine.link_up("left", 1, "x:2", 2.0, instance=66)


def test_old_news_drops_no_link():
    """What was heard before a break on the way says nothing about who is the neighbour now."""
    machine = Machine(1, 4, 1, 0)
    machine.link_up("left", 1, "x:1", 0.0, instance=7)
    machine.link_up("right", 1, "b:1", 0.0, instance=9)
    machine.received("right", News((other(2), other(3, right_instance=7))), 0.0)
    assert machine.rival(8) != ""
    machine.received(
        "right", News((other(2, version=10, right_up=False, right_error="gone"),)), 0.0
    )
    assert machine.rival(8) == ""
    actions = machine.link_up("left", 2, "x:1", 0.0, instance=8)
    assert DropLinks not in kinds(actions)


def test_in_a_ring_of_two_the_own_right_link_tells():
    """There, who dials and who is dialed are one."""
    machine = Machine(0, 2, 1, 0)
    machine.link_up("left", 1, "x:1", 0.0, instance=66)
    assert DropLinks in kinds(machine.link_up("right", 1, "a:1", 0.0, instance=7))
    assert machine.rival(66) != ""
    machine.link_down("right", "gone", 1.0)
    assert machine.rival(66) == ""


def test_whatever_ends_a_ring_raises_the_epoch():
    """Others that see only the last of several states still learn that something happened."""
    machine = ready()
    epochs = [machine._table[1].epoch]
    machine.link_down("left", "cut", 0.0)
    epochs.append(machine._table[1].epoch)
    machine.link_up("left", 1, "", 0.0)
    epochs.append(machine._table[1].epoch)
    machine.link_up("left", 1, "", 0.0)
    epochs.append(machine._table[1].epoch)
    machine.received("left", News((other(1, incarnation=2),)), 0.0)
    machine.persist_failed("full", 0.0)
    epochs.append(machine._table[1].epoch)
    assert epochs == sorted(set(epochs))


def test_no_ring_is_made_with_a_member_that_drains():
    """Neither the return of a proposal nor a commit counts once somebody is shutting down."""
    news = News((other(2, version=10, draining=True),))
    first = linked(rank=0)
    first.received("right", news, 0.0)
    assert first.received("left", Propose(1, 0, (1, 1, 1)), 0.0) == []
    member = linked()
    member.received("left", Propose(1, 0, (1,)), 0.0)
    member.received("right", news, 0.0)
    assert member.received("left", Commit(1, 1, (1, 1, 1)), 0.0) == []


def test_a_proposal_does_not_outlive_a_change():
    """A commit of a round from before a change is too late."""
    for name, disturb in DISTURBANCES.items():
        machine = linked()
        machine.received("left", Propose(1, 4, (1,)), 0.0)
        disturb(machine)
        machine.link_up("left", 1, "", 0.0)
        machine.link_up("right", 1, "", 0.0)
        commit = Commit(1, 5, machine._table.incarnations())
        assert machine.received("left", commit, 0.0) == [], name


def test_error_texts_are_bounded():
    """However many addresses fail, the text that travels stays short."""
    machine = Machine(1, 3, 1, 0)
    for number in range(100):
        machine.dial_failed(f"host-{number}:1", "connection refused", 0.0)
    assert len(machine._table[1].error) == MAX_ERROR


def test_draining_keeps_the_ring_but_joins_no_other():
    """The ring goes on until a link is lost; proposals are dropped from then on."""
    machine = ready()
    assert Broken not in kinds(machine.drain(0.0))
    assert (machine.state, machine.in_ring) == (State.DRAINING, True)
    assert machine.drain(0.0) == []
    assert kinds(machine.link_down("right", "closed", 0.0)).count(Broken) == 1
    machine.link_up("right", 1, "", 0.0)
    assert machine.received("left", Propose(2, 5, (1,)), 0.0) == []
    assert machine.state is State.DRAINING


def test_rejoin_drops_both_links():
    """The links are down for the machine at once, and the caller closes them."""
    machine = ready()
    assert DropLinks("asked to rejoin", ("left", "right")) in machine.rejoin(0.0)
    assert machine.link_down("left", "closed", 0.0) == []
    assert machine.received("left", News((other(0, version=99),)), 0.0) == []
    for event in (Event.REJOIN, Event.RELOAD):  # each says why, here and to the neighbours
        actions = ready().rejoin(0.0, event)
        assert DropLinks(event.value, ("left", "right")) in actions
        assert Broken(event.value) in actions


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("right", Propose(1, 0, (1,))),
        ("right", Commit(1, 1, (1, 1, 1))),
        ("left", Propose(1, 0, ())),
        ("left", Propose(1, MAX_COUNT, (1,))),
        ("left", Commit(1, MAX_COUNT, (1, 1, 1))),
        ("left", Commit(1, 1, (1, 1))),
        ("left", News((other(3),))),
        ("left", News((other(1, incarnation=MAX_COUNT),))),
    ],
)
def test_nonsense_costs_the_link(side, message):
    """What no neighbour could send drops the link that it came over, and only that."""
    machine = ready()
    actions = machine.received(side, message, 0.0)
    drops = [action for action in actions if isinstance(action, DropLinks)]
    assert [drop.sides for drop in drops] == [(side,)]
    assert drops[0].reason.startswith("protocol error: ")
    assert machine.state is State.FORMING


def formed_after(lie, generation):
    """Have rank 0 of 3 hear *lie*, and let a ring form; return the generation that it takes."""
    machine = linked(rank=0, generation=generation)
    machine.received("left", News((lie,)), 0.0)
    told = machine.received("left", News((other(lie.rank, version=lie.version + 1),)), 0.0)
    attempt = [a.message for a in told if isinstance(a, Send) and isinstance(a.message, Propose)][
        -1
    ]
    machine.received("left", msgspec.structs.replace(attempt, incarnations=(1, 1, 1)), 0.0)
    return machine._storage.wanted.generation


@pytest.mark.parametrize("lie", [1, 1 << 32, COUNTED_ON, COUNTED_ON + 1, MAX_COUNT])
@pytest.mark.parametrize("generation", [5, COUNTED_ON + 5])
def test_no_generation_that_is_told_uses_them_up(lie, generation):
    """Whatever a member says, the next generation is one that all others believe, and goes on."""
    taken = formed_after(other(2, generation=lie, epoch=3), generation)
    assert generation < taken <= max(COUNTED_ON, generation) + 2 * NEARBY
    follower = linked(rank=1, generation=generation)
    follower.received("left", Propose(1, taken - 1, (1,)), 0.0)
    actions = follower.received("left", Commit(1, taken, (1, 1, 1)), 0.0)
    assert kinds(actions) == [Send, Persist]


@pytest.mark.parametrize("lie", [9, 1 << 53, COUNTED_ON])
def test_an_incarnation_that_is_told_can_be_outbid(lie):
    """The member takes a higher one, which the others believe, and has room to count on from."""
    machine = linked(rank=1)
    actions = machine.received("left", News((other(1, incarnation=lie),)), 0.0)
    assert [a.incarnation for a in actions if isinstance(a, Persist)] == [lie + 1]
    assert lie + 1 <= MAX_COUNT - (1 << 31)


def test_members_are_up_down_or_unknown():
    """Who can be reached is up, who should be next is down, nothing is known of those behind."""
    machine = Machine(0, 5, 1, 0)
    assert [v.state for v in machine.members(0.0)] == ["up", "down", "unknown", "unknown", "down"]
    machine.link_up("right", 1, "", 0.0)
    machine.received("right", News((other(1, right_up=False, right_error="refused"),)), 2.0)
    views = machine.members(3.0)
    assert [v.state for v in views] == ["up", "up", "down", "unknown", "down"]
    assert (views[2].error, views[2].error_since) == ("refused", 2.0)
    assert machine.missing()[2] == "not heard of yet"


def test_a_rank_outside_the_ring_is_refused():
    """A rank must be one of the ring's."""
    with pytest.raises(ValueError, match="rank 3"):
        Machine(3, 3, 1, 0)
