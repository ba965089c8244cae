"""What programs have of the daemon: each one, all of a user, and all together.

There is a total of each resource. A user may have three quarters of what the other users leave, so
that nobody keeps the others out, and who is alone has most of it. Where that says something, there
is also a limit for each program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields

from ringd import errors

USER_PART = 0.75
"""Of what other users leave, that one may have."""

_MOST_CHANGES = 64  # that wait to be looked at; one more of the loop's thread, and they are


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

    Its fields are for the classes below, which count in it for every call.

    Args:
        limit: Or what says it, where it changes.
    """

    def __init__(self, limit: Limit | Callable[[], Limit]) -> None:
        self._limit = limit
        self.plenty = -1
        """Up to so much in use nobody is refused: whoever has the rest of half of the total, three
        quarters are more. -1 where each program has a limit, or the total changes."""
        if isinstance(limit, Limit) and limit.each is None:
            self.plenty = limit.total // 2
        self.in_use = 0
        """What is taken counts here at once, what is given back when the changes are looked at: it
        is never less than what is in use."""
        self._by_user: dict[int, int] = {}
        self.changes: deque[tuple[Share, int]] = deque()
        """Taken, and (below 0) given back, since this was looked at; all else here is for the
        loop's thread alone."""

    @property
    def limit(self) -> Limit:
        """How much there is."""
        return self._limit() if callable(self._limit) else self._limit

    def used(self, uid: int | None = None) -> int:
        """Return how much all programs, or those of a user, have."""
        self.settle()
        return self.in_use if uid is None else self._by_user.get(uid, 0)

    def by_user(self) -> dict[int, int]:
        """Return how much the programs of each user have, of those that have some."""
        self.settle()
        return dict(self._by_user)

    def settle(self) -> None:
        """Look at the changes."""
        changes, by_user = self.changes, self._by_user
        while changes:
            share, amount = changes.popleft()
            share.counted += amount
            self.in_use += min(amount, 0)
            if of_user := by_user.get(share.uid, 0) + amount:
                by_user[share.uid] = of_user
            else:
                by_user.pop(share.uid, None)


class Share:
    """What one program has of a resource, at first nothing."""

    __slots__ = ("counted", "resource", "uid")

    def __init__(self, resource: Resource, uid: int) -> None:
        self.resource = resource
        self.counted = 0
        """What it has, but for the changes that have yet to be looked at."""
        self.uid = uid

    @property
    def used(self) -> int:
        """How much it has."""
        self.resource.settle()
        return self.counted

    def refusal(self, amount: int = 1) -> str:
        """Return why *amount* more is not to be had, with the setting; empty if it is."""
        if not amount:
            return ""
        resource = self.resource
        if len(resource.changes) > _MOST_CHANGES:
            resource.settle()
        if resource.in_use + amount <= resource.plenty:  # as nearly always
            return ""
        limit, own = resource.limit, self.used
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
        resource = self.resource
        resource.in_use += amount
        resource.changes.append((self, amount))
        if len(resource.changes) > _MOST_CHANGES:
            resource.settle()

    def give(self, amount: int = 1) -> None:
        """Give *amount* back; from any thread, also while memory is being freed."""
        if amount:
            self.resource.changes.append((self, -amount))


class Held:
    """Counts in a share for as long as it lives.

    One is made for every call of a program, so it asks nobody where there is plenty.

    Raises:
        ResourceExhausted: that much is not to be had; says why, with the setting.
    """

    __slots__ = ("_amount", "_resource", "_share")

    def __init__(self, share: Share, amount: int) -> None:
        self._share = share
        self._resource = resource = share.resource
        self._amount = 0
        if amount:
            plenty = resource.in_use + amount <= resource.plenty
            few = len(resource.changes) <= _MOST_CHANGES
            if not (plenty and few) and (refusal := share.refusal(amount)):
                raise errors.ResourceExhausted(refusal)
            self._amount = amount
            resource.in_use += amount
            resource.changes.append((share, amount))

    def grow(self, amount: int) -> None:
        """Count *amount* more, also beyond a limit."""
        if amount:
            self._amount += amount
            self._resource.in_use += amount
            self._resource.changes.append((self._share, amount))

    def __del__(self) -> None:
        if self._amount:
            self._resource.changes.append((self._share, -self._amount))


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
