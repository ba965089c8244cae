"""How long it took until programs knew that another one had died, and the machine's share of it."""

from __future__ import annotations

from dataclasses import dataclass, field

LIMIT = 0.5
"""Seconds in which a program that waits must have been told, where nothing else happens."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One program was told.

    Attributes:
        seconds: from the death, or from when it began to wait if that was later.
        noise: by how many seconds a mere wake-up in that program was late in that time.
        buried: the seconds until the kernel had closed the dead program's files, as seen by
            the run, itself a busy process; NaN where that says nothing.
        waited: whether it waited already when the other died.
        calm: whether that death was all that the adversary did.
        story: for the evidence.
    """

    seconds: float
    noise: float
    buried: float
    waited: bool
    calm: bool
    story: str

    @property
    def late(self) -> bool:
        """Whether it breaks the promise."""
        return self.calm and self.seconds > LIMIT

    def __str__(self) -> str:
        """Return a line of evidence."""
        return (
            f"{self.seconds:.3f} s, of that the latest mere wake-up {self.noise:.3f} s, "
            f"the dead one's files closed after {self.buried:.3f} s, "
            f"{'calm' if self.calm else 'amid other faults'}: {self.story}"
        )


@dataclass
class Notices:
    """All of one kind."""

    all: list[Notice] = field(default_factory=list)

    def those(self, *, calm: bool, waited: bool | None = None) -> list[Notice]:
        """Return all or only the calm ones, and of these those that waited already, or did not."""
        return [
            notice for notice in self.all if notice.calm >= calm and waited in (None, notice.waited)
        ]
