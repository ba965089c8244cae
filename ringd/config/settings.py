"""Every setting of ringd: its type, default, bounds and meaning, each stated here alone.

The loader, the commented sample and the command line read the same declarations, so a
setting is added by one line. Durations are seconds and sizes are bytes once loaded; they
are written with units (:mod:`ringd.config.units`).
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

from ringd.config.units import (
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_mode,
    parse_optional_duration,
    parse_size,
)

MAX_MEMBERS = 64

DEFAULT_PORT = 5680
"""What examples, and files brought in from other systems, use where none is named."""

Protection = Literal["off", "integrity", "encrypt"]
PROTECTIONS: tuple[Protection, ...] = get_args(Protection)
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "console", "json")

_KIB, _MIB = 1 << 10, 1 << 20
_LONGEST_SOCKET = 103 - len(".new")  # bytes of a path; macOS has 104 with the end


@dataclass(frozen=True, slots=True)
class Setting:
    """What the loader and the sample need to know of one field of a settings class.

    ``parse`` takes the TOML value and returns the field's value, or raises ValueError with
    the remedy; ``default`` is the default as it is written in the file.
    """

    parse: Callable[[object], Any]
    default: str | int | bool
    help: str


def _setting(default: str | int | bool, parse: Callable[[object], Any], text: str) -> Any:
    return field(default=parse(default), metadata={"setting": Setting(parse, default, text)})


def settings_of(section: type[Any]) -> dict[str, Setting]:
    """Return the declarations of a settings class (JoinSettings, ...) by key, in order."""
    return {item.name: item.metadata["setting"] for item in fields(section)}


def _duration(least: float, most: float = 86400.0) -> Callable[[object], float]:
    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if not least <= seconds <= most:
            span = f"{format_duration(least)} to {format_duration(most)}"
            raise ValueError(f"out of range; write a duration from {span}")
        return seconds

    return parse


def _deadline(value: object) -> float | None:
    seconds = parse_optional_duration(value)
    if seconds == 0:
        raise ValueError('no time at all; write "none" for no deadline')
    return seconds


def _duration_or_off(least: float) -> Callable[[object], float | None]:
    duration = _duration(least)

    def parse(value: object) -> float | None:
        if value == "off":
            return None
        try:
            return duration(value)
        except ValueError as error:
            raise ValueError(f'{error}, or "off"') from None

    return parse


def _size(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        size = parse_size(value)
        if not least <= size <= most:
            span = f"{format_size(least)} to {format_size(most)}"
            raise ValueError(f"out of range; write a size from {span}")
        return size

    return parse


def _automatic(parse: Callable[[object], int]) -> Callable[[object], int | None]:
    def parse_or_leave(value: object) -> int | None:
        if value == "auto":
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f'{error}, or "auto"') from None

    return parse_or_leave


def _count(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"not a whole number from {least} to {most}")
        return value

    return parse


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("write true or false, without quotes")  # noqa: TRY004  one kind of error for the loader
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text; put it in quotes")  # noqa: TRY004  one kind of error for the loader
    return value


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError("write one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return parse


def _scrape_place(value: object) -> str:
    text = _text(value)
    if not text:
        return text
    if text.startswith("/"):
        if len(os.fsencode(text)) > _LONGEST_SOCKET:
            raise ValueError(f"too long for a socket; write at most {_LONGEST_SOCKET} bytes")
        return text
    try:
        host, _ = parse_address(text)
    except ValueError as error:
        raise ValueError(f"{error}, or the full path of a socket") from None
    if not is_loopback(host):
        raise ValueError(
            "not a loopback address, and anybody who reaches another one could read it; write one "
            'such as "127.0.0.1:5690", or the full path of a socket'
        )
    return text


def _textfile(value: object) -> str:
    text = _text(value)
    if text and not (text.startswith("/") and text.endswith(".prom")):
        raise ValueError('not a full path that ends in ".prom", which is all that is collected')
    return text


def _socket_mode(value: object) -> int:
    mode = parse_mode(value)
    if mode not in (0o660, 0o600):
        raise ValueError('open to others or shut to its owner; write "0660" or "0600"')
    return mode


def _fingerprint(text: str) -> str:
    return blake2b(text.encode(), digest_size=8, person=b"ringd config").hexdigest()


@dataclass(frozen=True, slots=True)
class Member:
    """A machine of the ring.

    ``addresses`` are where its neighbours reach it, preferred first; ``listen`` are the local
    addresses that it binds, empty for those that follow from ``addresses``.
    """

    name: str
    addresses: tuple[str, ...]
    listen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RingSettings:
    """The ring: its name, its members in ring order (rank = position) and the shared key.

    ``key`` is empty in a ring without a key; it never shows in a repr. ``protect`` is one of
    ``PROTECTIONS``, and ``"off"`` without a key.
    """

    name: str
    members: tuple[Member, ...]
    key: bytes = field(default=b"", repr=False)
    insecure: bool = False
    protect: Protection = "off"

    @property
    def sealed(self) -> bool:
        """Whether the links' frames have seals, so that they need no checksums."""
        return self.protect != "off"


@dataclass(frozen=True, slots=True)
class StreamRule:
    """A table of ``[[streams]]``: connections that members may have to a port of another one."""

    to: str
    """The member on which the port is."""
    port: int
    """On its loopback."""
    sources: tuple[str, ...]
    """The members whose programs may reach it."""
    listen: int | None = None
    """The loopback port at which the daemons of these listen for that; None: they do not."""


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """``[join]``: how members find each other and notice each other's loss. Seconds."""

    backoff_first: float = _setting(
        "100ms",
        _duration(0.001, 60),
        "Wait after a first round of failed dials; doubles with each round, with jitter.",
    )
    backoff_max: float = _setting("2s", _duration(0.001, 60), "The longest such wait.")
    connect_timeout: float = _setting(
        "2s", _duration(0.01), "Time for one TCP connect to one address."
    )
    handshake_timeout: float = _setting(
        "3s", _duration(0.01), "Time for a connection to prove that it belongs to the ring."
    )
    heartbeat: float = _setting(
        "1s", _duration(0.01), "Sent on a link that was silent for this long."
    )
    lost_after: float = _setting(
        "3s",
        _duration(0.02),
        "A silent neighbour counts as lost after this: at least two heartbeats.",
    )
    prefer_after: float | None = _setting(
        "60s",
        _duration_or_off(0.01),
        "A link over a second address moves to a preferred one, between two calls, once that one "
        'has been reachable for this long; "off": it stays.',
    )
    congestion: str = _setting(
        "auto",
        _one_of("auto", "system"),
        '"auto" replaces bbr (Linux), which is slow on fast links; "system" leaves it.',
    )


@dataclass(frozen=True, slots=True)
class IpcSettings:
    """``[ipc]``: the border between programs and the daemon of their machine. Bytes."""

    socket: str = _setting("", _text, "Path of the socket; empty: the usual place.")
    group: str = _setting(
        "", _text, "The group whose users may use the socket; empty: the daemon's own group."
    )
    mode: int = _setting(
        "0660",
        _socket_mode,
        'Mode of the socket: "0660", or "0600" for the daemon\'s own user alone.',
    )
    control: str = _setting(
        "owner",
        _one_of("owner", "group"),
        'Who may disturb the ring (rejoin, reload, drain, resume, log-level): "owner", the '
        'daemon\'s user and root; "group", all who may use the socket.',
    )
    inline_limit: int = _setting(
        "64KiB",
        _size(0, 64 * _MIB),
        "Larger tensors cross in shared memory, others inside the message.",
    )
    max_message: int = _setting(
        "1GiB",
        _size(_MIB, 1 << 40),
        "The largest message, for tensors where shared memory can't be had.",
    )
    segment_budget: int | None = _setting(
        "auto",
        _automatic(_size(_MIB, 1 << 50)),
        'Shared memory that one client may hold; "auto": half of what the machine, or the '
        "daemon's cgroup, has. What is kept follows what calls use.",
    )
    segment_total: int | None = _setting(
        "auto",
        _automatic(_size(_MIB, 1 << 50)),
        'Shared memory that all programs may hold; "auto": seven eighths of what the machine, or '
        "the daemon's cgroup, has. A user may have three quarters of what other users leave.",
    )
    message_total: int | None = _setting(
        "auto",
        _automatic(_size(_MIB, 1 << 50)),
        'Bytes that may be inside messages of all programs; "auto": an eighth of the memory, and '
        "one largest message at least. A user may have three quarters of what others leave.",
    )
    connections: int | None = _setting(
        "auto",
        _automatic(_count(8, 1 << 16)),
        'Connections of all programs, of which each has two; "auto": one for each 8 MiB of memory, '
        "up to 8192. A user may have three quarters of what others leave.",
    )
    window: int = _setting(
        256,
        _count(1, 65536),
        "Calls that one client may have open at a time; more wait in the client. A longer window "
        "holds up the calls of other groups. Equal on all machines.",
    )
    reserve: int = _setting(
        64,
        _count(16, 1 << 20),
        "Open files that the daemon keeps for itself: nearer to its limit it refuses programs.",
    )


@dataclass(frozen=True, slots=True)
class OpsSettings:
    """``[ops]``: the collective calls. Seconds and bytes."""

    timeout: float | None = _setting(
        "30m", _deadline, 'Deadline of a call that names none itself; "none": wait for ever.'
    )
    eager_limit: int = _setting(
        "32KiB",
        _size(0, 512 * _KIB),
        "Tensors up to this size go round the ring in one trip; those of few ranks, each on a "
        "machine of its own, also if all but one have eight times as much together. Equal on all "
        "machines.",
    )
    chunk: int = _setting(
        "512KiB",
        _size(4 * _KIB, 2 * _MIB),
        "The pieces that larger tensors travel in. Equal on all machines.",
    )
    checksum: bool = _setting(
        False,
        _switch,
        "A CRC-32 over every piece, besides TCP's checksum; sealed links (ring.protect) need none. "
        "Equal on all machines.",
    )
    order: str = _setting(
        "any",
        _one_of("any", "rank"),
        'Floats are added in "any" order, the fastest, or by "rank". Equal on all machines.',
    )
    stall_warning: float = _setting(
        "10s", _duration(0.01), "Log which members a call waits for, once it has waited this long."
    )
    reattach: float = _setting(
        "10s",
        _duration(0.01),
        "Time for a program to return to its restarted daemon before it counts as dead.",
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``[log]``: what the daemon writes to standard error."""

    level: str = _setting(
        "info",
        _one_of(*LOG_LEVELS),
        'The least severe messages to write: "debug", "info", "warning" or "error".',
    )
    format: str = _setting(
        "auto",
        _one_of(*LOG_FORMATS),
        '"console", "json", or "auto": console on a terminal, json elsewhere.',
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """``[metrics]``: what Prometheus is told, and the probes. Seconds."""

    listen: str = _setting(
        "",
        _scrape_place,
        'Where /metrics, /livez and /readyz are served: a loopback address ("127.0.0.1:5690") or '
        "the full path of a Unix socket, with ipc.mode and ipc.group; empty: nowhere.",
    )
    textfile: str = _setting(
        "",
        _textfile,
        "A file that node_exporter's textfile collector reads, by its full path, with the ending "
        '".prom"; empty: none. Open to all users.',
    )
    interval: float = _setting(
        "15s", _duration(1, 3600), "Time from one writing of that file to the next."
    )

    @property
    def wanted(self) -> bool:
        """Whether there are any."""
        return bool(self.listen or self.textfile)


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration file, checked, as seen from the member ``node``."""

    ring: RingSettings
    join: JoinSettings
    ipc: IpcSettings
    ops: OpsSettings
    log: LogSettings
    metrics: MetricsSettings
    path: Path
    node: str
    streams: tuple[StreamRule, ...] = ()

    @property
    def rank(self) -> int:
        """The position of ``node`` in the roster."""
        return [member.name for member in self.ring.members].index(self.node)

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.ring.members)

    def member(self, name: str) -> Member:
        """Return the member called *name*; KeyError if there is none."""
        for member in self.ring.members:
            if member.name == name:
                return member
        raise KeyError(name)

    def shared_settings(self) -> str:
        """Return the settings that all machines must have alike, for members to compare."""
        ops = self.ops
        return (
            f"chunk={ops.chunk} eager={ops.eager_limit} checksum={int(ops.checksum)} "
            f"order={ops.order} window={self.ipc.window}"
        )

    def fingerprints(self) -> dict[str, str]:
        """Return a short text for each section, and for the key: alike where these are alike.

        So two readings of a file can be compared, by the same release, without a word of what is
        in it. Nothing leads back from its fingerprint to a key, which is random.
        """
        ring = asdict(self.ring)
        parts = {
            "key": ring.pop("key").hex(),
            "ring": ring,
            "streams": [asdict(rule) for rule in self.streams],
            **{name: asdict(getattr(self, name)) for name in SECTIONS},
        }
        return {name: _fingerprint(json.dumps(part)) for name, part in parts.items()}

    def listen_addresses(self, node: str) -> tuple[tuple[str, int], ...]:
        """Return the (host, port) pairs that the member *node* binds.

        Its ``listen`` where given; else its own addresses, where all of them are loopback; else
        every interface, IPv4 and IPv6, at each port of its addresses.
        """
        member = self.member(node)
        if member.listen:
            return tuple(parse_address(text) for text in member.listen)
        own = [parse_address(text) for text in member.addresses]
        if all(is_loopback(host) for host, _ in own):
            # A name is bound as the one address that it stands for on every machine.
            pairs = [("127.0.0.1" if host == "localhost" else host, port) for host, port in own]
        else:
            pairs = [(host, port) for _, port in own for host in ("0.0.0.0", "::")]  # noqa: S104  meant
        return tuple(dict.fromkeys(pairs))

    @property
    def listen_key(self) -> str:
        """The key in the file that says where this member listens."""
        key = "listen" if self.member(self.node).listen else "addresses"
        return f"ring.members[{self.rank}].{key}"


SECTIONS: dict[str, type[Any]] = {
    "join": JoinSettings,
    "ipc": IpcSettings,
    "ops": OpsSettings,
    "log": LogSettings,
    "metrics": MetricsSettings,
}


def is_loopback(host: str) -> bool:
    """Whether *host* is a literal loopback address or ``localhost``; no other name is trusted."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
