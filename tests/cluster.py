"""Real daemons as processes on loopback, for tests and for the chaos run.

A :class:`Cluster` owns a directory with one config, one key, and a socket, a state directory
and a log for each node. Daemons are ended by their process id when it is closed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ringd.cli.ask import ask
from ringd.config.keyfile import create_key
from ringd.errors import RingError
from ringd.wire.border.messages import AskRejoin, AskStatus, AskTrace
from tests.ownports import free_ports

PATIENCE = 120.0
"""Seconds after which a condition that tests wait for has failed.

Only what fails takes so long; a machine with much else to do may take half of it.
"""

LAUNCHER = Path(__file__).with_name("launcher.py")

NAMES = [f"n{i}" for i in range(64)]


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str] = "condition",
    timeout: float = PATIENCE,
) -> object:
    """Return the first true value of *condition*, or fail after *timeout* seconds.

    *what* was waited for is said then; a function may say also how it stands at the end.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {timeout:g} s: {said}")
        time.sleep(0.005)


class Node:
    """One member: its places and, while it runs, its daemon's process."""

    def __init__(self, cluster: Cluster, name: str, port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.port = port
        self.socket = cluster.directory / f"{name}.sock"
        self.state_dir = cluster.directory / f"{name}.state"
        self.config = cluster.config
        self.log_path = cluster.directory / f"{name}.log"
        self.delay_path = cluster.directory / f"{name}.delay"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon; returns at once."""
        assert self.process is None or self.process.poll() is not None
        command = [sys.executable, str(LAUNCHER), str(self.delay_path)]
        command += ["--config", str(self.config), "--node", self.name]
        command += ["--socket", str(self.socket), "--state-dir", str(self.state_dir)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                # Nothing of the tests' own: who reads their output through a pipe would wait also
                # for a daemon that was left behind.
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.cluster.environ,
            )

    @property
    def pid(self) -> int:
        """Of the daemon."""
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the daemon runs."""
        return self.process is not None and self.process.poll() is None

    def signal(self, signum: int) -> None:
        """Send the daemon a signal."""
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        """End the daemon with SIGKILL, and wait until it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(PATIENCE)

    def stop(self) -> int:
        """End the daemon with SIGTERM; return its exit code."""
        if self.running:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Kill it, and start it again at once."""
        self.kill()
        self.start()

    def slow_disk(self, seconds: float) -> None:
        """Have each flush of the state file last *seconds* longer from now on; a save has two."""
        self._set_disk(str(seconds))

    def fill_disk(self) -> None:
        """Have each flush fail for want of room, until :meth:`slow_disk`."""
        self._set_disk("full")

    def _set_disk(self, how: str) -> None:
        beside = self.delay_path.with_suffix(".new")
        beside.write_text(how)
        beside.rename(self.delay_path)

    def status(self) -> dict | None:
        """Return the daemon's own word; None when it does not answer."""
        try:
            return ask(self.socket, AskStatus, timeout=2.0)
        except RingError:
            return None

    def rejoin(self) -> None:
        """Ask it to rejoin."""
        ask(self.socket, AskRejoin, timeout=5.0)

    def trace(self) -> dict:
        """Return the flight recorder's events."""
        return ask(self.socket, AskTrace, timeout=5.0)

    def log(self) -> list[dict]:
        """Return its log's events so far, less one of which it may have written a part."""
        lines = self.log_path.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def open_files(self) -> int:
        """Return how many descriptors the daemon has."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        """Return the processor time the daemon has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Return the daemon's resident memory that no file or shared memory stands behind."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")


class Cluster:
    """A ring of *size* members in *directory*; ``settings`` is TOML that follows the roster.

    ``dial`` maps a member's name to the port under which its neighbours reach it, where that
    is not the one that it listens on (a proxy stands between). ``protect`` is ``ring.protect``;
    None leaves it out.
    """

    def __init__(
        self,
        directory: Path,
        size: int,
        *,
        settings: str = "",
        dial: dict[str, int] | None = None,
        ports: list[int] | None = None,
        protect: str | None = None,
    ) -> None:
        self.directory = directory
        self.protect = protect
        self.config = directory / "ringd.toml"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("RINGD_")}
        self.nodes = [
            Node(self, name, port)
            for name, port in zip(NAMES, ports or free_ports(size), strict=False)
        ]
        self.write_config(settings, dial or {})
        create_key(directory / "ring.key")

    def write_config(self, settings: str, dial: dict[str, int] | None = None) -> None:
        """Write the config anew, for instance for a reload."""
        text = '[ring]\nname = "test"\nkey_file = "ring.key"\n'
        text += f'protect = "{self.protect}"\n' if self.protect else ""
        for node in self.nodes:
            address = f"127.0.0.1:{(dial or {}).get(node.name, node.port)}"
            text += f'[[ring.members]]\nname = "{node.name}"\naddresses = ["{address}"]\n'
            text += f'listen = ["127.0.0.1:{node.port}"]\n'
        self.config.write_text(text + "\n" + settings)

    def __enter__(self) -> Cluster:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs."""
        for node in self.nodes:
            if node.running:
                node.signal(signal.SIGCONT)
                node.kill()

    def __getitem__(self, rank: int) -> Node:
        return self.nodes[rank]

    @property
    def sockets(self) -> list[str]:
        """Where programs reach the daemons, by rank."""
        return [str(node.socket) for node in self.nodes]

    def start(self, ranks: Iterable[int] | None = None) -> Cluster:
        """Start the daemons of *ranks*, all by default."""
        for rank in range(len(self.nodes)) if ranks is None else ranks:
            self.nodes[rank].start()
        return self

    def wait_ready(self, beyond: int = 0, timeout: float = PATIENCE) -> int:
        """Wait until all are ready in one generation above *beyond*; return it."""

        def ready() -> int:
            found = set()
            for node in self.nodes:
                status = node.status()
                if status is None or status["state"] != "ready":
                    return 0
                found.add(status["generation"])
            return found.pop() if len(found) == 1 and min(found) > beyond else 0

        return int(str(wait_until(ready, f"ring above generation {beyond}", timeout)))
