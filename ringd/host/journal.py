"""systemd's journal: how severe a line is stands in front of it, and it must not be too long."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Protocol

MAX_LINE = 4000
"""Bytes. From 4,088 on ``journalctl -o json`` shows null in the place of a line."""

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


class HasFileno(Protocol):
    """A stream."""

    def fileno(self) -> int:
        """Return its descriptor."""


def leads_to(stream: HasFileno | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether *stream* is this process's way into the journal; never on macOS, which has none."""
    try:
        status = None if stream is None else os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or in memory
        return False
    if status is None:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def marked(text: str, level: str) -> str:
    """Return *text* as the journal should read it: *level* before each line, none too long."""
    mark = f"<{_PRIORITIES.get(level, _PRIORITIES['info'])}>"
    room = MAX_LINE - len(mark)
    lines = (line.encode(errors="replace")[:room] for line in text.splitlines())
    return "\n".join(mark + line.decode(errors="ignore") for line in lines)


def complaint(text: str) -> str:
    """Return the error *text* as standard error should read it."""
    return marked(text, "error") if leads_to(sys.stderr) else text
