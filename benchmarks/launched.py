"""Workers that a command starts: with another build of ringd, or under ``mpirun``.

Each one connects to the benchmark's process, says its rank, and is told what it is to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, final

from systems import PATIENCE
from teams import Failure, Process, Workers, work

_RANK_OF_MPI = "OMPI_COMM_WORLD_RANK"


@final
class _Command:
    """A command as a :class:`teams.Process`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, env=os.environ | environment)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def start_with(source: Path, kind: str, arguments: list[Any], directory: Path) -> Workers:
    """Start workers that use the build of ringd in *source*."""
    environment = {"PYTHONPATH": str(source)}
    if not (source / "ringd" / "__init__.py").exists():
        raise Failure(f"{source}: no source of ringd is there")
    commands = [
        [sys.executable, __file__, "{address}", str(rank)] for rank in range(len(arguments))
    ]
    return _start(commands, environment, kind, arguments, directory / "workers")


def start_mpi(size: int, directory: Path) -> Workers:
    """Start *size* workers under ``mpirun``, which talk over shared memory."""
    command = ["mpirun", "-n", str(size), "--oversubscribe", "--bind-to", "none"]
    command += ["--mca", "pml", "ob1", "--mca", "btl", "self,vader"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    command += [sys.executable, __file__, "{address}"]
    return _start([command], {}, "mpi", [None] * size, directory / "mpi")


def _start(
    commands: list[list[str]],
    environment: dict[str, str],
    kind: str,
    arguments: list[Any],
    address: Path,
) -> Workers:
    size = len(arguments)
    by_rank: dict[int, Connection] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(size)
        listener.settimeout(PATIENCE)
        processes: list[Process] = [
            _Command([part.format(address=address) for part in command], environment)
            for command in commands
        ]
        try:
            while len(by_rank) < size:
                accepted, _ = listener.accept()
                accepted.setblocking(True)
                pipe = Connection(accepted.detach())
                by_rank[pipe.recv()] = pipe
        except BaseException as error:
            for process in processes:
                process.kill()
            if isinstance(error, TimeoutError):
                raise Failure(f"{kind}: {len(by_rank)} of {size} workers came") from None
            raise
    for rank, pipe in by_rank.items():
        pipe.send((kind, rank, size, arguments[rank]))
    return Workers([by_rank[rank] for rank in range(size)], processes)


def main() -> None:
    """Be a worker."""
    address, *rank = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(address)
        pipe = Connection(connecting.detach())
    pipe.send(int(rank[0] if rank else os.environ[_RANK_OF_MPI]))
    work(pipe, *pipe.recv())


if __name__ == "__main__":
    main()
