"""A ring of real daemons, in a directory of its own, while a benchmark runs."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from instrument.batch import Failure
from instrument.builds import Build
from instrument.processes import end
from instrument.sites import Site
from ringd.cli.ask import ask
from ringd.config.keyfile import create_key
from ringd.errors import RingError
from ringd.host.ports import free_ports
from ringd.wire.border.messages import AskStatus

_LOG_TAIL = 2000  # bytes, per daemon
_PATIENCE = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Daemons:
    """The running daemons, by rank."""

    sockets: list[Path]
    logs: list[Path]
    processes: list[subprocess.Popen[bytes]]

    @property
    def pids(self) -> list[int]:
        """Of the daemons."""
        return [process.pid for process in self.processes]

    def wait_ready(self) -> None:
        """Wait until they are one ring: a command wants a daemon that is there.

        Raises:
            Failure: They are not, in time; the text has their logs.
        """
        until = time.monotonic() + _PATIENCE
        while not all(map(_is_ready, self.sockets)):
            if time.monotonic() > until:
                raise Failure(f"no ring within {_PATIENCE:g} s\n{self.complaints()}")
            time.sleep(0.1)

    def complaints(self) -> str:
        """Return the end of every daemon's log, for the report of a failure."""
        return "\n".join(
            f"--- daemon of rank {rank}, exit code {process.poll()}:\n"
            + log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
            for rank, (process, log) in enumerate(zip(self.processes, self.logs, strict=True))
        )


def _is_ready(socket: Path) -> bool:
    try:
        return bool(ask(socket, AskStatus)["state"] == "ready")
    except RingError:
        return False


def config(addresses: list[str], protect: str | None = None) -> str:
    """Return the config of a ring with a member at each address.

    *protect*: the setting ``ring.protect``; without it any build can read the config.
    """
    ring = ["[ring]", 'name = "bench"', 'key_file = "ring.key"']
    if protect is not None:
        ring.append(f'protect = "{protect}"')
    members = [
        f'[[ring.members]]\nname = "rank{rank}"\naddresses = ["{address}"]\nlisten = ["{address}"]'
        for rank, address in enumerate(addresses)
    ]
    return "\n".join([*ring, *members, ""])


@contextlib.contextmanager
def running(
    site: Site, directory: Path, build: Build, protect: str | None = None
) -> Iterator[Daemons]:
    """Start a daemon at each place; end them, by pid, on the way out.

    Their settings are the default ones, but for ``ring.protect`` if *protect* is given.
    """
    names = [f"rank{rank}" for rank in range(site.size)]
    ports = free_ports(site.size)
    addresses = [f"{host}:{port}" for host, port in zip(site.addresses, ports, strict=True)]
    (directory / "ringd.toml").write_text(config(addresses, protect))
    create_key(directory / "ring.key")
    daemons = Daemons(
        [directory / f"{name}.sock" for name in names],
        [directory / f"{name}.log" for name in names],
        [],
    )
    with ExitStack() as stack:
        for rank, name in enumerate(names):
            command = [*site.prefixes[rank], build.python, "-m", "ringd.daemon.main"]
            command += ["--config", str(directory / "ringd.toml"), "--node", name]
            command += ["--socket", str(daemons.sockets[rank])]
            command += ["--state-dir", str(directory / f"{name}.state")]
            with daemons.logs[rank].open("wb") as stderr:
                process = subprocess.Popen(
                    command,
                    stderr=stderr,
                    env=build.environment(),
                    cwd=directory,  # "-m" looks there first, where another build may stand
                )
            stack.callback(end, process)
            daemons.processes.append(process)
        yield daemons
