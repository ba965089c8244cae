"""A real daemon under a service manager: what it tells it, and when it ends for its sake."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringd.daemon.daemon import EX_TEMPFAIL
from tests.cluster import PATIENCE, Cluster, wait_until

IMPATIENT = """
import sys
from ringd.border import upkeep
from ringd.daemon import main, statusline
upkeep.LOOK_EVERY = statusline.EVERY = 0.05
main.main(sys.argv[1:], prog_name="ringd")
"""


class Managed:
    """The first of two members, and what it has told its service manager."""

    def __init__(self, place: Path, *, watchdog: float = 0.0) -> None:
        self.cluster = Cluster(place, 2)
        self.node = self.cluster[0]
        self.node.socket = place / "run" / "s"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(place / "notify"))
        self._manager.setblocking(False)
        self.heard: list[str] = []
        environ = {**self.cluster.environ, "NOTIFY_SOCKET": str(place / "notify")}
        if watchdog:
            environ["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        words = ["--config", str(self.cluster.config), "--node", self.node.name]
        words += ["--socket", str(self.node.socket), "--state-dir", str(self.node.state_dir)]
        with self.node.log_path.open("ab") as log:
            self.node.process = subprocess.Popen(
                [sys.executable, "-c", IMPATIENT, *words], stdout=log, stderr=log, env=environ
            )

    def hears(self, word: str) -> bool:
        """Whether a message had *word* in it so far."""
        try:
            while True:
                self.heard += self._manager.recv(8192).decode().split("\n")
        except BlockingIOError:
            return any(word in line for line in self.heard)

    def wait_for(self, word: str) -> None:
        """Wait until it is heard."""
        wait_until(lambda: self.hears(word), word)

    def close(self) -> None:
        """End all of it."""
        self.cluster.close()
        self._manager.close()


@pytest.fixture
def managed(place: Path) -> Iterator[Managed]:
    """Give one that has started."""
    managed = Managed(place, watchdog=0.2)
    yield managed
    managed.close()


def test_ready_at_once_and_status_as_it_changes(managed: Managed) -> None:
    """READY does not wait for the ring; the line names who is missing, then the ring's state."""
    managed.wait_for("READY=1")
    managed.wait_for("connection refused")
    managed.cluster[1].start()
    managed.wait_for("STATUS=ready")
    managed.cluster[1].kill()
    managed.wait_for("STATUS=forming")
    managed.wait_for("WATCHDOG=1")
    assert managed.node.stop() == 0
    managed.wait_for("STOPPING=1")
    managed.wait_for("STATUS=draining")
    assert managed.heard.count("READY=1") == 1


def test_a_daemon_that_cannot_be_reached_any_more_ends(managed: Managed) -> None:
    """The service manager makes its directory anew at the next start; that is exit 75, not 78."""
    managed.wait_for("READY=1")
    shutil.rmtree(managed.node.socket.parent)
    managed.node.socket.parent.touch()  # as unusable as /run is for a daemon in a sandbox
    assert managed.node.process is not None
    assert managed.node.process.wait(PATIENCE) == EX_TEMPFAIL
    [line] = [line for line in managed.node.log() if line["event"].startswith("ends as no")]
    assert line["level"] == "error"


def test_a_daemon_that_hangs_says_where(managed: Managed) -> None:
    """What systemd's watchdog sends has it write the stack of each thread."""
    managed.wait_for("READY=1")
    managed.node.signal(signal.SIGABRT)
    assert managed.node.process is not None
    assert managed.node.process.wait(PATIENCE) == -signal.SIGABRT
    log = managed.node.log_path.read_text()
    assert "Fatal Python error: Aborted" in log
    assert f"{os.sep}daemon.py" in log
