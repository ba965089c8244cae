"""The service manager of this machine, asked and instructed: systemd or launchd."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import ringd
from ringd.cli.host import Host
from ringd.cli.setup import KEY_FILE
from ringd.errors import RingError
from ringd.host import paths
from ringd.service import launchd, systemd
from ringd.service.description import Service, State
from ringd.service.steps import Step

_LOG_LINES, _LOG_BYTES = 5000, 1 << 20

_LINGERING = Path("/var/lib/systemd/linger")
"""Has a file for each user whose services outlive the last login."""


class Manager(Protocol):
    """What both can do with the service."""

    service: Service
    definition: Path
    """The unit or the job."""

    def node(self) -> str:
        """Return the member that the installed service names; empty if none."""

    def check(self) -> None:
        """Make sure that the service can be installed here.

        Raises:
            RingError: It cannot; says what to do.
        """

    def install(self, node: str, *, start: bool) -> list[Step]:
        """Return the steps that install the service as the member *node*.

        Raises:
            RingError: The machine cannot be asked what there is already.
        """

    def uninstall(self, *, purge: bool) -> list[Step]:
        """Return the steps that take it away.

        Raises:
            RingError: It is not ours to take away; says whose.
        """

    def state(self) -> State:
        """Return how it is."""

    def hints(self, group: str) -> list[str]:
        """Return what else to know about the installed service, a line each."""

    def log(self) -> str:
        """Return the end of the service's log; empty if there is none.

        Raises:
            RingError: It cannot be asked for.
            OSError: It cannot be read.
        """


def manager(host: Host, *, user: bool, macos: bool) -> Manager:
    """Return the service manager of *host*, for the service of this *user* or of the machine."""
    return Launchd(host, user=user) if macos else Systemd(host, user=user)


def describe(*, user: bool, macos: bool) -> Service:
    """Return the service of this installation of ringd, of this *user* or of the machine."""
    scripts = Path(sysconfig.get_path("scripts"))
    places = paths.user_paths(macos=macos) if user else paths.system_paths(macos=macos)
    service = Service(
        program=scripts / "ringd",
        control=scripts / "ringd-cli",
        config=places.config,
        state_dir=places.state_dir,
        needs=_parts_of_the_program(),
    )
    if user:  # the socket is where this user's programs look, wherever that is at a login
        return replace(service, log=Path.home() / "Library/Logs/ringd.log" if macos else None)
    return replace(
        service,
        socket=places.socket,
        user="_ringd" if macos else "ringd",
        log=Path("/var/log/ringd/ringd.log") if macos else None,
    )


def _parts_of_the_program() -> tuple[Path, ...]:
    """Return the directories without which ringd does not run, none within another one."""
    assert ringd.__file__ is not None  # noqa: S101 - for the type checker
    package = Path(ringd.__file__).resolve().parent.parent
    parts = {Path(sys.prefix), Path(sys.base_prefix), package}
    inner = {part for part in parts if parts & set(part.parents)}
    return tuple(sorted(parts - inner))


def _key(host: Host, service: Service) -> Path | None:
    """Return the ring's key where ``keygen`` is told to put it, if it is there."""
    key = service.config.parent / KEY_FILE
    return key if host.has(key) else None


class Systemd:
    """systemd, that of the machine or that of a user."""

    def __init__(self, host: Host, *, user: bool) -> None:
        self.service = describe(user=user, macos=False)
        self._host = host
        own = self.service.config.parent.parent / "systemd" / "user" / systemd.UNIT
        self.definition = own if user else systemd.SYSTEM_UNIT

    def node(self) -> str:
        """Return the member that the installed unit names."""
        return systemd.node_in(self._host.text(self.definition))

    def check(self) -> None:
        """Make sure that there is a systemd, and no service of a package."""
        self._check_package("systemctl start ringd")
        if shutil.which("systemctl") is None:
            raise RingError(
                "there is no systemd here: have this system's own service manager run "
                f"`{shlex.join(self.service.command)}`"
            )
        if not self._runs and not self.service.user:
            raise RingError(
                "systemd has no manager for this user here: log in as the user (su does not do), "
                "or install the machine's service: sudo ringd-cli service install"
            )

    def install(self, node: str, *, start: bool) -> list[Step]:
        """Return the steps."""
        return systemd.install(
            replace(self.service, node=node),
            self.definition,
            key=_key(self._host, self.service),
            runs=self._runs,
            start=start,
        )

    def uninstall(self, *, purge: bool) -> list[Step]:
        """Return the steps."""
        # One that was here before the package hides the package's, and may go by itself.
        if purge or not self._host.has(self.definition):
            self._check_package("apt purge ringd" if purge else "apt remove ringd")
        return systemd.uninstall(
            self.service,
            self.definition,
            runs=self._runs,
            purge=purge,
            packaged=bool(self.service.user) and self._host.has(systemd.PACKAGED_UNIT),
        )

    def state(self) -> State:
        """Return how the unit is."""
        if not self._runs:
            there = self._host.has(self.definition)
            return State(str(self.definition) if there else "", words="systemd does not run here")
        return systemd.state(self._host.output(systemd.question(self.service)) or "")

    def hints(self, group: str) -> list[str]:
        """Return who may use the ring, or what ends the service."""
        if self.service.user:
            return [f"Whose programs may use the ring joins its group: usermod -aG {group} USER"]
        if self._lingers:
            return []
        return ["It ends with your last login. To have it stay: loginctl enable-linger"]

    def log(self) -> str:
        """Return the unit's last lines in the journal."""
        if shutil.which("journalctl") is None:
            return ""
        return self._host.output(systemd.journal(self.service, _LOG_LINES)) or ""

    @property
    def _lingers(self) -> bool:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # in a container
            return False
        return self._host.has(_LINGERING / name)

    @property
    def _runs(self) -> bool:
        """Whether the manager itself is there."""
        if self.service.user:
            return self._host.has(Path("/run/systemd/system"))
        return (
            shutil.which("systemctl") is not None
            and self._host.output(("systemctl", "--user", "show-environment")) is not None
        )

    def _check_package(self, instead: str) -> None:
        unit = systemd.PACKAGED_UNIT
        if self.service.user and self._host.has(unit):
            raise RingError(f"a package has installed the service already ({unit}): sudo {instead}")


class Launchd:
    """launchd, for a daemon of the machine or an agent of a user."""

    def __init__(self, host: Host, *, user: bool) -> None:
        self.service = describe(user=user, macos=True)
        self._host = host
        self._domain = f"gui/{os.geteuid()}" if user else "system"
        agent = Path.home() / launchd.AGENTS / launchd.SYSTEM_JOB.name
        self.definition = agent if user else launchd.SYSTEM_JOB

    def node(self) -> str:
        """Return the member that the installed job names."""
        return launchd.node_in(self._host.text(self.definition))

    def check(self) -> None:
        """Accept it: each Mac has a launchd."""

    def install(self, node: str, *, start: bool) -> list[Step]:
        """Return the steps."""
        known = launchd.Accounts({}, {})
        if self.service.user:
            known = launchd.Accounts.read(self._list(launchd.USERS), self._list(launchd.GROUPS))
        service = replace(self.service, node=node)
        try:
            return launchd.install(
                service,
                self.definition,
                self._domain,
                known,
                key=_key(self._host, service),
                start=start,
            )
        except ValueError as error:
            raise RingError(str(error)) from None

    def uninstall(self, *, purge: bool) -> list[Step]:
        """Return the steps."""
        return launchd.uninstall(self.service, self.definition, self._domain, purge=purge)

    def state(self) -> State:
        """Return how the job is."""
        said = self._host.output(launchd.question(self._domain)) or ""
        there = self._host.has(self.definition)
        return launchd.state(said, self.definition, installed=there)

    def hints(self, group: str) -> list[str]:
        """Return who may use the ring, or what the system may forbid."""
        if self.service.user:
            line = f"sudo dseditgroup -o edit -a USER -t user {group}"
            return [f"Whose programs may use the ring joins its group: {line}"]
        return [
            "macOS may keep an agent from the local network (errno 65, no route to host):",
            "allow it under Privacy & Security, Local Network, or install the machine's service.",
        ]

    def log(self) -> str:
        """Return the end of the file that launchd leads standard error to."""
        path = self.service.log
        if path is None or not self._host.has(path):
            return ""
        with self._host.place(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode(errors="replace")

    def _list(self, command: tuple[str, ...]) -> str:
        listing = self._host.output(command)
        if listing is None:
            raise RingError(f"`{' '.join(command)}` failed: the accounts cannot be read")
        return listing
