"""Worker processes: one for each member of a system, started by a command."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from instrument.batch import Failure
from instrument.processes import end

WORKER = Path(__file__).parents[1] / "worker.py"
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Workers:
    """Those of one system."""

    pipes: list[Connection]
    """By rank."""
    pids: list[int]
    """By rank."""
    processes: list[subprocess.Popen[bytes]]
    """What was started: they, or mpirun."""

    def end(self, patience: float) -> None:
        """Let them end by themselves within so many seconds, or else by force."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            end(process, patience)


def start(
    kind: str,
    arguments: Sequence[Any],
    address: Path,
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str] | None = None,
) -> Workers:
    """Start workers, and tell each its rank, how many there are, and its argument.

    Args:
        kind: A key of :data:`worker.SYSTEMS`.
        arguments: Of that system, by rank.
        address: Of a socket at which they come.
        commands: By rank, all but the worker's own arguments; a single one starts all of them
            under ``mpirun``, which tells them their ranks.
        environment: Theirs; this process's if it is None.

    Raises:
        Failure: They have not come.
    """
    size = len(arguments)
    by_rank: dict[int, tuple[int, Connection]] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(size)
        listener.settimeout(_PATIENCE)
        processes = [
            subprocess.Popen(
                [
                    *command,
                    str(WORKER),
                    str(address),
                    *([str(rank)] if len(commands) == size else []),
                ],
                env=None if environment is None else dict(environment),
            )
            for rank, command in enumerate(commands)
        ]
        try:
            while len(by_rank) < size:
                accepted, _ = listener.accept()
                accepted.setblocking(True)
                pipe = Connection(accepted.detach())
                rank, pid = pipe.recv()
                by_rank[rank] = pid, pipe
        except BaseException as error:
            Workers([], [], processes).end(0)
            if isinstance(error, TimeoutError):
                raise Failure(f"{kind}: {len(by_rank)} of {size} workers came") from None
            raise
    pids, pipes = zip(*(by_rank[rank] for rank in range(size)), strict=True)
    for rank, pipe in enumerate(pipes):
        pipe.send((kind, rank, size, arguments[rank]))
    return Workers(list(pipes), list(pids), processes)


def mpirun(size: int, transports: str, interface: str) -> list[str]:
    """Return the command that starts *size* programs under Open MPI, which use *transports*."""
    command = ["mpirun", "-n", str(size), "--oversubscribe", "--bind-to", "none"]
    command += ["--mca", "pml", "ob1", "--mca", "btl", transports]
    if "tcp" in transports:
        command += ["--mca", "btl_tcp_if_include", interface]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return command
