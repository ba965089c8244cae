"""Free ranges: best fit, neighbours become one, nothing is given twice."""

from hypothesis import given
from hypothesis import strategies as st

from ringd.client.arena import Arena

SIZES = (64, 100, 256)


def arena_of(*sizes):
    """Return an arena of segments 1, 2, ... of *sizes*."""
    arena = Arena()
    for number, size in enumerate(sizes, 1):
        arena.add(number, size)
    return arena


def test_shortest_range_that_has_room_is_taken():
    """Large ranges are left for large blocks; of equal ones the oldest goes first."""
    arena = arena_of(200, 50, 100, 50)
    assert [arena.take(50), arena.take(50), arena.take(60)] == [(2, 0), (4, 0), (3, 0)]
    assert [arena.take(40), arena.take(150), arena.take(51)] == [(3, 60), (1, 0), None]


def test_neighbours_become_one():
    """However parts come back, the whole can be taken again."""
    for order in ((0, 10, 20), (20, 10, 0), (0, 20, 10), (10, 0, 20)):
        arena = arena_of(30)
        assert [arena.take(10) for _ in range(3)] == [(1, 0), (1, 10), (1, 20)]
        for start in order:
            assert arena.give(1, start, 10) is True
        assert (arena.free_in(1), arena.take(30)) == (30, (1, 0))


def test_removed_segment_is_forgotten():
    """What comes back of it later is not taken in."""
    arena = arena_of(40, 10)
    arena.take(20)
    arena.take(10)
    assert arena.take(10) == (1, 20)
    arena.give(1, 0, 20)
    assert arena.ranges(1) == [(0, 20), (30, 10)]
    arena.remove(1)
    arena.remove(1)
    assert arena.ranges(1) == []
    assert (arena.give(1, 20, 10), arena.free_in(1), arena.take(1)) == (False, 0, None)


def longest_free(taken):
    """Return the length of the longest run of bytes that are not *taken*."""
    used = {(s, start + i) for s, start, length in taken for i in range(length)}
    runs = []
    for segment, size in enumerate(SIZES, 1):
        text = "".join("x" if (segment, i) in used else "." for i in range(size))
        runs += [len(run) for run in text.split("x")]
    return max(runs)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=200))
def test_no_byte_is_given_twice_nor_lost(steps):
    """Whatever is taken and given back: ranges never overlap, and add up to the whole."""
    arena, taken = arena_of(*SIZES), []
    for take, number in steps:
        if take:
            place = arena.take(number)
            assert (place is None) == (longest_free(taken) < number)
            if place is not None:
                taken.append((*place, number))
        elif taken:
            assert arena.give(*taken.pop(number % len(taken))) is True
        again = Arena()
        for segment, size in enumerate(SIZES, 1):
            again.add(segment, size, [block[1:] for block in taken if block[0] == segment])
            assert again.ranges(segment) == arena.ranges(segment)
        bytes_taken = [(s, start + i) for s, start, length in taken for i in range(length)]
        assert len(set(bytes_taken)) == len(bytes_taken)
        assert all(place < SIZES[segment - 1] for segment, place in bytes_taken)
        for segment, size in enumerate(SIZES, 1):
            used = sum(length for s, _, length in taken if s == segment)
            assert arena.free_in(segment) == size - used
    for block in taken:
        arena.give(*block)
    assert [arena.take(size) for size in SIZES] == [(1, 0), (2, 0), (3, 0)]
