"""How torch is given a process group: the default one, or a part of it."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist

from ringd.torch.failures import in_torch_terms
from ringd.torch.meeting import Meeting, meet_as_part, meet_in_store
from ringd.torch.process_group import RingProcessGroup, close_destroyed
from ringd.torch.rendezvous import met


@in_torch_terms
def create(options: Any) -> RingProcessGroup:
    """Return the process group of torch's *options*; torch calls this on its ranks alone."""
    meeting = met()
    if meeting is None:
        close_destroyed()
        meeting = _meet(options)
    return RingProcessGroup(meeting.rings, meeting.seats, options.timeout)


def _meet(options: Any) -> Meeting:
    world, ranks = dist.group.WORLD, list(options.global_ranks_in_group)
    timeout = options.timeout.total_seconds()
    if ranks and isinstance(world, RingProcessGroup):
        which = options.group_id, tuple(ranks)
        world.parts[which] += 1
        return meet_as_part(world.seats.part(options.group_id, ranks, world.parts[which]), timeout)
    return meet_in_store(options.store, options.group_rank, options.group_size, timeout)
