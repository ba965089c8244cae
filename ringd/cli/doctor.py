"""``doctor``: what is wrong with this machine and its place in the ring, and what to do."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import json
import os
import queue
import resource
import socket as sockets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from ringd import __version__
from ringd.cli.ask import ERROR, ask, daemon_options, find_socket
from ringd.config import load
from ringd.config.settings import Config, is_loopback
from ringd.config.units import parse_address
from ringd.doctor.checks import Finding, examine
from ringd.doctor.facts import About, ConfigFacts, DaemonFacts, Facts, MachineFacts, Way
from ringd.errors import RingError
from ringd.host import interfaces, machine, memory, paths
from ringd.host.tcp import large_ping
from ringd.net.fullpackets import reach
from ringd.net.listener import Obstacle, obstacles
from ringd.net.oserrors import describe
from ringd.wire.border.messages import AskStatus, AskTrace

SCHEMA_VERSION = 1

CONNECT_WITHIN = 2.0
"""Seconds for a connection, and for each of the packets behind it."""

_LOOK_UP_WITHIN = 5.0
_SEGMENT = 1 << 20  # bytes, for a try

_MARKS = {"serious": "!!", "note": " !", "good": "ok"}
_COLOURS = {"serious": "red", "note": "yellow", "good": "green"}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@click.command()
@daemon_options
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_CONFIG",
    help="The config; default: the daemon's, else the one that it would use.",
)
@click.option(
    "--node", envvar="RINGD_NODE", metavar="NAME", help="Which member this is, if no daemon says."
)
def doctor(socket: Path | None, *, as_json: bool, config: Path | None, node: str | None) -> None:
    """Look for what is wrong here, and say what to do about it.

    Looked at are config and key, names, routes, interfaces with their MTU, ports, the daemon and
    its socket, clocks and versions of all members, memory and limits. Each address of the others is
    connected to and sent full packets, so that a way which loses them shows; their logs may name
    that. The ring is not disturbed.

    \b
    Exit codes: 0 nothing serious, 1 something serious, 2 wrong usage.
    Example: sudo ringd-cli doctor
    """  # noqa: D301  click wants the backspace itself
    findings = examine(gather(socket, config, node))
    if as_json:
        click.echo(json.dumps(as_answer(findings), indent=2))
    else:
        for line in lines(findings):
            click.echo(line)
    if any(found.severity == "serious" for found in findings):
        sys.exit(ERROR)


def as_answer(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return *findings* for scripts."""
    return {"schema_version": SCHEMA_VERSION, "findings": [asdict(found) for found in findings]}


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return *findings* for people, with a count at the end."""
    findings = list(findings)
    out = []
    for found in findings:
        mark = click.style(_MARKS[found.severity], fg=_COLOURS[found.severity])
        out.append(f"{mark} {found.subject:<8} {found.text}")
        if found.remedy:
            out.append(f"            -> {found.remedy}")
    counts = {mark: sum(found.severity == mark for found in findings) for mark in _MARKS}
    notes = f"{counts['note']} note{'' if counts['note'] == 1 else 's'}"
    return [*out, f"{counts['serious']} serious, {notes}, {counts['good']} good"]


def gather(socket: Path | None, path: Path | None, node: str | None) -> Facts:
    """Return what can be known of this machine, its daemon and its ring.

    Args:
        socket: The daemon's; None to look in the usual places.
        path: The config; None for the daemon's.
        node: Which member this is; None for what the daemon or the host's name says.
    """
    daemon = _daemon(socket)
    status = daemon.status or {}
    path = path or Path(status.get("config") or paths.find_config())
    uid = None
    with contextlib.suppress(OSError):  # that of the daemon's user; the socket may be gone by now
        uid = Path(daemon.socket).stat().st_uid if daemon.socket else None
    config, problems = load.look(path, status.get("node") or node, uid)
    ways: tuple[Way, ...] = ()
    blocked: list[Obstacle] = []
    if config is not None:
        ways = _ways(config)
        if not status and config.node:
            where = f"{path}: {config.listen_key}"
            blocked = [
                replace(one, text=f"{where}: {one.text}")
                for one in obstacles(config.listen_addresses(config.node))
            ]
    about = ConfigFacts(
        path=str(path),
        problems=tuple(problems),
        node="" if config is None else config.node,
        keyed=config is not None and bool(config.ring.key),
        unloaded=() if config is None or problems else _unloaded(config, status),
        alone=config is not None and _alone(config),
        obstacles=tuple(one.text for one in blocked if not one.in_use),
        in_use=tuple(one.text for one in blocked if one.in_use),
    )
    return Facts(about, daemon, _machine(), ways)


def _unloaded(config: Config, status: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what of the file is not what the daemon goes by, as far as that can be told."""
    # Another release may have other settings; another file need not be alike.
    if (status.get("version"), status.get("config")) != (__version__, str(config.path.absolute())):
        return ()
    loaded: Mapping[str, str] = status.get("fingerprints", {})
    return tuple(
        name
        for name, fingerprint in config.fingerprints().items()
        if loaded.get(name, fingerprint) != fingerprint
    )


def _daemon(socket: Path | None) -> DaemonFacts:
    looked = (socket,) if socket is not None else paths.socket_candidates()
    facts = DaemonFacts(
        looked=tuple(map(str, looked)), runtime_dir=os.environ.get("XDG_RUNTIME_DIR", "")
    )
    try:
        found = find_socket(socket)
        status = ask(found, AskStatus)
    except RingError as error:
        return replace(facts, trouble=str(error))
    facts = replace(facts, socket=str(found), access=_access(found), status=status)
    try:
        trace = ask(found, AskTrace)
    except RingError as error:
        return replace(facts, trouble=str(error))
    # By the daemon here and not by us: it may have waited for one that does not answer.
    clocks = {member["node"]: member["now"] for member in trace["members"] if "now" in member}
    here = clocks.get(status["node"])
    members = tuple(
        About(
            member["node"],
            member.get("version", ""),
            None if here is None or "now" not in member else member["now"] - here,
        )
        for member in trace["members"]
    )
    return replace(facts, members=members, silent=tuple(trace["silent"]))


def _access(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:  # removed since; the daemon makes it anew
        return f"gone by now ({error.strerror})"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"mode {status.st_mode & 0o777:04o}, group {group}"


def _machine() -> MachineFacts:
    trouble = ""
    try:
        os.close(memory.create_segment(_SEGMENT))
    except OSError as error:
        trouble = error.strerror or str(error)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MachineFacts(
        version=__version__,
        memory=machine.memory(),
        available=machine.available(),
        segments=trouble,
        open_files=None if hard == resource.RLIM_INFINITY else hard,
    )


def _alone(config: Config) -> bool:
    addresses = [address for member in config.ring.members for address in member.addresses]
    return all(is_loopback(parse_address(address)[0]) for address in addresses)


def _ways(config: Config) -> tuple[Way, ...]:
    """Return how each address of each member is reached."""
    asked = [
        Way(member.name, address, parse_address(address)[0], mine=member.name == config.node)
        for member in config.ring.members
        for address in member.addresses
    ]
    slow = "the name is looked up for too long"
    found = _at_once(asked, _look_up, _LOOK_UP_WITHIN, lambda way: [replace(way, error=slow)])
    routed = [_route(way) for ways in found for way in ways]
    return tuple(_at_once(routed, _connect, 5 * CONNECT_WITHIN, lambda way: way))


def _look_up(way: Way) -> list[Way]:
    try:
        found = sockets.getaddrinfo(way.host, None, type=sockets.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = describe(error) if isinstance(error, OSError) else str(error)
        return [replace(way, error=text)]
    targets = dict.fromkeys(_numeric(address) for *_, address in found)
    return [replace(way, target=target) for target in targets]


def _numeric(address: tuple[Any, ...]) -> str:
    """Return the IP address in a socket address, with its scope if it has one."""
    host, _, *scope = address
    return f"{host}%{scope[1]}" if scope and scope[1] else str(host)


def _route(way: Way) -> Way:
    if way.error:
        return way
    try:
        route = interfaces.route(ipaddress.ip_address(way.target))
    except OSError as error:
        return replace(way, error=describe(error))
    return replace(way, source=str(route.source), interface=route.interface, mtu=route.mtu)


def _connect(way: Way) -> Way:
    if way.error:
        return way
    if way.mine:
        own = way.target.partition("%")[0] in map(str, interfaces.addresses())
        return way if own else replace(way, interface="", mtu=0)
    _, port = parse_address(way.address)
    reached = reach(way.target, port, within=CONNECT_WITHIN)
    return replace(
        way,
        seconds=reached.seconds,
        refusal=reached.error,
        errno=reached.errno,
        full=reached.full,
        ping=large_ping(way.target),
    )


def _at_once(
    items: list[_Item],
    work: Callable[[_Item], _Result],
    within: float,
    otherwise: Callable[[_Item], _Result],
) -> list[_Result]:
    """Return *work* of each item, all at a time; *otherwise* of those that take too long."""
    done: queue.SimpleQueue[tuple[int, _Result]] = queue.SimpleQueue()

    def run(index: int, item: _Item) -> None:
        done.put((index, work(item)))

    results: dict[int, _Result] = {}
    for index, item in enumerate(items):
        threading.Thread(target=run, args=(index, item), daemon=True).start()
    deadline = time.monotonic() + within
    while len(results) < len(items):
        try:
            index, result = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        results[index] = result
    return [results[i] if i in results else otherwise(item) for i, item in enumerate(items)]
