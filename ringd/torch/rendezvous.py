"""``init_method="ringd://"``: ranks find each other in the ring, without an address or a port.

The programs of a group of the ring are the ranks. They count as the ring does, unless all of them
say their numbers: as ``rank=`` and ``world_size=``, or as RANK and WORLD_SIZE of a launcher.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ringd.torch.failures import in_torch_terms
from ringd.torch.meeting import Meeting, meet_in_ring
from ringd.torch.process_group import close_destroyed
from ringd.torch.seats import Claim
from ringd.torch.store import NO_STORE

GROUP = "torch"
"""The group of the ring that is joined where none is named."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a program asks for."""

    group: str
    members: Sequence[str] | None
    """The machines that take part; None for all of the ring's."""
    claim: Claim
    local_rank: int
    local_size: int

    @classmethod
    def of(cls, url: str, environ: Mapping[str, str]) -> Request:
        """Return what *url* and the environment of a launcher say.

        Raises:
            ValueError: something in there is not what it should be; says what.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        unknown = set(query) - {"members", "rank", "world_size"}
        if unknown or parts.path.strip("/"):
            raise ValueError(
                f"{url} is no ringd://GROUP?members=NAME,NAME of which both may be left out"
            )

        def number(variable: str, key: str = "") -> int | None:
            what, text = variable, environ.get(variable)
            if key in query:
                what, text = key, query[key][0]
            try:
                return None if text is None else int(text)
            except ValueError:
                raise ValueError(f"{what} is a number, not {text!r}") from None

        members = query["members"][0].split(",") if "members" in query else None
        return cls(
            parts.netloc or GROUP,
            members,
            Claim(number("RANK", "rank"), number("WORLD_SIZE", "world_size")),
            number("LOCAL_RANK") or 0,
            number("LOCAL_WORLD_SIZE") or 1,
        )


_met: list[Meeting] = []
"""The ranks that :func:`rendezvous` has met, until their process group is made."""


def rendezvous(url: str, timeout: timedelta, **_options: Any) -> Iterator[tuple[Any, int, int]]:
    """Wait for all ranks; yield a store, this one's rank, and how many they are.

    Raises:
        ValueError: *url* is none, or the ranks disagree about their numbers; says who does.
        RingError: as :func:`ringd.connect`, and its calls.
    """
    close_destroyed()
    while _met:  # of a process group that could not be made
        _met.pop().close()
    meeting = _meet(Request.of(url, os.environ), timeout)
    _met.append(meeting)
    yield NO_STORE, meeting.seats.rank, meeting.seats.size


@in_torch_terms
def _meet(request: Request, timeout: timedelta) -> Meeting:
    return meet_in_ring(
        request.group,
        request.claim,
        timeout.total_seconds(),
        members=request.members,
        local_rank=request.local_rank,
        local_size=request.local_size,
    )


def met() -> Meeting | None:
    """Return those that have met and have no process group yet; once."""
    return _met.pop() if _met else None
