"""A ring of real daemons, in a directory of its own, while a benchmark runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hosts import Host

from ringd.config.keyfile import create_key
from ringd.config.sample import render
from ringd.config.settings import Member
from ringd.host.ports import free_ports

_STOP_TIMEOUT = 10.0  # seconds
_LOG_TAIL = 2000  # bytes, per daemon


@dataclass(frozen=True, slots=True)
class Daemons:
    """The running daemons, by rank."""

    sockets: list[Path]
    logs: list[Path]
    processes: list[subprocess.Popen[bytes]]

    def complaints(self) -> str:
        """Return the end of every daemon's log, for the report of a failure."""
        return "\n".join(
            f"--- daemon of rank {rank}, exit code {process.poll()}:\n"
            + log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
            for rank, (process, log) in enumerate(zip(self.processes, self.logs, strict=True))
        )


@contextlib.contextmanager
def running(
    size: int, directory: Path, source: Path | None = None, hosts: Sequence[Host] = ()
) -> Iterator[Daemons]:
    """Start *size* daemons with default settings; end them, by pid, on the way out.

    *source*: where another build of ringd stands; None for the one that is installed. *hosts*:
    where the daemons run, if not all on loopback.
    """
    names = [f"rank{rank}" for rank in range(size)]
    addresses = [host.address for host in hosts] or ["127.0.0.1"] * size
    members = [
        Member(name, (f"{address}:{port}",))
        for name, address, port in zip(names, addresses, free_ports(size), strict=True)
    ]
    config = directory / "ringd.toml"
    config.write_text(render("bench", members))
    create_key(directory / "ring.key")
    daemons = Daemons(
        [directory / f"{name}.sock" for name in names],
        [directory / f"{name}.log" for name in names],
        [],
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RINGD_")}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    with ExitStack() as stack:
        for rank, (name, path, log) in enumerate(
            zip(names, daemons.sockets, daemons.logs, strict=True)
        ):
            command = hosts[rank].enter if hosts else []
            command += [sys.executable, "-m", "ringd.daemon.main", "--config", str(config)]
            command += ["--node", name, "--socket", str(path)]
            command += ["--state-dir", str(directory / f"{name}.state")]
            with log.open("wb") as stderr:
                # "-m" looks in the working directory first, where another build may stand.
                process = subprocess.Popen(command, stderr=stderr, env=environment, cwd=directory)
            stack.callback(_end, process)
            daemons.processes.append(process)
        yield daemons


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
