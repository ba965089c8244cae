"""The pool's books where an interrupt ends a step anywhere: whoever comes next mends them."""

import gc
import random

import numpy as np
import pytest
from test_client_interrupts import FAR, interrupted

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
        """Take a block."""
        size = self.random.choice(SIZES)
        block = self.pool.take(size)
        self.mark = self.mark % 250 + 1
        block.segment.passed_to = "channel"
        block.bytes(size)[:] = self.mark
        self.blocks.append((block, size, self.mark))
        self.pool.note(self.random.choice((0, 2 * size)))

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
        surplus, _ = self.pool.trim()
        surplus.give_back()
        self.pool.forget()

    def step(self):
        """Do any of that."""
        self.random.choice((self.take, self.take, self.lend, self.drop, self.retire, self.trim))()

    def check(self):
        """Make sure that the books are what is so, and that nobody wrote to another's memory."""
        gc.collect()
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
        gc.collect()
        self.clock.now += 100.0
        self.trim()
        self.trim()
        pool = self.pool
        assert (pool.used, pool.lent, pool._starts, pool._taken, pool._lengths) == (
            0,
            0,
            [],
            {},
            {},
        )
        assert pool.kept <= MIB
        assert pool.take(3 * MIB) is not None


@pytest.mark.parametrize("seed", range(8))
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


@pytest.mark.parametrize("seed", range(8))
def test_interrupts_anywhere_leave_the_books_true(seed):
    """No memory is given twice, none is lost, wherever steps are interrupted, once or twice."""
    program, chance = Program(seed), random.Random(seed)
    for _ in range(150):
        interrupted(program.step, chance.randrange(1, 120), chance.randrange(1, 30))
        program.check()
    program.end()


@pytest.mark.parametrize("kind", ["take", "lend", "drop", "retire"])
def test_each_place_of_each_step(kind):
    """The same, at every place of a step in turn."""
    for event in range(1, FAR):
        program = Program(event)
        for _ in range(3):
            program.take()
        program.lend()
        hit = interrupted(lambda program=program: (getattr(program, kind)(), program.take()), event)
        program.check()
        program.end()
        if not hit:
            break
    assert event > 20


def test_block_of_an_interrupted_step_that_dies_late_frees_nothing():
    """A traceback may keep it: by then its place is another's."""
    pool = Pool(64 * MIB)
    for event in range(1, FAR):
        kept = []
        pool.take(MIB)

        def take(kept=kept):
            try:
                pool.take(MIB)
            except KeyboardInterrupt as error:
                kept.append(error)
                raise

        hit = interrupted(take, event)
        blocks = [pool.take(MIB) for _ in range(2)]
        for mark, block in enumerate(blocks):
            block.bytes(MIB)[:] = mark
        kept.clear()
        gc.collect()
        more = [pool.take(MIB) for _ in range(3)]
        places = {(block.segment.number, block.offset) for block in (*blocks, *more)}
        assert len(places) == 5
        assert [np.unique(block.bytes(MIB)).tolist() for block in blocks] == [[0], [1]]
        del more, block
        if not hit:
            break
    assert event > 5
