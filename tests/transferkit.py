"""A ring of transfers in memory, in which things happen in a random order."""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from ringd.collective.plan import Task
from ringd.collective.reduction import Reduction
from ringd.collective.transfer import ScratchPool, Transfer


class Ring:
    """All members of a ring in memory, with what is on its way between them.

    Args:
        operation: of a reduction; None where nothing is reduced.
        inputs: by rank.
        chunk_bytes: the longest chunk.
        way: makes the plans.
        count: elements that the plans are made for; by default those of rank 0's input.
        pool: of scratch buffers.
        task: returns a rank's task, given the fields of ring and dtype.
        **fields: further fields of the plans' task.
    """

    def __init__(
        self, operation, inputs, chunk_bytes, *, way, count=None, pool=None, task=None, **fields
    ):
        size, dtype = len(inputs), inputs[0].dtype
        self.pool = pool or ScratchPool(chunk_bytes)
        self.inputs = [x.copy() for x in inputs]
        for x in self.inputs:
            x.flags.writeable = False
        reduction = None if operation is None else Reduction(operation, dtype, size)
        accumulator = dtype if reduction is None else reduction.accumulator
        count = len(inputs[0]) if count is None else count
        fields |= {
            "itemsize": dtype.itemsize,
            "accumulator_itemsize": accumulator.itemsize,
            "chunk_bytes": chunk_bytes,
        }
        if task is None:
            fields |= {"count": count, "size": size}
            plans = [way(Task(rank=rank, **fields)) for rank in range(size)]
        else:
            fields["by_rank"] = False
            plans = [way(task(rank, **fields)) for rank in range(size)]
        self.targets = [np.empty(plan.target_count, dtype) for plan in plans]
        for target in self.targets:
            target.view(np.uint8)[:] = 0xA5
        self.transfers = [
            Transfer(plan, reduction, source, target, self.pool)
            for plan, source, target in zip(plans, self.inputs, self.targets, strict=True)
        ]
        self.leaving = [deque() for _ in inputs]  # being sent: number, memory, what it held
        self.wire = [deque() for _ in inputs]  # sent and on the way to the right neighbour
        self.arriving = [None for _ in inputs]  # being received: number, memory, bytes

    def moves(self):
        """Return all that can happen next."""
        moves = [(self.start, rank) for rank, t in enumerate(self.transfers) if self._pull(t)]
        moves += [(self.leave, rank) for rank, queue in enumerate(self.leaving) if queue]
        for rank, arriving in enumerate(self.arriving):
            if arriving is not None:
                moves.append((self.arrive, rank))
            elif self.wire[rank - 1]:
                moves.append((self.begin, rank))
        return moves

    @staticmethod
    def _pull(transfer):
        sends, index = transfer.plan.sends, transfer._next
        return index < len(sends) and sends[index].after <= transfer._received

    def start(self, rank):
        """Take a chunk to send."""
        index, memory = self.transfers[rank].next_send()
        self.leaving[rank].append((index, memory, bytes(memory)))

    def leave(self, rank):
        """Let the oldest chunk's last byte go; until then its memory must not have changed."""
        index, memory, before = self.leaving[rank].popleft()
        assert bytes(memory) == before
        self.wire[rank].append((index, before))
        self.transfers[rank].sent(index)

    def begin(self, rank):
        """Start to receive a chunk: the first half of its bytes."""
        index, data = self.wire[rank - 1].popleft()
        memory = self.transfers[rank].receive_buffer(index, len(data))
        assert len(memory) == len(data)
        memory[: len(data) // 2] = data[: len(data) // 2]
        self.arriving[rank] = index, memory, data

    def arrive(self, rank):
        """Receive the other half."""
        index, memory, data = self.arriving[rank]
        memory[len(data) // 2 :] = data[len(data) // 2 :]
        self.arriving[rank] = None
        self.transfers[rank].received(index)

    def march(self):
        """Let all that can happen happen by turns, as where all links are equally fast."""
        while moves := self.moves():
            for act, rank in moves:
                act(rank)
        return self

    def run(self, seed):
        """Let things happen in random order until nothing is left to happen."""
        rng = random.Random(seed)
        while moves := self.moves():
            act, rank = rng.choice(moves)
            act(rank)
        return self
