"""What programs have of the daemon: each one, all of a user, and all together.

There is a total of each resource. A user may have three quarters of what the other users leave, so
that nobody keeps the others out, and who is alone has most of it. Where that says something, there
is also a limit for each program.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields

USER_PART = 0.75
"""Of what other users leave, that one may have."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much there is of a resource."""

    what: str
    """Its name, such as "bytes of shared memory"."""
    total: int
    setting: str
    """What sets the total; or, where nothing does, why there is no more."""
    each: int | None = None
    """What one program may have; None: as much as its user."""
    each_setting: str = ""


class Resource:
    """Counts who has how much.

    Args:
        limit: Or what says it, where it changes.
    """

    def __init__(self, limit: Limit | Callable[[], Limit]) -> None:
        self._limit = limit
        self._used = 0
        self._by_user: Counter[int] = Counter()
        self._given: deque[tuple[Share, int]] = deque()
        """Given back since this was looked at; all else here is for the loop's thread alone."""

    @property
    def limit(self) -> Limit:
        """How much there is."""
        return self._limit() if callable(self._limit) else self._limit

    def used(self, uid: int | None = None) -> int:
        """Return how much all programs, or those of a user, have."""
        self._settle()
        return self._used if uid is None else self._by_user[uid]

    def by_user(self) -> dict[int, int]:
        """Return how much the programs of each user have, of those that have some."""
        self._settle()
        return dict(self._by_user)

    def _settle(self) -> None:
        given = self._given
        while given:
            share, amount = given.popleft()
            self._move(share, -amount)

    def _move(self, share: Share, amount: int) -> None:
        share._used += amount  # noqa: SLF001 - the two halves of one thing
        self._used += amount
        self._by_user[share.uid] += amount
        if not self._by_user[share.uid]:
            del self._by_user[share.uid]


class Share:
    """What one program has of a resource, at first nothing."""

    __slots__ = ("_resource", "_used", "uid")

    def __init__(self, resource: Resource, uid: int) -> None:
        self._resource = resource
        self._used = 0
        self.uid = uid

    @property
    def used(self) -> int:
        """How much it has."""
        self._resource._settle()  # noqa: SLF001 - as above
        return self._used

    def refusal(self, amount: int = 1) -> str:
        """Return why *amount* more is not to be had, with the setting; empty if it is."""
        if not amount:
            return ""
        resource = self._resource
        limit = resource.limit
        if limit.each is None and resource._used + amount <= limit.total // 2:  # noqa: SLF001
            return ""  # as nearly always: whoever has the rest of that, three quarters are more
        own = self.used
        if limit.each is not None and own + amount > limit.each:
            return (
                f"this program has {own} {limit.what}, and may have {limit.each} "
                f"({limit.each_setting}), not {amount} more"
            )
        by_user, everybody = resource.used(self.uid), resource.used()
        allowed = int(USER_PART * (limit.total - everybody + by_user))
        if by_user + amount <= allowed:
            return ""
        return (
            f"programs of user {self.uid} have {by_user} {limit.what}, and may have {allowed}, not "
            f"{amount} more: three quarters of what other users leave of {limit.total} "
            f"({limit.setting})"
        )

    def take(self, amount: int = 1) -> None:
        """Have *amount* more, also beyond a limit."""
        self._resource._settle()  # noqa: SLF001 - as above; here, so that little waits for it
        self._resource._move(self, amount)  # noqa: SLF001 - as above

    def give(self, amount: int = 1) -> None:
        """Give *amount* back; from any thread, also while memory is being freed."""
        if amount:
            self._resource._given.append((self, amount))  # noqa: SLF001 - as above


class Held:
    """Counts in a share for as long as it lives."""

    __slots__ = ("_amount", "_share")

    def __init__(self, share: Share, amount: int) -> None:
        self._share = share
        self._amount = amount
        share.take(amount)

    def grow(self, amount: int) -> None:
        """Count *amount* more, also beyond a limit."""
        self._amount += amount
        self._share.take(amount)

    def __del__(self) -> None:
        self._share.give(self._amount)


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """What one program has."""

    connections: Share
    files: Share
    memory: Share
    messages: Share
    groups: Share
    channels: Share
    questions: Share

    @property
    def uid(self) -> int:
        """Of the user whose program it is."""
        return self.connections.uid

    def enter(self, files: int) -> None:
        """It connects, which takes so many files."""
        self.connections.take()
        self.files.take(files)

    def leave(self, files: int) -> None:
        """Give back what does not come back by itself, as memory does with the last look at it."""
        self.connections.give()
        self.files.give(files)
        for share in (self.groups, self.channels, self.questions):
            share.give(share.used)


@dataclass(frozen=True, slots=True)
class Accounts:
    """All resources, under the names that an :class:`Account` has for its shares."""

    connections: Resource
    files: Resource
    memory: Resource
    messages: Resource
    groups: Resource
    channels: Resource
    questions: Resource

    def resources(self) -> dict[str, Resource]:
        """Return all by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def open(self, uid: int) -> Account:
        """Return the account of a program of that user."""
        return Account(*(Share(resource, uid) for resource in self.resources().values()))


def unlimited() -> Share:
    """Return a share of a resource of which there is no end."""
    return Share(Resource(Limit("", 1 << 62, "")), 0)
