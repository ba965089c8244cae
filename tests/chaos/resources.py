"""What the daemons hold: open files, memory of their own, memory shared with programs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

_SEGMENT = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*(?:memfd:|/ringd-)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one daemon."""

    pid: int
    files: int
    memory: int
    """Bytes of anonymous memory."""
    shared: int
    """Bytes of mapped segments."""


def holdings(cluster: Cluster) -> list[Holding]:
    """Return what each daemon holds now."""
    return [
        Holding(node.pid, node.open_files(), node.resident_bytes(), shared_bytes(node.pid))
        for node in cluster.nodes
    ]


def shared_bytes(pid: int) -> int:
    """Return the bytes of all memory segments that process *pid* has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return sum(int(m[2], 16) - int(m[1], 16) for m in _SEGMENT.finditer(maps))
