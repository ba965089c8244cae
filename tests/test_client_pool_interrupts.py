"""The pool's books where an interrupt ends a step anywhere: whoever comes next mends them."""

import gc
import random
from functools import partial

import numpy as np
import pytest
from alarms import LEAST_HITS, instants, interrupt_twice, interrupted, no_alarm_left  # noqa: F401

from ringd.client.pool import Pool, _block_size

MIB = 1 << 20
SIZES = (70_000, 300_000, MIB, 3 * MIB)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        """Return it."""
        return self.now


class Program:
    """Takes, lends and drops blocks, each with a pattern of its own in it."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.clock = Clock()
        self.pool = Pool(64 * MIB, self.clock)
        self.blocks = []
        self.arrays = []
        self.mark = 0

    def take(self):
        """Take a block, as the connection does."""
        size = self.random.choice(SIZES)
        while (block := self.pool.take(size)) is None:
            assert self.pool.surplus
            self.pool.surplus.give_back()
        self.mark = self.mark % 250 + 1
        block.segment.passed_to = "channel"
        block.bytes(size)[:] = self.mark
        self.blocks.append((block, size, self.mark))
        self.pool.retention.note(self.random.choice((0, 2 * size)), self.pool.now())

    def lend(self):
        """Lend one that is not lent yet; twice, as after an interrupt."""
        if self.blocks:
            block, size, mark = self.blocks.pop()
            kind = self.random.random() < 0.5
            array = self.pool.lend(block, size, as_input=kind)
            if not kind:
                array = self.pool.lend(block, size)
            self.arrays.append((array, mark))

    def drop(self):
        """Forget something."""
        for things in (self.blocks, self.arrays):
            if things:
                del things[self.random.randrange(len(things))]

    def retire(self):
        """Leave a block to the daemon."""
        if self.blocks:
            self.pool.retire(self.blocks[-1][0])

    def trim(self):
        """Be idle for a while."""
        self.clock.now += self.random.choice((1.0, 6.0, 70.0))
        self.pool.trim()
        self.pool.surplus.give_back()
        self.pool.note_dropped_segments()

    def step(self):
        """Do any of that."""
        self.random.choice((self.take, self.take, self.lend, self.drop, self.retire, self.trim))()

    def check(self):
        """Make sure that the books are what is so, and that nobody wrote to another's memory."""
        gc.collect(1)
        pool = self.pool
        pool._collect()
        live = [block for block, _, _ in self.blocks]
        assert pool.used >= sum(block.size for block in live)
        for block, size, mark in self.blocks:
            assert block.bytes(size).min() == block.bytes(size).max() == mark
        for array, mark in self.arrays:
            assert array.min() == array.max() == mark
        assert pool.lent == sum(array.size for array, _ in self.arrays)
        arena, pool._sound = pool._arena, False
        pool._mend()
        for number in pool._segments:
            assert arena.ranges(number) == pool._arena.ranges(number)

    def end(self):
        """Forget all; then nothing is in use, and all of it can go."""
        self.blocks.clear()
        self.arrays.clear()
        gc.collect(1)
        self.clock.now += 100.0
        self.trim()
        self.trim()
        pool = self.pool
        assert (pool.used, pool.lent, pool._starts, pool._taken) == (0, 0, [], {})
        assert pool.kept <= MIB
        assert pool.take(3 * MIB) is not None


@pytest.mark.parametrize("seed", range(4))
def test_books_are_true_without_interrupts(seed):
    """What holds below holds here, to the byte."""
    program = Program(seed)
    for _ in range(100):
        program.step()
        program.check()
        used = sum(block.size for block, _, _ in program.blocks)
        used += sum(_block_size(array.size) for array, _ in program.arrays)
        assert program.pool.used == used
    program.end()


def test_interrupts_anywhere_leave_the_books_true():
    """No memory is given twice, none is lost, whenever steps are interrupted, once or twice."""
    hits = 0
    for seed in range(4):
        program, chance = Program(seed), random.Random(seed)
        for delay in instants(150, 1e-4):
            twice = partial(interrupt_twice, chance.uniform(1e-6, 3e-5))
            hits += interrupted(program.step, delay, twice)
            program.check()
        program.end()
    assert hits >= LEAST_HITS


@pytest.mark.parametrize("kind", ["take", "lend", "drop", "retire"])
def test_each_instant_of_each_step(kind):
    """The same, at one instant of a step after the other."""
    hits = 0
    for seed, delay in enumerate(instants(100, 2e-4)):
        program = Program(seed)
        for _ in range(3):
            program.take()
        program.lend()
        step = getattr(program, kind)
        hits += interrupted(lambda step=step, program=program: (step(), program.take()), delay)
        program.check()
        program.end()
    assert hits >= LEAST_HITS


def test_block_of_an_interrupted_step_that_dies_late_frees_nothing():
    """A traceback may keep it: by then its place is another's."""
    pool = Pool(64 * MIB)
    hits = 0
    for delay in instants(150, 1e-4):
        kept = []
        pool.take(MIB)

        def take(kept=kept):
            try:
                pool.take(MIB)
            except KeyboardInterrupt as error:
                kept.append(error)
                raise

        hits += interrupted(take, delay)
        blocks = [pool.take(MIB) for _ in range(2)]
        for mark, block in enumerate(blocks):
            block.bytes(MIB)[:] = mark
        kept.clear()
        gc.collect(1)
        more = [pool.take(MIB) for _ in range(3)]
        places = {(block.segment.number, block.offset) for block in (*blocks, *more)}
        assert len(places) == 5
        assert [np.unique(block.bytes(MIB)).tolist() for block in blocks] == [[0], [1]]
        del more, block
    assert hits >= LEAST_HITS
