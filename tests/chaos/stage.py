"""What the adversary has before it: daemons, the network between them, and programs."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from cluster import Cluster, Node

from chaos.calls import STYLES
from chaos.layout import Layout
from chaos.ledger import Ledger
from chaos.programs import Programs
from chaos.proxy import Harm, Network, Proxy
from ringd.errors import RingError
from ringd.ring.state import STATE_NAME
from ringd.wire.border import lifeline
from tests.ownports import free_ports

LOST_AFTER = 0.8
"""Seconds; short, so that many silences fit into a run."""

SETTINGS = """
[join]
backoff_first = "20ms"
backoff_max = "200ms"
connect_timeout = "500ms"
handshake_timeout = "600ms"
heartbeat = "200ms"
lost_after = "800ms"
[ops]
checksum = {checksum}
[log]
level = "debug"
"""

SLOWEST = 4.0
"""Seconds that a slow disk takes to save a state file; each time two flushes."""

REMOVALS = ("one", "all", "directory", "directory replaced")
"""Of a daemon's sockets, and of its lock."""

MADE_ANEW = 32.0
"""Seconds after which they must be there again: 30, and some to make them."""

SETTLED = 1.5
"""Seconds after which a daemon surely handles SIGHUP; before, that may end it."""


class Stage:
    """A ring of *size* in *directory* with programs in *groups*, and a proxy before each member."""

    def __init__(
        self, directory: Path, size: int, groups: Sequence[str], seed: int, *, checksum: bool
    ) -> None:
        self.size = size
        self.groups = groups
        self.checksum = checksum
        self.settings = SETTINGS.format(checksum=str(checksum).lower())
        self.network = Network()
        ports = free_ports(size)
        self.proxies = [self.network.add(port) for port in ports]
        self.entrance = [0] * size
        """By rank: which of its proxy's ports the config names."""
        self.cluster = Cluster(
            directory, size, settings=self.settings, dial=self._dial(), ports=ports
        )
        nodes = self.cluster.nodes
        for node in nodes:
            node.socket = directory / f"{node.name}.run" / "s"  # to be removed with its directory
        self.ledger = Ledger(
            {group: STYLES[group] for group in groups},
            [node.name for node in nodes],
            [node.log_path for node in nodes],
            LOST_AFTER,
        )
        self.ledger.breaks.hurts = self.network.hurts
        self.programs = Programs(self.cluster, self.ledger, seed)
        self._started = [0.0] * size
        self._sent: list[set[int]] = [set() for _ in range(size)]
        """Signals that this run has sent to each daemon's process."""
        self._slow_at = [-math.inf] * size
        """When each daemon's disk was slow last."""
        self._removed: dict[int, tuple[int, float]] = {}
        """By rank, whose sockets were removed (its process id), and when."""
        self._namesakes: list[Cluster] = []
        self._asked: list[threading.Thread] = []
        self._strangers: list[socket.socket] = []

    def close(self) -> None:
        """End everything."""
        self.programs.close()
        for thread in self._asked:
            thread.join(10)
        self.send_off_namesakes()
        self.cluster.close()
        self.network.stop()
        for sock in self._strangers:
            sock.close()

    # --- daemons ----------------------------------------------------------------------

    def node(self, rng: Random) -> Node:
        """Return one of the daemons."""
        return rng.choice(self.cluster.nodes)

    def rank(self, node: Node) -> int:
        """Return the rank of *node*."""
        return self.cluster.nodes.index(node)

    def program(self, rng: Random) -> tuple[str, int]:
        """Return one of the programs: its group, and its rank there."""
        group = rng.choice(self.groups)
        return group, rng.randrange(self.layout(group).size)

    def layout(self, group: str) -> Layout:
        """Return where the programs of *group* are."""
        return self.ledger.groups[group].layout

    def start(self, node: Node) -> None:
        """Start a daemon, unless it runs."""
        if node.running:
            return
        self.inspect(node)
        rank, now = self.rank(node), time.monotonic()
        self.ledger.lives.daemon_gone(rank, now)
        self._started[rank] = now
        self._sent[rank].clear()
        node.start()
        self.ledger.lives.daemon_started(rank, node.pid, now)

    def inspect(self, node: Node) -> None:
        """Note it if a daemon ended in another way than this run ended it."""
        code = None if node.process is None else node.process.poll()
        sent = self._sent[self.rank(node)]
        asked = code is None or -code in sent or (code == 0 and signal.SIGTERM in sent)
        if not asked:
            lines = node.log_path.read_text().splitlines()[-8:]
            self.ledger.violate("daemons crashed", f"{node.name}: {code}: {lines}")

    def kill(self, node: Node) -> None:
        """End a daemon at once."""
        self.inspect(node)
        self.ledger.daemon_ended(self.rank(node), time.monotonic())
        self._sent[self.rank(node)].add(signal.SIGKILL)
        node.kill()
        self.ledger.lives.daemon_gone(self.rank(node), time.monotonic())

    def signal(self, node: Node, signum: int) -> None:
        """Send a daemon a signal, if it runs."""
        if signum == signal.SIGTERM:
            self.ledger.daemon_ended(self.rank(node), time.monotonic())
        if signum == signal.SIGSTOP:
            self.hush()
            self.ledger.lives.daemon_paused(self.rank(node), time.monotonic())
        if node.running:
            self._sent[self.rank(node)].add(signum)
            node.signal(signum)
        if signum == signal.SIGCONT:
            self.ledger.lives.daemon_resumed(self.rank(node), time.monotonic())

    def rejoin(self, node: Node) -> None:
        """Ask a daemon to rejoin; it may be gone, or asleep."""

        def ask() -> None:
            with contextlib.suppress(RingError, OSError):
                node.rejoin()

        self._asked = [thread for thread in self._asked if thread.is_alive()]
        self._asked.append(threading.Thread(target=ask, daemon=True))
        self._asked[-1].start()

    def readdress(self, node: Node) -> None:
        """Give a member another address in the config, and have all daemons read it anew."""
        rank = self.rank(node)
        self.entrance[rank] = 1 - self.entrance[rank]
        cluster = self.cluster
        place, draft = cluster.config, cluster.config.with_suffix(".new")
        cluster.config = draft
        cluster.write_config(self.settings, self._dial())
        cluster.config = place
        draft.replace(place)  # a daemon that starts right now finds the old or the new one
        for other in cluster.nodes:
            at = self.rank(other)
            if time.monotonic() > max(self._started[at], self._slow_at[at] + SLOWEST) + SETTLED:
                self.signal(other, signal.SIGHUP)

    def _dial(self) -> dict[str, int]:
        return {
            f"n{rank}": proxy.ports[self.entrance[rank]] for rank, proxy in enumerate(self.proxies)
        }

    def slow_disk(self, node: Node, seconds: float) -> None:
        """Have each flush of a daemon's state file last longer; 0 for no longer."""
        self._slow_at[self.rank(node)] = time.monotonic()
        node.slow_disk(seconds)

    def remove_sockets(self, node: Node, way: str) -> None:
        """Do what cleaners and logouts do; *way* is one of :data:`REMOVALS`."""
        place = node.socket.parent
        if not (node.running and node.socket.exists()):
            return  # it starts, and makes them itself
        if way == "one":
            node.socket.unlink()
        elif way == "all":
            for path in place.iterdir():
                path.unlink()
        elif way == "directory":
            shutil.rmtree(place)
        else:
            place.rename(place.with_name(f"{place.name}.{time.monotonic_ns()}"))
            place.mkdir()
        self._removed.setdefault(self.rank(node), (node.pid, time.monotonic()))

    def look_for_sockets(self) -> bool:
        """Whether all that were removed are there again; note it if one took too long."""
        for rank, (pid, moment) in list(self._removed.items()):
            node = self.cluster[rank]
            ends = (node.socket, node.socket.with_name(node.socket.name + lifeline.SUFFIX))
            late = time.monotonic() > moment + MADE_ANEW
            if node.running and node.pid == pid and not all(end.exists() for end in ends):
                if not late:
                    continue
                self.ledger.violate("sockets not made anew", f"{node.name}, removed {moment:.3f}")
            del self._removed[rank]
        return not self._removed

    def namesake(self, rank: int, *, copied: bool) -> Node:
        """Start the daemon of another machine under a member's name; perhaps of a copied disk."""
        original = self.cluster[rank]
        ports = [node.port for node in self.cluster.nodes]
        (ports[rank],) = free_ports(1)
        directory = self.cluster.directory / f"namesake.{time.monotonic_ns()}"
        directory.mkdir()
        machine = Cluster(
            directory, self.size, settings=self.settings, ports=ports, dial=self._dial()
        )
        shutil.copy(self.cluster.directory / "ring.key", directory / "ring.key")
        if copied:
            machine[rank].state_dir.mkdir()
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(original.state_dir / STATE_NAME, machine[rank].state_dir)
        self._namesakes.append(machine)
        machine[rank].start()
        return machine[rank]

    def send_off_namesakes(self) -> None:
        """End all daemons that have another member's name."""
        for machine in self._namesakes:
            for node in machine.nodes:
                if node.process is None:
                    continue  # only one of them is started
                code = node.process.poll()
                # It may say that its config is wrong, and end.
                fault = "ended by a fault of ringd" in node.log_path.read_text()
                if fault or (code is not None and code < 0):
                    self.ledger.violate("daemons crashed", f"a namesake of {node.name}: {code}")
            machine.close()
        self._namesakes.clear()

    # --- the network ------------------------------------------------------------------

    def proxy(self, rng: Random) -> Proxy:
        """Return one of the proxies."""
        return rng.choice(self.proxies)

    def hush(self) -> None:
        """Note that somebody is about to fall silent, which the others notice later."""
        self.network.hurts.append(time.monotonic())

    def harm(self, proxy: Proxy, harm: Harm, *, up: bool) -> None:
        """Do *harm* to what passes through *proxy* next."""
        self.network.ask(lambda: proxy.harms[up].append(harm))

    def stranger(self, node: Node, words: bytes) -> None:
        """Connect to a daemon, say *words*, and stay."""
        while len(self._strangers) >= 50:
            self._strangers.pop(0).close()
        with contextlib.suppress(OSError):
            visitor = socket.create_connection(("127.0.0.1", node.port), 0.5)
            self._strangers.append(visitor)
            visitor.sendall(words)

    def record(self, when: str) -> None:
        """Write down what each daemon says of itself, for whoever looks for a bug."""
        for node in self.cluster.nodes:
            said = {"status": node.status(), "trace": None}
            if said["status"] is not None:
                with contextlib.suppress(RingError):
                    said["trace"] = node.trace()
            path = self.cluster.directory / f"{node.name}.{when}.json"
            path.write_text(json.dumps(said, indent=1))

    # --- afterwards -------------------------------------------------------------------

    def heal(self) -> None:
        """End what may still last of all faults."""
        for proxy in self.proxies:
            self.network.ask(proxy.calm)
        self.send_off_namesakes()
        self.look_for_sockets()
        for group in self.groups:
            self.programs.ask_for("burst", group, wanted=False)
        for node in self.cluster.nodes:
            node.slow_disk(0.0)
            self.signal(node, signal.SIGCONT)
            self.start(node)
        self.programs.start_missing()
