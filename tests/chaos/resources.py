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


def open_files(pid: int) -> list[str]:
    """Return what each descriptor of process *pid* is; of a socket, the kernel's line on it."""
    sockets = {}
    for table, column in (("unix", 6), ("tcp", 9), ("tcp6", 9)):
        lines = Path(f"/proc/{pid}/net/{table}")
        for line in lines.read_text().splitlines()[1:] if lines.exists() else ():
            sockets[f"socket:[{line.split()[column]}]"] = f"{table}: {line.strip()}"
    found = []
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda entry: int(entry.name)):
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        found.append(f"{entry.name} {sockets.get(target, target)}")
    return found


def shared_bytes(pid: int) -> int:
    """Return the bytes of all memory segments that process *pid* has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return sum(int(m[2], 16) - int(m[1], 16) for m in _SEGMENT.finditer(maps))
