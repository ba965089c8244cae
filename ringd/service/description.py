"""One description of the service, from which the systemd unit and the launchd job are made.

What both managers need stands here; how each of them says it stands in
:mod:`ringd.service.systemd` and :mod:`ringd.service.launchd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAME = "ringd"
SUMMARY = "ringd, collectives through a ring of daemons"

UMASK = 0o077
"""The sockets have a mode of their own (``ipc.mode``)."""

OPEN_FILES = 65536
"""Descriptors: each segment of a program's shared memory is one."""

STOP_WITHIN = 30
"""Seconds from SIGTERM to SIGKILL; calls under way and a slow disk get 5 s each."""

KEEPS_DOWN = 78
"""The exit code of a config that a person must change: a restart cannot help."""


@dataclass(frozen=True, slots=True)
class Service:
    """The daemon as a service of the machine, or of one user.

    Attributes:
        program: ``ringd``, by its full path.
        control: ``ringd-cli``, likewise.
        config: The configuration file.
        user: Whose process it is, and the group that programs must be in; empty for a service of
            the user who installs it.
        socket, state_dir: Where they are; None for the usual places of that user.
        node: Which member this machine is; empty where the host's name says it.
        needs: Directories that the program is made of, its own and its interpreter's.
        log: The file for standard error, where the service manager keeps no log itself.
        environment_file: Where an administrator may set RINGD_NODE and the like.
    """

    program: Path
    control: Path
    config: Path
    user: str = ""
    socket: Path | None = None
    state_dir: Path | None = None
    node: str = ""
    needs: tuple[Path, ...] = ()
    log: Path | None = None
    environment_file: Path | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The command line of the daemon."""
        words = [str(self.program), "--config", str(self.config)]
        if self.socket is not None:
            words += ["--socket", str(self.socket)]
        if self.state_dir is not None:
            words += ["--state-dir", str(self.state_dir)]
        return tuple(words)

    @property
    def reload_command(self) -> tuple[str, ...]:
        """What has the daemon read its config again, and waits for the outcome."""
        words = [str(self.control), "reload"]
        if self.socket is not None:
            words += ["--socket", str(self.socket)]
        return tuple(words)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the daemon; it finds no key among them."""
        variables = {"RINGD_NODE": self.node} if self.node else {}
        if self.log is not None:
            # So that it notices when the file was moved away.
            variables["RINGD_LOG_FILE"] = str(self.log)
        return variables


@dataclass(frozen=True, slots=True)
class State:
    """How the service is, in its manager's word.

    Attributes:
        definition: The unit or job file; empty if the service is not installed.
        enabled: Whether it starts with the machine, or with the user's login.
        running: Whether there is a process.
        pid: Its number; 0 without one.
        words: What the manager says about it.
    """

    definition: str = ""
    enabled: bool = False
    running: bool = False
    pid: int = 0
    words: str = ""
