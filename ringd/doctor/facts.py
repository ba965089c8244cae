"""What is known of a machine, its daemon and its ring, before anything is concluded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """The config, as it is read here.

    Attributes:
        path: The file's.
        problems: What the daemon would refuse it for; a line each.
        node: Which member this machine is; empty while that is not known.
        keyed: Whether it names a key, which could be read.
        unloaded: The sections that say something else than what the daemon goes by, which read
            them earlier; ``"key"`` where that is another one.
        alone: Whether all members are on loopback, and so on one machine.
        obstacles: Why this member's ports cannot be listened on; none while its daemon answers.
        in_use: So, of ports that a program listens on, which may be a daemon that was not found.
    """

    path: str
    problems: tuple[str, ...] = ()
    node: str = ""
    keyed: bool = False
    unloaded: tuple[str, ...] = ()
    alone: bool = False
    obstacles: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How one address of one member is reached from here.

    Attributes:
        member: Its name.
        address: As it stands in the config.
        host: The host of it: a name, or an IP address.
        mine: Whether it is this machine's own member.
        target: The IP address; empty where the name leads nowhere.
        error: Why there is no way at all; empty where there is one.
        source: This machine's address on the way.
        interface: The one that is used; empty where none has that address.
        mtu: Of it, in bytes; 0 where it is not known.
        seconds: How long a connection took; None where none came up, or none was tried.
        refusal: Why none came up.
        errno: The system's number for that.
        full: Whether full packets arrived; None where that was not to be found out.
        ping: The command that sends full packets there.
    """

    member: str
    address: str
    host: str
    mine: bool = False
    target: str = ""
    error: str = ""
    source: str = ""
    interface: str = ""
    mtu: int = 0
    seconds: float | None = None
    refusal: str = ""
    errno: int = 0
    full: bool | None = None
    ping: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What a member's daemon says of itself.

    Attributes:
        name: The member's.
        version: Of ringd there; empty of one that does not say.
        ahead: Seconds by which its clock is ahead of the one here, at most as wrong as the answer
            took; None of one that does not say.
    """

    name: str
    version: str = ""
    ahead: float | None = None


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """This machine's daemon.

    Attributes:
        socket: Where it was found; empty if it was not.
        access: Mode and group of that, in words.
        trouble: Why it was not found; else why it did not say what the members say.
        looked: The places that were looked at.
        runtime_dir: What XDG_RUNTIME_DIR is; empty where it is not set.
        status: What it says; empty if it was not found.
        members: What all say of themselves that answered.
        silent: Those that did not.
    """

    socket: str = ""
    access: str = ""
    trouble: str = ""
    looked: tuple[str, ...] = ()
    runtime_dir: str = ""
    status: Mapping[str, Any] | None = None
    members: tuple[About, ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What of this machine a daemon and its programs use.

    Attributes:
        version: Of ringd here.
        memory: In bytes, as a cgroup allows.
        available: In bytes, without swapping; None where the system does not say.
        segments: Why shared memory cannot be had; empty where it can.
        open_files: How many a daemon that was started from here could have; None for any number.
    """

    version: str
    memory: int
    available: int | None = None
    segments: str = ""
    open_files: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it."""

    config: ConfigFacts
    daemon: DaemonFacts
    machine: MachineFacts
    ways: tuple[Way, ...] = ()
