"""Builds of ringd: the one of this checkout, one that is installed elsewhere, or a source tree."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from instrument.batch import Failure


@dataclass(frozen=True, slots=True)
class Build:
    """A Python that imports the build."""

    python: str = sys.executable
    source: Path | None = None
    """Where its source stands, if it is not installed for that Python."""

    def environment(self) -> dict[str, str]:
        """Return the environment in which its programs and daemons start."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RINGD_")}
        return kept if self.source is None else kept | {"PYTHONPATH": str(self.source)}

    def check(self) -> Build:
        """Return it, if it can be imported from where it should be.

        Raises:
            Failure: It cannot.
        """
        command = [self.python, "-c", "import ringd; print(ringd.__file__)"]
        try:
            asked = subprocess.run(
                command, env=self.environment(), cwd="/", capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failure(f"no ringd for {self.python}, {self.source}: {error}") from None
        if self.source is not None and not asked.stdout.startswith(str(self.source)):
            raise Failure(f"{self.source}: no source of ringd is there")
        return self


def build_at(path: Path) -> Build:
    """Return the build at *path*: a Python's executable, or a source tree."""
    where = path.absolute()
    return (Build(source=where) if where.is_dir() else Build(python=str(where))).check()
