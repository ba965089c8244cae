"""Machines with systemd as PID 1, on a network of their own: containers of systemd-nspawn.

Needs root on a Debian or Ubuntu, on which systemd-nspawn and debootstrap are installed if they are
missing. A base image is made once and kept; each machine is a copy of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CONTENT = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "iproute2")
BASES = Path(tempfile.gettempdir()) / "ringd-machines"

BRIDGE = "ringd0"
NETWORK = "10.213.0"
BOOT_WITHIN = 120.0
"""Seconds; one takes some two of them."""

LISTEN_ON_HOST0 = """\
[Match]
Name=host0
[Network]
Address={address}/24
LinkLocalAddressing=no
"""


class MachineError(Exception):
    """A machine, or this one, cannot do what is needed."""


def run(*argv: str, timeout: float = 600.0, check: bool = True) -> str:
    """Run a command here; return what it prints.

    Raises:
        MachineError: It failed.
    """
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise MachineError(f"{' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare(suite: str = "bookworm") -> Path:
    """Install what is missing here, and return the base image of a Debian, which is made once.

    Raises:
        MachineError: This machine cannot boot others.
    """
    if os.geteuid():
        raise MachineError("only root can boot machines; run it as root")
    if not shutil.which("systemd-nspawn") or not shutil.which("debootstrap"):
        environ = {"DEBIAN_FRONTEND": "noninteractive", "PATH": os.environ["PATH"]}
        for words in (["update"], ["install", "--yes", "systemd-container", "debootstrap"]):
            subprocess.run(["apt-get", "--quiet", *words], env=environ, check=True)
    base = BASES / suite
    if not base.exists():
        BASES.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=BASES))
        run(
            *("debootstrap", "--variant=minbase", f"--include={','.join(CONTENT)}"),
            *(suite, str(fresh)),
            timeout=1200,
        )
        fresh.chmod(0o755)
        fresh.rename(base)
    return base


@contextlib.contextmanager
def network() -> Iterator[str]:
    """Give the name of a network namespace with a bridge in it, for the time of the context."""
    name = f"ringd-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "add", BRIDGE, "type", "bridge")
        run("ip", "-n", name, "link", "set", BRIDGE, "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


class Machine:
    """One machine: its disk, which stays, and its processes, which come and go.

    Attributes:
        name: Its host name.
        address: Its IPv4 address on the bridge.
    """

    def __init__(self, base: Path, place: Path, netns: str, name: str, number: int) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.root = place / name
        self._netns = netns
        self._container: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._programs: list[subprocess.Popen[str]] = []
        run("cp", "--archive", str(base), str(self.root))
        self.write("/etc/hostname", f"{name}\n")
        self.write(
            "/etc/systemd/network/10-host0.network", LISTEN_ON_HOST0.format(address=self.address)
        )
        (self.root / "etc/machine-id").write_text("")
        run("systemctl", f"--root={self.root}", "enable", "systemd-networkd")

    def write(self, path: str, text: str) -> None:
        """Put a file onto its disk."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def boot(self) -> None:
        """Switch it on; return when all its services have started.

        Raises:
            MachineError: It does not come up.
        """
        log = self.root.with_suffix(".console")
        with log.open("ab") as console:
            self._container = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self._netns}", "systemd-nspawn", "--quiet"),
                    *("--boot", "--keep-unit", "--register=no", "--link-journal=no"),
                    *("--resolv-conf=off", "--timezone=off", "--console=pipe"),
                    *(f"--directory={self.root}", f"--machine={self.name}"),
                    f"--network-bridge={BRIDGE}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # As on a real machine, also where this one has the old hierarchies of cgroups.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        deadline = time.monotonic() + BOOT_WITHIN
        state = ""
        while state not in ("running", "degraded"):
            if self._container.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"{self.name} does not boot ({state}): {log.read_text()}")
            time.sleep(0.2)
            self._leader = self._find_leader()
            if self._leader:
                state = self.said("systemctl", "is-system-running", check=False).strip()

    def _find_leader(self) -> int:
        """Return the process here that is PID 1 there; 0 while there is none."""
        assert self._container is not None
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone again
            for child in _children(self._container.pid):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        return 0

    @property
    def on(self) -> bool:
        """Whether it is switched on."""
        return self._container is not None and self._container.poll() is None

    def power_off(self) -> None:
        """Pull the plug: nothing is said to anybody, on no connection."""
        if not self.on:
            return
        assert self._container is not None
        run("nsenter", "-t", str(self._leader), "-n", "ip", "link", "set", "host0", "down")
        os.kill(self._leader, signal.SIGKILL)
        self._container.wait(60)

    def shut_down(self) -> None:
        """Have it power off in good order, at most for a while."""
        if self.on:
            assert self._container is not None
            # A shutdown stops all processes, and nsenter then stops itself, to reap nobody.
            for program in self._programs:
                end(program)
            self.said("systemctl", "poweroff", check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._container.wait(60)
            self.power_off()

    def command(self, *argv: str, user: str = "root") -> list[str]:
        """Return the command line that runs *argv* there, as *user* with all groups."""
        inside = ["nsenter", "-t", str(self._leader), "-a", "--"]
        if user != "root":
            inside += ["runuser", "-u", user, "--"]
        return [*inside, *argv]

    def said(
        self, *argv: str, user: str = "root", timeout: float = 180.0, check: bool = True
    ) -> str:
        """Run a command there; return what it prints, errors included.

        Raises:
            MachineError: It failed.
        """
        done = subprocess.run(
            self.command(*argv, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin",
                "LANG": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
        )
        if check and done.returncode:
            raise MachineError(f"{self.name}: {' '.join(argv)}: {done.returncode}\n{done.stdout}")
        return done.stdout

    def started(self, *argv: str, user: str) -> subprocess.Popen[str]:
        """Start a program there; return its process, whose output is text. :func:`end` ends it."""
        program = subprocess.Popen(
            self.command(*argv, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8"},
        )
        self._programs.append(program)
        return program


def end(program: subprocess.Popen[str]) -> None:
    """End a program that was started on a machine, if it still runs.

    Its parent here must outlive it: a machine is off when all its processes are reaped, and nobody
    else here may do that.
    """
    if program.poll() is None:
        for child in _children(program.pid):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(child, signal.SIGKILL)
        program.wait(60)


def _children(pid: int) -> list[int]:
    """Return the processes that *pid* has started and not waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
