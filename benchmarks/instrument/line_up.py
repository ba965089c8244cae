"""The line-up: all teams that are measured beside each other, on one site."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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

    def add(self, name: str, team: Team) -> None:
        """Take in a team, which ends with *stack*."""
        self.teams[name] = self.stack.enter_context(team)

    def wait_ready(self, names: Sequence[str]) -> None:
        """Wait until these teams have come together.

        Raises:
            Failure: One has not; the text has the logs of its daemons.
        """
        for name in names:
            try:
                self.teams[name].wait_ready()
            except Failure as failure:
                said = self.rings[name].complaints() if name in self.rings else ""
                raise Failure(f"{failure}\n{said}") from None

    def commands(self, python: str = sys.executable) -> list[list[str]]:
        """Return what starts a program at each place."""
        return [[*prefix, python] for prefix in self.site.prefixes]

    def own_directory(self, name: str) -> Path:
        """Return a new directory for a team."""
        made = self.directory / name
        made.mkdir()
        return made
