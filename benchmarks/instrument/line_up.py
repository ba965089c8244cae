"""The line-up: all teams that are measured beside each other, on one site."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from instrument.batch import Failure
from instrument.builds import Build
from instrument.daemons import Daemons
from instrument.sites import Site
from instrument.team import Team


@dataclass(slots=True)
class LineUp:
    """The teams; what they are started with, and what ends them."""

    site: Site
    directory: Path
    stack: ExitStack
    before: Build | None = None
    """The former build that is measured beside this one."""
    teams: dict[str, Team] = field(default_factory=dict)
    rings: dict[str, Daemons] = field(default_factory=dict)
    """The daemons of a team, by its name."""
    failures: list[str] = field(default_factory=list)
    """What befell those that are left out."""

    def add(self, name: str, team: Team) -> None:
        """Take in a team, which ends with *stack*."""
        self.teams[name] = self.stack.enter_context(team)

    def wait_ready(self, names: Sequence[str]) -> None:
        """Wait until these teams have come together.

        Raises:
            Failure: One has not.
        """
        for name in names:
            self.teams[name].wait_ready()

    @contextlib.contextmanager
    def without_failed(self, name: str, where: str) -> Iterator[None]:
        """Go on without the team *name* if it fails, in the context or before; a peer may.

        Raises:
            Failure: It is one of ringd; the text has the logs of its daemons.
        """
        try:
            yield
        except Failure as failure:
            if name in self.rings:
                raise Failure(f"{failure}\n{self.rings[name].complaints()}") from None
            self.teams.pop(name, None)
            reason = str(failure).strip().rpartition("\n")[2]
            self.failures.append(f"{name} failed, and is left out from there on: {where}: {reason}")

    def commands(self, python: str = sys.executable) -> list[list[str]]:
        """Return what starts a program at each place."""
        return [[*prefix, python] for prefix in self.site.prefixes]

    def own_directory(self, name: str) -> Path:
        """Return a new directory for a team."""
        made = self.directory / name
        made.mkdir()
        return made
