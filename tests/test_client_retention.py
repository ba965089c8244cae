"""How much memory is kept: in step with the working set, in virtual time."""

from ringd.client.retention import FORGET, QUIET, ROOM, Retention

MIB = 1 << 20


def test_busy_program_has_room_for_other_sizes():
    """2.5 times the most that calls had under way, not the last call's."""
    retention = Retention()
    for under_way in (10 * MIB, 100 * MIB, 20 * MIB):
        retention.note(under_way, 10.0)
    assert retention.limit(0, 10.0) == 250 * MIB


def test_large_calls_of_long_ago_do_not_count():
    """The working set is that of the last five seconds in which there were calls."""
    retention = Retention()
    retention.note(100 * MIB, 10.0)
    for second in range(4):
        retention.note(10 * MIB, 11.0 + second)
        assert retention.limit(0, 11.0 + second) == 250 * MIB
    retention.note(10 * MIB, 15.0)
    assert retention.limit(0, 15.0) == 25 * MIB


def test_pause_between_steps_is_no_time():
    """A step after half a minute of computing begins with what the last one had."""
    retention = Retention()
    for step in range(10):
        retention.note(100 * MIB, 30.0 * step)
        retention.note(MIB, 30.0 * step + 1)
        assert retention.limit(0, 30.0 * step + 29) == 120 * MIB
    retention.note(MIB, 300.0)
    assert retention.limit(0, 300.0) == 250 * MIB


def test_idle_program_keeps_its_working_set_and_later_nothing():
    """Twice there is less, at known times."""
    retention = Retention()
    retention.note(100 * MIB, 10.0)
    assert retention.next_look(10.0, more=False, held=False) == QUIET
    assert retention.limit(0, 10 + QUIET) == 120 * MIB
    assert retention.next_look(10 + QUIET, more=False, held=False) == FORGET - QUIET
    assert retention.next_look(10 + QUIET, more=True, held=False) == QUIET
    assert retention.next_look(10 + 2 * QUIET, more=False, held=True) == 2 * QUIET
    assert retention.limit(0, 10 + FORGET) == ROOM
    assert retention.next_look(10 + FORGET, more=False, held=False) is None
    assert retention.next_look(10 + FORGET, more=True, held=False) == QUIET
    assert retention.next_look(10 + 100 * FORGET, more=False, held=True) == FORGET


def test_what_is_in_use_is_always_kept():
    """Users' arrays count, and have a little room."""
    retention = Retention()
    assert retention.limit(0, 0.0) == ROOM
    assert retention.limit(MIB, 0.0) == MIB + ROOM
    assert retention.limit(1000 * MIB, 0.0) == 1200 * MIB
