"""A ring of transfers in memory, in which things happen in a random order."""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from ringd.collective import kinds
from ringd.collective.arrange import arrange
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.coalesced import written
from ringd.collective.layout import Layout
from ringd.collective.plan import MAX_PASSING, Task
from ringd.collective.reduction import Reduction
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer


def only_works(transfer):
    """Whether nothing is left to do for it but work that waits for nobody."""
    return 0 < transfer.unworked == transfer.left


class Ring:
    """All machines of a ring in memory, with what is on its way between them.

    Args:
        transfers: of the machines.
        limited: whether they keep to the credit that their right neighbours give them.
    """

    def __init__(self, transfers, *, limited=False):
        self.transfers = transfers
        self.leaving = [deque() for _ in transfers]  # being sent: number, memory, what it held
        self.wire = [deque() for _ in transfers]  # sent and on the way to the right neighbour
        self.arriving = [None for _ in transfers]  # being received: number, memory, bytes
        self.granting = [deque() for _ in transfers]  # credit on the way to the left neighbour
        self.limited = limited
        if limited:
            for transfer in transfers:
                transfer.credit = MAX_PASSING
        self.granted = [MAX_PASSING for _ in transfers]

    def moves(self):
        """Return all that can happen next."""
        moves = [(self.start, rank) for rank, t in enumerate(self.transfers) if self._pull(t)]
        moves += [(self.leave, rank) for rank, queue in enumerate(self.leaving) if queue]
        moves += [(self.work, rank) for rank, t in enumerate(self.transfers) if only_works(t)]
        for rank, arriving in enumerate(self.arriving):
            if arriving is not None:
                moves.append((self.arrive, rank))
            elif self.wire[rank - 1]:
                moves.append((self.begin, rank))
        if self.limited:
            for rank, transfer in enumerate(self.transfers):
                if transfer.granted > self.granted[rank]:
                    moves.append((self.grant, rank))
                if self.granting[rank]:
                    moves.append((self.take_credit, rank))
        return moves

    @staticmethod
    def _pull(transfer):
        sends, index = transfer.plan.sends, transfer._next
        return (
            index < len(sends)
            and sends[index].after <= transfer._received
            and (transfer.credit is None or index < transfer.credit)
            and index < transfer._received + transfer._ahead
        )

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
        assert not self.limited or index < self.transfers[rank].granted
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

    def work(self, rank):
        """Do a piece of what waits for nobody."""
        more = self.transfers[rank].work()
        assert more == only_works(self.transfers[rank])

    def grant(self, rank):
        """Say how much the left neighbour may have sent."""
        self.granted[rank] = self.transfers[rank].granted
        self.granting[rank].append(self.granted[rank])

    def take_credit(self, rank):
        """Let the left neighbour hear it."""
        self.transfers[rank - 1].credit = self.granting[rank].popleft()

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


def spoiled(count, dtype):
    """Return an array in which nothing is right by chance."""
    array = np.empty(count, dtype)
    array.view(np.uint8)[:] = 0xA5
    return array


def read_only(inputs):
    """Return copies that cannot be written to."""
    copies = [x.copy() for x in inputs]
    for x in copies:
        x.flags.writeable = False
    return copies


class Sums(Ring):
    """An all-reduce by machines with one rank each.

    Args:
        operation: of a reduction.
        inputs: by rank.
        chunk_bytes: the longest chunk.
        way: makes the plans.
        pool: of scratch buffers.
    """

    def __init__(self, operation, inputs, chunk_bytes, *, way, pool=None):
        size, dtype, count = len(inputs), inputs[0].dtype, len(inputs[0])
        self.pool = pool or ScratchPool(chunk_bytes)
        self.inputs = read_only(inputs)
        reduction = Reduction(operation, dtype, size)
        widths = dtype.itemsize, reduction.accumulator.itemsize
        plans = [way(Task(count, *widths, size, rank, chunk_bytes)) for rank in range(size)]
        self.targets = [spoiled(count, dtype) for _ in plans]
        super().__init__(
            [
                Transfer(plan, reduction, Spread([source]), Spread([target]), self.pool)
                for plan, source, target in zip(plans, self.inputs, self.targets, strict=True)
            ]
        )


class Party(Ring):
    """A call of any kind, by machines that have any ranks.

    Args:
        calls: by rank.
        inputs: by rank.
        chunk_bytes: the longest chunk.
        places: by rank, the machine; by default each on its own.
        by_rank: whether sums are taken in the order of the ranks.
        pool: of scratch buffers.
        unwanted: ranks whose results nobody needs.
        limited: as above.
    """

    def __init__(
        self,
        calls,
        inputs,
        chunk_bytes=64,
        *,
        places=None,
        by_rank=False,
        pool=None,
        unwanted=(),
        limited=False,
    ):
        size, dtype = len(inputs), inputs[0].dtype
        call = calls[0]
        places = range(size) if places is None else places
        self.pool = pool or ScratchPool(chunk_bytes)
        self.inputs = read_only(inputs)
        self.targets = [
            None if rank in unwanted else spoiled(kinds.target_count(c, rank, size), dtype)
            for rank, c in enumerate(calls)
        ]
        self.reduction = Reduction(call.reduction, dtype, size) if call.reduction else None
        wide = dtype if self.reduction is None else self.reduction.accumulator
        self.layouts = [Layout.of(places, member) for member in sorted(set(places))]
        transfers = []
        for layout in self.layouts:
            arrangement = arrange(
                calls,
                layout,
                itemsize=dtype.itemsize,
                accumulator_itemsize=wide.itemsize,
                chunk_bytes=chunk_bytes,
                by_rank=by_rank,
            )
            sources = [self.inputs[rank] for rank in layout.local]
            targets = [self.targets[rank] for rank in layout.local]
            transfers.append(arrangement.begin(self.reduction, sources, targets, self.pool))
        super().__init__(transfers, limited=limited)


def roots(name, size):
    """Return the roots that a call of this kind can have."""
    return range(size) if kinds.KINDS[name].rooted else [NO_ROOT]


def call_of(name, count, size, root, *, operation="", dtype="int32"):
    """Return a call of this kind, of *count* elements for each rank where it is divided."""
    shape = (size, count) if kinds.KINDS[name].divides else (count,)
    return Call(name, operation, dtype, shape, "", root, tensors=tensors_of(name, count))


def tensors_of(name, count):
    """Return what a call of this kind says of its tensors, where there are several in a row."""
    return written([(), (count - 1,)] if count else []) if kinds.KINDS[name].coalesces else ""


def expected(name, inputs, root, reduced):
    """Return what each rank is to be given, said in numpy's words."""
    size, nothing = len(inputs), inputs[0][:0]

    def at_root(what):
        return [what if rank == root else nothing for rank in range(size)]

    return {
        "all_reduce": lambda: [reduced] * size,
        "all_reduce_coalesced": lambda: [reduced] * size,
        "reduce": lambda: at_root(reduced),
        "reduce_scatter": lambda: np.split(reduced, size),
        "broadcast": lambda: [inputs[root]] * size,
        "all_gather": lambda: [np.concatenate(inputs)] * size,
        "gather": lambda: at_root(np.concatenate(inputs)),
        "scatter": lambda: np.split(inputs[root], size),
        "all_to_all": lambda: [
            np.concatenate([np.split(x, size)[rank] for x in inputs]) for rank in range(size)
        ],
    }[name]()
