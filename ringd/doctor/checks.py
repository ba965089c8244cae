"""From facts to findings, each with its remedy. One function for each subject."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ringd.doctor.facts import ConfigFacts, DaemonFacts, Facts, MachineFacts, Way

Severity = Literal["serious", "note", "good"]
_ORDER: tuple[Severity, ...] = ("serious", "note", "good")

SKEW = 1.0
"""Seconds by which clocks may differ; logs and traces are read side by side by them."""

LITTLE_MEMORY = 256 << 20
FEW_FILES = 1024

SMALL_MTU = 1280
"""Bytes that each link of the Internet carries (RFC 8200)."""

_MIB = 1 << 20

_REMEDIES = {
    errno.ECONNREFUSED: "start ringd on {member}, and see that its port is the one in the config",
    errno.EHOSTUNREACH: "see that {member} is on, and on this network",
    errno.ENETUNREACH: "connect this machine to that network, or give {member} another address",
}
_SILENT = "see that {member} is on and awake, and that no firewall drops what comes in there"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        severity: ``"serious"``: the ring or its programs cannot work as they should; ``"note"``:
            worth a look; ``"good"``.
        subject: In a word: config, key, daemon, ring, name, route, clock, ...
        text: What it is.
        remedy: What to do; empty for what is good.
    """

    severity: Severity
    subject: str
    text: str
    remedy: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Return what *facts* say, the serious first."""
    found = [
        *_config(facts.config),
        *_unloaded(facts.config, facts.daemon),
        *_daemon(facts.daemon),
        *_ring(facts.daemon),
        *_ways(facts),
        *_members(facts.daemon, facts.machine),
        *_machine(facts.machine, facts.daemon),
    ]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _config(config: ConfigFacts) -> Iterator[Finding]:
    for problem in config.problems:
        subject = "key" if ": ring.key_file" in problem else "config"
        if "Permission denied" in problem:  # the daemon's user may well have it
            text, _ = _split(problem)
            yield Finding("note", subject, text, "run this as root, or as the daemon's user")
            continue
        yield _parted("serious", subject, problem, f"correct it in {config.path}")
    for obstacle in config.obstacles:
        yield _parted("serious", "port", obstacle, "choose another port on every machine")
    for obstacle in config.in_use:
        fault, remedy = _split(obstacle)
        text = f"{fault}, unless it is this member's own ringd"
        yield Finding("note", "port", text, f"name its socket: --socket; or {remedy}")
    if config.problems:
        return
    yield Finding("good", "config", f"{config.path}: this is {config.node!r}")
    if config.keyed and "key" not in config.unloaded:
        yield Finding("good", "key", "there is one, and other users can neither read nor change it")
    elif not (config.keyed or config.alone):
        text = "there is none: whoever reaches a member's port can join, and read what is sent"
        remedy = 'make one with "ringd-cli keygen", and name it in ring.key_file on every machine'
        yield Finding("note", "key", text, remedy)


def _unloaded(config: ConfigFacts, daemon: DaemonFacts) -> Iterator[Finding]:
    """Yield what of the file the daemon does not go by yet."""
    if "key" in config.unloaded:
        text = "the ring's key is another one than the daemon goes by, which read it earlier"
        remedy = "put the same key on every machine, then run ringd-cli reload on each"
        yield Finding("note", "key", text, remedy)
    sections = [f"[{name}]" for name in config.unloaded if name != "key"]
    refused = daemon.status is not None and daemon.status["reload_error"] is not None
    if sections and not refused:  # else that is said
        verb = "differs" if len(sections) == 1 else "differ"
        text = f"{', '.join(sections)} in the file {verb} from what the daemon goes by"
        remedy = "run ringd-cli reload, which says where a restart is needed"
        yield Finding("note", "config", text, remedy)


def _daemon(daemon: DaemonFacts) -> Iterator[Finding]:
    runtime = (
        f"XDG_RUNTIME_DIR={daemon.runtime_dir}"
        if daemon.runtime_dir
        else "XDG_RUNTIME_DIR is not set"
    )
    looked = f"looked at {', '.join(daemon.looked)} ({runtime})"
    if daemon.socket:
        yield Finding("good", "socket", f"{daemon.socket}: {daemon.access}; {looked}")
        if daemon.trouble:
            text = f"what the members say of themselves is not to be had: {daemon.trouble}"
            yield _parted("note", "version", text, "run this again")
    else:
        # The trouble comes with a remedy, which is the one to follow: to start a daemon is of use
        # only where there is none.
        trouble, none, _ = daemon.trouble.partition("; start ringd")
        trouble, _, line = trouble.partition(": type ")
        if line:
            remedy = f"type {line}"
        elif none:
            remedy = "start ringd here, or name its socket: --socket"
        else:
            trouble, remedy = _split(trouble)
        yield Finding("serious", "socket", f"{trouble}; {looked}", remedy or "run this again")


def _ring(daemon: DaemonFacts) -> Iterator[Finding]:
    status = daemon.status
    if status is None:
        return
    if status["state"] == "ready":
        text = f"ready, generation {status['generation']}, {status['size']} members"
        yield Finding("good", "ring", text)
    for name, why in status["waiting_for"].items():
        yield Finding("serious", "ring", f"waits for {name}: {why}", _to_have_back(name, why))
    for namesake in status["namesakes"]:
        yield Finding(
            "serious",
            "names",
            f"a machine at {namesake['address']} is turned away: {namesake['reason']}",
            f"give one of the two that are called {namesake['name']!r} another name, in the config "
            "and with --node",
        )
    yield from _links(status)
    yield from _streams(status)
    yield from _resources(status)


def _to_have_back(name: str, why: str) -> str:
    """Return what to do about the member *name*, which the ring waits for."""
    if why.startswith("state file"):
        return f"make room on the disk of its state directory on {name}, or have it writable again"
    if "ringd-cli resume" in why:
        return f"run ringd-cli resume on {name}, or start ringd there"
    return f"see to ringd on {name}"


def _links(status: Mapping[str, Any]) -> Iterator[Finding]:
    if (hole := status["black_hole"]) is not None:
        text, remedy = f"the way to {hole['peer']}: {hole['reason']}", "lower the MTU on that way"
        yield Finding("serious", "route", text, remedy)
    for side, link in status["links"].items():
        if not link["preferred"]:
            why = link["preferred_error"] or "it was not reachable"
            text = f"the {side} link to {link['peer']} is not over its preferred address: {why}"
            yield Finding("note", "route", text, "repair that network, or list the addresses anew")


def _streams(status: Mapping[str, Any]) -> Iterator[Finding]:
    for listen in status.get("streams", {}).get("listens", ()):
        if (trouble := listen["trouble"]) is not None:
            remedy = "free that port, or write another one in [[streams]], then ringd-cli reload"
            yield _parted("note", "streams", f"streams to {listen['to']}: {trouble}", remedy)


def _resources(status: Mapping[str, Any]) -> Iterator[Finding]:
    if (refused := status["reload_error"]) is not None:
        text = f"the last reload was refused: {refused['reason']}"
        remedy = "correct the file, then ringd-cli reload"
        if "restart ringd" in refused["reason"]:  # the file is good
            remedy = "restart it, or put the old values back and run ringd-cli reload"
        yield Finding("note", "config", text, remedy)
    if status["disk"]["slow"]:
        text = "the disk of the state directory takes more than a second to flush"
        yield Finding("note", "disk", text, "see what else writes there, or move --state-dir")
    files = status["open_files"]
    text = f"the daemon has {files['count']} of {files['limit']} open files"
    if files["count"] > files["limit"] - 2 * files["reserve"]:
        remedy = "raise its limit (LimitNOFILE= of the unit), or end programs"
        yield Finding("serious", "files", text, remedy)
    else:
        yield Finding("good", "files", text)


def _ways(facts: Facts) -> Iterator[Finding]:
    reachable = {way.member for way in facts.ways if way.seconds is not None}
    for way in facts.ways:
        yield _own(way) if way.mine else _way(way, alone=facts.config.alone, others=reachable)


def _own(way: Way) -> Finding:
    where = f"{way.member} (this machine), {way.address}"
    if way.error:
        remedy = "correct the address, or wait until the network has given it to this machine"
        return Finding("serious", "route", f"{where}: {way.error}", remedy)
    if not way.interface:
        text = f"{where}: no interface here has {way.target}"
        remedy = (
            "correct the address in the config, or say with --node which member this machine is"
        )
        return Finding("serious", "route", text, remedy)
    return Finding("good", "route", f"{where}: on {way.interface}{_size(way)}")


def _way(way: Way, *, alone: bool, others: set[str]) -> Finding:
    where = f"{way.member}, {way.address}"
    if way.error:
        remedy = "correct the address, or the network's names and routes"
        severity: Severity = "note" if way.member in others else "serious"
        return Finding(severity, "route", f"{where}: {way.error}", remedy)
    if not alone and _is_loopback(way.target):
        text = f"{where}: leads to this machine itself ({way.target})"
        remedy = f"take {way.host} off the line of {way.target} in /etc/hosts, or write an address"
        return Finding("serious", "names", text, remedy)
    if not alone and way.source == way.target:
        text = f"{where}: that is an address of this machine"
        remedy = f"write an address of {way.member}, or say with --node which member this is"
        return Finding("serious", "names", text, remedy)
    over = f"over {way.interface or way.source} ({way.source}){_size(way)}"
    if way.seconds is None:
        severity = "note" if way.member in others else "serious"
        remedy = _REMEDIES.get(way.errno, _SILENT).format(member=way.member)
        return Finding(severity, "port", f"{where}, {over}: {way.refusal}", remedy)
    if way.full is False:
        text = f"{where}, {over}: small packets pass and full ones do not"
        remedy = f"lower the MTU of {way.interface or 'the interface'} here and there until this "
        return Finding("serious", "route", text, f"{remedy}passes: {way.ping}")
    if 0 < way.mtu < SMALL_MTU:
        remedy = "raise it, if all on the way carry larger packets"
        return Finding("note", "route", f"{where}, {over}: small packets cost time", remedy)
    full = ", full packets arrive" if way.full else ""
    text = f"{where}, {over}: connected in {way.seconds * 1e3:.2f} ms{full}"
    return Finding("good", "route", text)


def _members(daemon: DaemonFacts, machine: MachineFacts) -> Iterator[Finding]:
    for about in daemon.members:
        version = about.version or "a version that does not say so"
        if about.version != machine.version:
            text = f"{about.name} runs {version}, and this is {machine.version}"
            remedy = "install the same release on all machines, then restart ringd"
            yield Finding("note", "version", text, remedy)
        if about.ahead is not None and abs(about.ahead) > SKEW:
            how = "ahead of" if about.ahead > 0 else "behind"
            text = f"{about.name}'s clock is {abs(about.ahead):.1f} s {how} the one here"
            yield Finding("note", "clock", text, "let both machines take their time from NTP")
    for name in daemon.silent:
        text = f"{name} did not say its version and time"
        yield Finding("note", "version", text, f"see to ringd on {name}, then run this again")
    if daemon.members and not daemon.silent:
        versions = {about.version for about in daemon.members} | {machine.version}
        if len(versions) == 1:
            text = f"all {len(daemon.members)} members run {machine.version}"
            yield Finding("good", "version", text)
        if all(about.ahead is not None and abs(about.ahead) <= SKEW for about in daemon.members):
            yield Finding("good", "clock", f"all clocks agree within {SKEW:g} s")


def _machine(machine: MachineFacts, daemon: DaemonFacts) -> Iterator[Finding]:
    if machine.segments:
        text = f"shared memory cannot be had: {machine.segments}"
        yield Finding("serious", "memory", text, "free some, or let this user have it (ulimit)")
    else:
        yield Finding("good", "memory", "shared memory can be had")
    free = machine.available
    text = f"{machine.memory // _MIB} MiB"
    text += "" if free is None else f", {free // _MIB} MiB of them free"
    if free is not None and free < LITTLE_MEMORY:
        yield Finding("note", "memory", text, "end programs: tensors need twice their size here")
    else:
        yield Finding("good", "memory", text)
    if daemon.status is None:
        most = machine.open_files
        many = "any number of" if most is None else most
        text = f"a daemon started from here could have {many} open files"
        if most is not None and most < FEW_FILES:
            yield Finding("note", "files", text, "raise the limit: ulimit -n, or LimitNOFILE=")
        else:
            yield Finding("good", "files", text)


def _size(way: Way) -> str:
    return f", MTU {way.mtu}" if way.mtu else ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _split(text: str) -> tuple[str, str]:
    """Return the fault and the remedy of *text*, which has them around a semicolon."""
    fault, _, remedy = text.rpartition("; ")
    return (fault, remedy) if fault else (text, "")


def _parted(severity: Severity, subject: str, text: str, otherwise: str) -> Finding:
    fault, remedy = _split(text)
    return Finding(severity, subject, fault, remedy or otherwise)
