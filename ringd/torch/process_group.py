"""The process group: what torch calls, under the names by which it calls it.

Two versions of torch may have two names for one thing; then both stand here. All tensors of a call
are checked before the first of them is on its way.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from ringd.client.messages import ANY
from ringd.client.ring import Ring
from ringd.collective.coalesced import MAX_TENSORS
from ringd.torch import calls
from ringd.torch.calls import Call, Team
from ringd.torch.dynamo import hidden
from ringd.torch.failures import in_torch_terms
from ringd.torch.operations import Reduction
from ringd.torch.seats import Seats
from ringd.torch.sparse import all_reduce_sparse
from ringd.torch.work import Arrival, Futures, Part, Work

Tensors = Sequence[torch.Tensor]

_NO_TIME = timedelta(0)

_alive: weakref.WeakSet[RingProcessGroup] = weakref.WeakSet()


@hidden
class RingProcessGroup(dist.ProcessGroup):
    """The ranks of a ring as a process group of torch."""

    def __init__(self, rings: Sequence[Ring], seats: Seats, timeout: timedelta) -> None:
        """Take *rings* over, the last of which has the ranks of *seats*; the others it only closes.

        *timeout* is that of each call.
        """
        super().__init__(seats.rank, seats.size)
        self.seats = seats
        self.parts: Counter[tuple[str, tuple[int, ...]]] = Counter()
        """How many parts it has had, by the name that torch gives them and their ranks."""
        self._rings = rings
        self._team = Team(rings[-1], seats.rank, seats.size)
        self._limit = timeout.total_seconds()
        self._futures = Futures()
        self._name, self._description = "", "undefined"
        _alive.add(self)

    @property
    def ring(self) -> Ring:
        """The ring, for calls of ringd itself; its ranks are those of the process group."""
        return self._team.ring

    # --- reductions -------------------------------------------------------------------

    @in_torch_terms
    def allreduce(self, tensors: Tensors, opts: Any = None) -> Work:
        """Reduce each tensor, in place."""
        opts = opts or dist.AllreduceOptions()
        reduction = Reduction.of(opts.reduceOp)
        made = [self._all_reduce(tensor, reduction) for tensor in tensors]
        return self._begin(made, tensors, opts)

    def _all_reduce(self, tensor: torch.Tensor, reduction: Reduction) -> Call:
        if tensor.layout == torch.sparse_coo:
            return all_reduce_sparse(self._team, tensor, reduction)
        return calls.all_reduce(self._team, tensor, reduction)

    @in_torch_terms
    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Work:
        """Reduce each tensor, in place; all that are not sparse travel as one row."""
        opts = opts or dist.AllreduceCoalescedOptions()
        reduction = Reduction.of(opts.reduceOp)
        sparse = [tensor for tensor in tensors if tensor.layout == torch.sparse_coo]
        dense = [tensor for tensor in tensors if tensor.layout != torch.sparse_coo]
        made = [
            calls.all_reduce_coalesced(self._team, dense[start : start + MAX_TENSORS], reduction)
            for start in range(0, len(dense), MAX_TENSORS)
        ]
        made += [all_reduce_sparse(self._team, tensor, reduction) for tensor in sparse]
        return self._begin(made, tensors, opts)

    @in_torch_terms
    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        """Reduce each tensor, in place on the root; elsewhere it stays as it is."""
        root, reduction = opts.rootRank, Reduction.of(opts.reduceOp)
        made = [calls.reduce(self._team, tensor, root, reduction) for tensor in tensors]
        return self._begin(made, tensors, opts)

    @in_torch_terms
    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Work:
        """Reduce lists of tensors, of which each rank is given one."""
        opts = opts or dist.ReduceScatterOptions()
        reduction = Reduction.of(opts.reduceOp)
        made = [
            calls.reduce_scatter(self._team, output, given, reduction)
            for output, given in zip(outputs, inputs, strict=True)
        ]
        return self._begin(made, outputs, opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Work:
        """Reduce tensors, of each of which each rank is given a part."""
        return self.reduce_scatter(outputs, [[given] for given in inputs], opts)

    def reduce_scatter_single(
        self, output: torch.Tensor, given: torch.Tensor, opts: Any = None
    ) -> Work:
        """Reduce a tensor, of which each rank is given a part."""
        return self.reduce_scatter([output], [[given]], opts)

    # --- what is only moved -----------------------------------------------------------

    @in_torch_terms
    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        """Give each tensor the root's values."""
        made = [calls.broadcast(self._team, tensor, opts.rootRank) for tensor in tensors]
        return self._begin(made, tensors, opts)

    @in_torch_terms
    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        """Give all ranks lists of their tensors, whose lengths may differ."""
        made = [
            calls.all_gather(self._team, into, given)
            for into, given in zip(outputs, inputs, strict=True)
        ]
        return self._begin(made, [output for into in outputs for output in into], opts)

    @in_torch_terms
    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> Work:
        """As :meth:`allgather`; *outputs* has a list for each rank, not for each input."""
        return self.allgather(list(zip(*outputs, strict=True)), inputs, opts)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Work:
        """Give all ranks tensors that are made of all of theirs."""
        return self.allgather([[output] for output in outputs], inputs, opts)

    def all_gather_single(
        self, output: torch.Tensor, given: torch.Tensor, opts: Any = None
    ) -> Work:
        """Give all ranks a tensor that is made of all of theirs."""
        return self.allgather([[output]], [given], opts)

    @in_torch_terms
    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Work:
        """Give the root a list of all ranks' tensors."""
        (given,), into = inputs, outputs[0] if outputs else ()
        return self._begin([calls.gather(self._team, into, given, opts.rootRank)], into, opts)

    @in_torch_terms
    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Work:
        """Give each rank a tensor of the root's list."""
        (output,), given = outputs, inputs[0] if inputs else ()
        return self._begin([calls.scatter(self._team, output, given, opts.rootRank)], outputs, opts)

    @in_torch_terms
    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        """Send each rank a tensor, and receive one of each; their lengths may differ."""
        received = [output.numel() for output in outputs]
        sent = [given.numel() for given in inputs]
        made = calls.all_to_all(self._team, outputs, inputs, received, sent)
        return self._begin([made], outputs, opts)

    @in_torch_terms
    def all_to_all_single(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        opts: Any = None,
    ) -> Work:
        """Send each rank some rows of a tensor; evenly divided where no numbers are given."""
        received = sent = None
        if output_splits or input_splits:
            received = self._elements(output, output_splits)
            sent = self._elements(given, input_splits)
        made = calls.all_to_all(self._team, [output], [given], received, sent)
        return self._begin([made], [output], opts)

    def _elements(self, tensor: torch.Tensor, splits: Sequence[int]) -> list[int]:
        """Return how many elements of *tensor* so many of its rows have."""
        size = self._team.size
        if not splits and len(tensor) % size:
            raise ValueError(f"{len(tensor)} rows cannot be divided evenly among {size} ranks")
        row = math.prod(tensor.shape[1:])
        return [rows * row for rows in splits or [len(tensor) // size] * size]

    # --- messages ---------------------------------------------------------------------

    @in_torch_terms
    def send(self, tensors: Tensors, to: int, tag: int) -> Work:
        """Send each tensor to a rank; the handle says when it has received them."""
        return self._begin([calls.send(self._team, tensor, to, tag) for tensor in tensors], tensors)

    @in_torch_terms
    def recv(self, tensors: Tensors, source: int, tag: int) -> Work:
        """Receive each tensor from a rank."""
        made = [calls.recv(self._team, tensor, source, tag) for tensor in tensors]
        return self._begin(made, tensors)

    def recv_anysource(self, tensors: Tensors, tag: int) -> Work:
        """Receive a tensor from whatever rank sends one; asked for when it is waited for."""
        (tensor,) = tensors
        begin, land = calls.recv(self._team, tensor, ANY, tag)
        return Arrival(lambda: Part(begin(self._seconds()), land), tensor, self._futures)

    # --- all else ---------------------------------------------------------------------

    @in_torch_terms
    def barrier(self, opts: Any = None) -> Work:
        """Wait for all ranks."""
        return self._begin([calls.barrier(self._team)], [], opts)

    def shutdown(self) -> None:
        """Leave; calls that are open here end with an error."""
        for ring in reversed(self._rings):
            ring.close()

    abort = shutdown

    def set_timeout(self, timeout: timedelta) -> None:
        """Have calls that are made from now on end after *timeout*."""
        self._limit = timeout.total_seconds()

    supports_splitting = False
    """What torch asks a backend where a process group is bound to a device."""

    def _get_backend(self, _device: torch.device) -> RingProcessGroup:
        """Return the backend of a device: this serves all of them."""
        return self

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return ``"ringd"``."""
        return "ringd"

    def setGroupName(self, name: str) -> None:  # noqa: N802 - torch's name
        """Take the name that torch has for this group."""
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802 - torch's name
        """Return the name that torch has for this group."""
        return self._name

    def setGroupDesc(self, description: str) -> None:  # noqa: N802 - torch's name
        """Take the description that its user gave."""
        self._description = description

    def getGroupDesc(self) -> str:  # noqa: N802 - torch's name
        """Return the description that its user gave."""
        return self._description

    # Before torch 2.13.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def _begin(self, made: Sequence[Call], tensors: Tensors, opts: Any = None) -> Work:
        seconds = self._seconds(opts)
        parts = [Part(call.begin(seconds), call.land) for call in made]
        return Work(parts, tensors, self._futures)

    def _seconds(self, opts: Any = None) -> float:
        """Return the timeout of a call with *opts*, where a negative one is the group's."""
        if opts is not None and opts.timeout > _NO_TIME:
            return float(opts.timeout.total_seconds())
        return self._limit


def close_destroyed() -> None:
    """Shut those down that torch has destroyed: up to 2.6 it does not say so."""
    known = dist.distributed_c10d._world.pg_map  # noqa: SLF001 - there is no public way
    for group in list(_alive):
        if group not in known:
            group.shutdown()
