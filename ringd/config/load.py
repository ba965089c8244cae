"""From a TOML file to a :class:`~ringd.config.settings.Config`, or to all that is wrong with it.

Every problem is one line: the file, the key, the value, what is wrong and what to write
instead. Reading goes on after a problem, so that one run shows them all.
"""

from __future__ import annotations

import difflib
import grp
import ipaddress
import json
import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from ringd.config.keyfile import is_key_text, read_key
from ringd.config.settings import (
    MAX_MEMBERS,
    PROTECTIONS,
    SECTIONS,
    Config,
    IpcSettings,
    JoinSettings,
    Member,
    Protection,
    RingSettings,
    StreamRule,
    is_loopback,
    settings_of,
)
from ringd.config.units import format_duration, format_size, parse_address
from ringd.errors import ConfigError
from ringd.wire.border.messages import ROOM_FOR_HEADERS
from ringd.wire.text import printable

MAX_ADDRESSES = 16
MAX_PORT = 65535
RING_KEYS = ("name", "key_file", "protect", "insecure", "members")
MEMBER_KEYS = ("name", "addresses", "listen")
STREAM_KEYS = ("to", "from", "listen")

_NUMBERED = re.compile(r"(.+)-([2-9]|[1-9][0-9])", re.ASCII)  # by the network: two had one name
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LONGEST_VALUE = 80
_LARGEST_FILE = 1 << 20  # bytes; 64 members with all settings take 20 KiB


class UnknownHost(ConfigError):
    """The config is good, but no member bears this host's name, which may change."""

    def __init__(self, text: str, config: Config) -> None:
        super().__init__(text)
        self.config = config
        """What stands in the file, of no member's."""


class NoMemberError(ValueError):
    """No member bears the host's name."""


def load(path: str | Path, node: str | None = None, *, hostname: str | None = None) -> Config:
    """Read and check the file at *path* for the member *node*.

    Without *node*, the member that bears this host's name (*hostname*, for tests).

    Raises:
        ConfigError: With one line for each problem; UnknownHost if the host's name is the only one.
    """
    report = _Report(Path(path))
    config, problems = _read(report, node, hostname), report.lines
    text = "\n".join(problems)
    if config is not None and report.unknown_host and len(problems) == 1:
        raise UnknownHost(text, config)
    if config is None or problems:
        raise ConfigError(text)
    return config


def look(
    path: str | Path, node: str | None = None, uid: int | None = None
) -> tuple[Config | None, list[str]]:
    """Return what the file at *path* says as far as it is good, and all that is wrong with it.

    None of a file of which nothing can be read. Its node is empty while no member bears this
    host's name. *uid* is the user whose daemon it is for; None for this process's.
    """
    report = _Report(Path(path), uid)
    return _read(report, node, None), report.lines


def ring_problems(path: str | Path, name: str, members: Iterable[Member]) -> list[str]:
    """Return what would be wrong with a file at *path* for this ring, its key aside."""
    report = _Report(Path(path))
    tables = [{"name": member.name, "addresses": list(member.addresses)} for member in members]
    _ring(report, {"name": name, "insecure": True, "members": tables})
    return report.lines


def choose_node(names: Sequence[str], node: str | None, hostname: str) -> str:
    """Return which of the members *names* this machine is.

    *node* if given; else the member named like the host in full, else the one whose name has
    the same first label (``mini`` on ``mini.local``). Case does not count for host names. Where
    two hosts have one name, or seem to, networks number them: ``mini-2`` is ``mini`` too, if no
    member's name is one with a number.

    Raises:
        NoMemberError: No member bears the host's name.
        ValueError: There is no member *node*, or several bear the host's name; the text says so.
    """
    if node is not None:
        if node in names:
            return node
        raise ValueError(
            f'no member is named "{node}" (--node, RINGD_NODE)'
            f"{_did_you_mean(node, names)}; name one of {', '.join(names)}"
        )
    host = hostname.casefold().rstrip(".")
    full = [name for name in names if name.casefold() == host]
    short = [name for name in names if _first_label(name) == _first_label(host)]
    found = full or short or _numbered(names, _first_label(host))
    if len(found) == 1:
        return found[0]
    fit = f"several members ({', '.join(found)}) fit" if found else "no member bears"
    raise (ValueError if found else NoMemberError)(
        f'{fit} this host\'s name, "{hostname}"; say with --node or RINGD_NODE which one it is: '
        f"{', '.join(names)}"
    )


def bears(name: str, hostname: str) -> bool:
    """Whether the member *name* is called like the host, its domain aside."""
    return _first_label(name) == _first_label(hostname)


def _numbered(names: Sequence[str], label: str) -> list[str]:
    """Return the members that a network may have renamed to *label*."""
    match = _NUMBERED.fullmatch(label)
    if match is None:
        return []
    base = match[1]
    labels = [_first_label(name) for name in names]
    if any(re.fullmatch(re.escape(base) + "-[0-9]+", other) for other in labels):
        return []  # the members have numbers themselves
    return [name for name, other in zip(names, labels, strict=True) if other == base]


class _Report:
    """Collects the problems of one file."""

    def __init__(self, path: Path, uid: int | None = None) -> None:
        self.path = path
        self.uid = uid
        """Of the daemon that is to read the key; None for this process's."""
        self.lines: list[str] = []
        self.unknown_host = False
        """Whether no member bears this host's name."""

    def add(self, key: str, problem: object, value: object = None) -> None:
        shown = "" if value is None else f" = {_show(value)}"
        self.lines.append(f"{self.path}: {key}{shown}: {problem}")

    def unknown_keys(self, prefix: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        # Without the value: somebody may have put the key itself into the file.
        known = tuple(known)
        for key in table:
            if key not in known:
                remedy = _did_you_mean(key, known) or f"; known here: {', '.join(known)}"
                self.add(prefix + key, f"unknown key{remedy}")


def _read(report: _Report, node: str | None, hostname: str | None) -> Config | None:
    document = _parse(report)
    if document is None:
        return None
    report.unknown_keys("", document, ("ring", "streams", *SECTIONS))
    ring = _ring(report, document.get("ring"))
    streams = _streams(report, document.get("streams", []), ring.members)
    sections = {name: _section(report, name, document.get(name, {})) for name in SECTIONS}
    me = ""
    names = [member.name for member in ring.members if member.name]
    if names:
        try:
            me = choose_node(names, node, hostname or socket.gethostname())
        except NoMemberError as error:
            report.unknown_host = True
            report.add("ring.members", error)
        except ValueError as error:
            report.add("ring.members", error)
    return Config(ring=ring, path=report.path, node=me, streams=streams, **sections)


def _parse(report: _Report) -> dict[str, Any] | None:
    text = ""
    try:
        text = _read_text(report.path)
        return tomli.loads(text)
    except FileNotFoundError:
        remedy = 'no such file; make one with "ringd-cli init", or name it with --config'
        report.lines.append(f"{report.path}: {remedy}")
    except OSError as error:
        report.lines.append(
            f"{report.path}: cannot be read: {error.strerror}; name a readable file with --config"
        )
    except _NoConfigError as error:
        report.lines.append(f"{report.path}: {error}; name another with --config")
    except UnicodeDecodeError as error:
        report.lines.append(f"{report.path}: not UTF-8 (byte {error.start}); save it as UTF-8")
    except tomli.TOMLDecodeError as error:
        line = _line_of(text, str(error))
        report.lines.append(f"{report.path}: not TOML: {error}{line}; correct it there")
    except RecursionError:  # the parser follows each bracket and each dot with a call of its own
        report.lines.append(f"{report.path}: nested too deeply; no setting needs that; correct it")
    except ValueError as error:  # such as a number of more digits than Python converts
        report.lines.append(f"{report.path}: a value that cannot be read: {error}; correct it")
    return None


class _NoConfigError(Exception):
    """What lies there cannot be a config."""


def _read_text(path: Path) -> str:
    """Return the text of a regular file that is not too large.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        _NoConfigError: It is something else, at which a read might wait or never end.
    """
    # Not blocking, so that a FIFO in the file's place cannot hold up a reload.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _NoConfigError("is not a regular file")
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise _NoConfigError(f"is larger than {_LARGEST_FILE >> 20} MiB")
    return data.decode("utf-8-sig")  # some editors mark the beginning


def _line_of(text: str, error: str) -> str:
    """Return the line of *text* that tomli's *error* names, such as a key that comes twice."""
    found = re.search(r"at line (\d+)", error)
    if found is None:
        return ""
    lines = text.splitlines()
    rest = lines[int(found[1]) - 1 :]  # none, if the file ends too early
    return f": {printable(rest[0].strip(), _LONGEST_VALUE)}" if rest else ""


def _ring(report: _Report, table: object) -> RingSettings:
    if not isinstance(table, dict):
        report.add("ring", 'missing; begin with [ring] and name = "..."', table)
        return RingSettings("", ())
    report.unknown_keys("ring.", table, RING_KEYS)
    name = _name(report, "ring.name", table.get("name"))
    members = _members(report, table.get("members"))
    insecure = table.get("insecure", False)
    if not isinstance(insecure, bool):
        report.add("ring.insecure", "write true or false, without quotes", insecure)
        insecure = False
    key = b""
    if "key_file" in table:
        key = _key(report, table["key_file"])
    elif not insecure:
        _check_loopback(report, members)
    protect = _protect(report, table)
    return RingSettings(name, members, key, insecure, protect)


def _key(report: _Report, value: object) -> bytes:
    if not isinstance(value, str) or not value:
        report.add("ring.key_file", 'not the name of a file; write "ring.key"', value)
    elif is_key_text(value):
        report.add("ring.key_file", 'looks like a key; write the name of its file: "ring.key"')
    else:
        try:
            return read_key(report.path.parent / value, report.uid)
        except ValueError as error:
            report.add("ring.key_file", error, value)
    return b""


def _protect(report: _Report, table: Mapping[str, Any]) -> Protection:
    """Return what is to be done to the frames of the links."""
    has_key = "key_file" in table
    value = table.get("protect", "integrity" if has_key else "off")
    if value != "off" and value in PROTECTIONS and not has_key:
        report.add("ring.protect", 'needs a key: add ring.key_file, or write "off"', value)
        return "off"
    for choice in PROTECTIONS:
        if value == choice:
            return choice
    choices = ", ".join(f'"{choice}"' for choice in PROTECTIONS)
    report.add("ring.protect", f"write one of {choices}", value)
    return "off"


def _check_loopback(report: _Report, members: Iterable[Member]) -> None:
    for member in members:
        for address in (*member.addresses, *member.listen):
            if not is_loopback(parse_address(address)[0]):
                report.add(
                    "ring.key_file",
                    f'missing, and "{address}" of {member.name} is not a loopback address; make a '
                    'key with "ringd-cli keygen", or write insecure = true under [ring] to let '
                    "anybody on that network into the ring",
                )
                return


def _members(report: _Report, tables: object) -> tuple[Member, ...]:
    if not isinstance(tables, list) or not tables:
        report.add("ring.members", "missing; add a [[ring.members]] table for each machine", tables)
        return ()
    if len(tables) > MAX_MEMBERS:
        report.add("ring.members", f"{len(tables)} members; at most {MAX_MEMBERS}: split the ring")
    members = []
    names: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for index, table in enumerate(tables):
        key = f"ring.members[{index}]"
        if not isinstance(table, dict):
            report.add(key, "not a table; write [[ring.members]]", table)
            continue
        report.unknown_keys(key + ".", table, MEMBER_KEYS)
        name = _name(report, key + ".name", table.get("name"))
        own = _addresses(report, key + ".addresses", table.get("addresses"), addresses)
        listen: tuple[str, ...] = ()
        if "listen" in table:
            listen = _addresses(report, key + ".listen", table["listen"], {}, bind=True)
        if name:
            _check_double(report, key + ".name", name, name.casefold(), names)
        members.append(Member(name, own, listen))
    return tuple(members)


def _streams(report: _Report, tables: object, members: Iterable[Member]) -> tuple[StreamRule, ...]:
    if not isinstance(tables, list):
        report.add("streams", "not a list of tables; write [[streams]]", tables)
        return ()
    names = [member.name for member in members if member.name]
    rules = []
    taken: dict[str, str] = {}
    for index, table in enumerate(tables):
        key = f"streams[{index}]"
        if not isinstance(table, dict):
            report.add(key, "not a table; write [[streams]]", table)
            continue
        report.unknown_keys(key + ".", table, STREAM_KEYS)
        rule = _stream(report, key, table, names)
        if rule is None:
            continue
        for source in rule.sources if rule.listen is not None else ():
            canonical = f"{source} {rule.listen}"
            _check_double(report, key + ".listen", f"{rule.listen} on {source}", canonical, taken)
        rules.append(rule)
    return tuple(rules)


def _stream(
    report: _Report, key: str, table: Mapping[str, Any], names: Sequence[str]
) -> StreamRule | None:
    """Return what a table of streams says; None if that is wrong, which is reported."""
    before = len(report.lines)
    to, port = _member_port(report, key + ".to", table.get("to"), names)
    sources = table.get("from", [name for name in names if name != to])
    if not isinstance(sources, list) or not sources:
        report.add(key + ".from", "write a list of members, or omit this for all others", sources)
        sources = []
    for source in sources:
        if source == to:
            report.add(key + ".from", "a machine needs no stream to itself; leave it out", to)
        elif source not in names:
            report.add(key + ".from", _no_member(source, names), source)
    listen = table.get("listen")
    if listen is not None and not _is_port(listen):
        report.add(key + ".listen", f"not a port; write a number from 1 to {MAX_PORT}", listen)
    if len(report.lines) > before:
        return None
    return StreamRule(to, port, tuple(dict.fromkeys(sources)), listen)


def _member_port(report: _Report, key: str, value: object, names: Sequence[str]) -> tuple[str, int]:
    name, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and port.isascii() and port.isdecimal() and _is_port(int(port[:6]))):
        example = f"{names[0] if names else 'studio'}:5000"
        report.add(key, f'write a member and a port of its loopback: "{example}"', value)
    elif name not in names:
        report.add(key, _no_member(name, names), value)
    else:
        return name, int(port)
    return "", 0


def _no_member(name: object, names: Sequence[str]) -> str:
    hint = _did_you_mean(name, names) if isinstance(name, str) else ""
    return f"no member is named so{hint}; name one of {', '.join(names)}"


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PORT


def _addresses(
    report: _Report, key: str, values: object, seen: dict[str, str], *, bind: bool = False
) -> tuple[str, ...]:
    if not isinstance(values, list) or not 0 < len(values) <= MAX_ADDRESSES:
        remedy = f'write a list of 1 to {MAX_ADDRESSES} addresses: ["10.0.0.1:5680"]'
        report.add(key, "missing; " + remedy if values is None else remedy, values)
        return ()
    good = []
    for index, value in enumerate(values):
        here = f"{key}[{index}]"
        try:
            host, port = parse_address(value)
            _check_host_use(host, bind=bind)
        except ValueError as error:
            report.add(here, error, value)
            continue
        canonical = f"{host.casefold().rstrip('.')} {port}"
        if _check_double(report, here, value, canonical, seen):
            good.append(value)
    return tuple(good)


def _check_host_use(host: str, *, bind: bool) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if bind:
            raise ValueError(
                'a name cannot be bound; write an IP address of that machine, or "0.0.0.0"'
            ) from None
        return
    if address.is_unspecified and not bind:
        raise ValueError("nobody can dial this; write an address that the neighbours can reach")


def _check_double(
    report: _Report, key: str, value: str, canonical: str, seen: dict[str, str]
) -> bool:
    first = seen.setdefault(canonical, key)
    if first != key:
        report.add(key, f"the same as {first}; each stands once in the file", value)
    return first == key


def _name(report: _Report, key: str, value: object) -> str:
    if value is None:
        report.add(key, 'missing; write name = "..."')
    elif not isinstance(value, str) or not _NAME.fullmatch(value):
        report.add(key, "not a name; write 1 to 63 letters, digits and . _ - between them", value)
    else:
        return value
    return ""


def _section(report: _Report, section: str, table: object) -> Any:
    settings = SECTIONS[section]
    if not isinstance(table, dict):
        report.add(section, f"not a table; write [{section}] and its keys below", table)
        return settings()
    known = settings_of(settings)
    before = len(report.lines)
    report.unknown_keys(section + ".", table, known)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in known:
            try:
                values[key] = known[key].parse(value)
            except ValueError as error:
                report.add(f"{section}.{key}", error, value)
    loaded = settings(**values)
    if len(report.lines) == before:
        if isinstance(loaded, JoinSettings):
            _check_join(report, loaded)
        elif isinstance(loaded, IpcSettings):
            _check_ipc(report, loaded)
    return loaded


def _check_join(report: _Report, join: JoinSettings) -> None:
    if join.lost_after < 2 * join.heartbeat:
        report.add(
            "join.lost_after",
            f"less than two heartbeats; write at least {format_duration(2 * join.heartbeat)}, or "
            "a shorter join.heartbeat",
            format_duration(join.lost_after),
        )
    if join.backoff_max < join.backoff_first:
        report.add(
            "join.backoff_max",
            f"less than join.backoff_first, {format_duration(join.backoff_first)}; raise it, or "
            "lower that",
            format_duration(join.backoff_max),
        )


def _check_ipc(report: _Report, ipc: IpcSettings) -> None:
    if ipc.socket and not Path(ipc.socket).is_absolute():
        report.add("ipc.socket", 'not a full path; begin it with "/"', ipc.socket)
    if ipc.group:
        try:
            grp.getgrnam(ipc.group)
        except KeyError:
            report.add(
                "ipc.group", "no such group on this machine; make it, or omit this", ipc.group
            )
    for key, bound, what in (
        (
            "max_message",
            ipc.inline_limit + ROOM_FOR_HEADERS,
            f"ipc.inline_limit and {_whole(ROOM_FOR_HEADERS)} beside it",
        ),
        # A call needs a segment for its input and one for its result.
        ("segment_budget", 2 * ipc.inline_limit, "twice ipc.inline_limit"),
        # One user may have three quarters, and one program what one may.
        (
            "segment_total",
            -(-4 * (ipc.segment_budget or 2 * ipc.inline_limit) // 3),
            "four thirds of ipc.segment_budget",
        ),
        ("message_total", 2 * ipc.max_message, "twice ipc.max_message"),
    ):
        size = getattr(ipc, key)
        if size is not None and size < bound:
            problem = f"less than {what}; write at least {_whole(bound)}"
            report.add(f"ipc.{key}", problem, format_size(size))


def _whole(size: int) -> str:
    """Return *size* as it can be written in the file, without a fraction."""
    units = ((20, "MiB"), (10, "KiB"), (0, "B"))
    return next(f"{size >> bits}{unit}" for bits, unit in units if not size % (1 << bits))


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _first_label(name: str) -> str:
    return name.casefold().partition(".")[0]


def _show(value: object) -> str:
    try:
        text = _text_of(value)
    except (ValueError, RecursionError):  # more digits, or deeper nested, than Python writes
        return "(too long to show)"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _text_of(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # a date, which JSON has not
        return str(value)
