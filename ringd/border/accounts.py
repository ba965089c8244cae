"""What programs have of the daemon: each one, all of a user, and all together.

There is a total of each resource. A user may have three quarters of what the other users leave, so
that nobody keeps the others out, and who is alone has most of it. Where that says something, there
is also a limit for each program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields

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

    Args:
        limit: Or what says it, where it changes.
    """

    def __init__(self, limit: Limit | Callable[[], Limit]) -> None:
        self._limit = limit
        self._plenty = -1
        """Up to so much in use nobody is refused: whoever has the rest of half of the total, three
        quarters are more. -1 where each program has a limit, or the total changes."""
        if isinstance(limit, Limit) and limit.each is None:
            self._plenty = limit.total // 2
        self._used = 0
        """What is taken counts here at once, what is given back when the changes are looked at: it
        is never less than what is in use."""
        self._by_user: dict[int, int] = {}
        self._changes: deque[tuple[Share, int]] = deque()
        """Taken, and (below 0) given back, since this was looked at; all else here is for the
        loop's thread alone."""

    @property
    def limit(self) -> Limit:
        """How much there is."""
        return self._limit() if callable(self._limit) else self._limit

    def used(self, uid: int | None = None) -> int:
        """Return how much all programs, or those of a user, have."""
        self._settle()
        return self._used if uid is None else self._by_user.get(uid, 0)

    def by_user(self) -> dict[int, int]:
        """Return how much the programs of each user have, of those that have some."""
        self._settle()
        return dict(self._by_user)

    def _settle(self) -> None:
        changes, by_user = self._changes, self._by_user
        while changes:
            share, amount = changes.popleft()
            share._used += amount  # noqa: SLF001 - the two halves of one thing
            self._used += min(amount, 0)
            if of_user := by_user.get(share.uid, 0) + amount:
                by_user[share.uid] = of_user
            else:
                by_user.pop(share.uid, None)


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
        if len(resource._changes) > _MOST_CHANGES:  # noqa: SLF001 - as above
            resource._settle()  # noqa: SLF001 - as above
        if resource._used + amount <= resource._plenty:  # noqa: SLF001 - as nearly always
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
        resource = self._resource
        resource._used += amount  # noqa: SLF001 - as above
        resource._changes.append((self, amount))  # noqa: SLF001 - as above
        if len(resource._changes) > _MOST_CHANGES:  # noqa: SLF001 - as above
            resource._settle()  # noqa: SLF001 - as above

    def give(self, amount: int = 1) -> None:
        """Give *amount* back; from any thread, also while memory is being freed."""
        if amount:
            self._resource._changes.append((self, -amount))  # noqa: SLF001 - as above


class Held:
    """Counts in a share for as long as it lives.

    Made for every call, so without a call of its own. Whoever makes one has asked whether there is
    room, which keeps the changes few.
    """

    __slots__ = ("_amount", "_resource", "_share")

    def __init__(self, share: Share, amount: int) -> None:
        self._share = share
        self._resource = resource = share._resource  # noqa: SLF001 - as above
        self._amount = amount
        if amount:
            resource._used += amount  # noqa: SLF001 - as above
            resource._changes.append((share, amount))  # noqa: SLF001 - as above

    def grow(self, amount: int) -> None:
        """Count *amount* more, also beyond a limit."""
        if amount:
            self._amount += amount
            self._resource._used += amount  # noqa: SLF001 - as above
            self._resource._changes.append((self._share, amount))  # noqa: SLF001 - as above

    def __del__(self) -> None:
        if self._amount:
            self._resource._changes.append((self._share, -self._amount))  # noqa: SLF001 - as above


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
