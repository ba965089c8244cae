"""What the doctor concludes: each fault has its finding, with a remedy; what is well has none."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from ringd.cli import doctor
from ringd.cli.doctor import lines
from ringd.doctor.checks import FEW_FILES, LITTLE_MEMORY, Finding, examine
from ringd.doctor.facts import About, ConfigFacts, DaemonFacts, Facts, MachineFacts, Way
from ringd.errors import RingError
from ringd.wire.border.messages import AskTrace
from tests.test_membership_linkstate import table_of, up

STATUS: dict[str, Any] = {
    "state": "ready",
    "generation": 3,
    "size": 2,
    "waiting_for": {},
    "namesakes": [],
    "black_hole": None,
    "reload_error": None,
    "disk": {"slow": False},
    "open_files": {"count": 40, "limit": 65536, "reserve": 64},
    "links": {"left": {"peer": "mini", "preferred": True, "preferred_error": None}},
}
OWN = Way("studio", "10.0.0.1:5680", "10.0.0.1", mine=True, target="10.0.0.1")
OWN = replace(OWN, source="10.0.0.1", interface="eth0", mtu=1500)
OTHER = Way("mini", "mini.local:5680", "mini.local", target="10.0.0.2", source="10.0.0.1")
OTHER = replace(OTHER, interface="eth0", mtu=1500, seconds=0.0004, full=True)
WELL = Facts(
    ConfigFacts("/etc/ringd/ringd.toml", node="studio", keyed=True),
    DaemonFacts(
        socket="/run/ringd/ringd.sock",
        access="mode 0660, group ringd",
        looked=("/run/ringd/ringd.sock",),
        status=STATUS,
        members=(About("studio", "1", 0.0), About("mini", "1", 0.2)),
    ),
    MachineFacts("1", memory=8 << 30, available=4 << 30),
    (OWN, OTHER),
)


def daemon(**changes: Any) -> Facts:
    """Return facts in which the daemon's are other ones."""
    return replace(WELL, daemon=replace(WELL.daemon, **changes))


def status(**changes: Any) -> Facts:
    """Return facts in which the daemon says something else."""
    return daemon(status=STATUS | changes)


def way(**changes: Any) -> Facts:
    """Return facts in which another member is reached in another way."""
    return replace(WELL, ways=(OWN, replace(OTHER, **changes)))


def unreachable(number: int, refusal: str = "why") -> Facts:
    """Return facts in which nothing listens at another member's address."""
    return way(seconds=None, full=None, errno=number, refusal=refusal)


def config(*problems: str) -> Facts:
    """Return facts with a config that has faults."""
    return replace(WELL, config=replace(WELL.config, problems=problems))


def machine(**changes: Any) -> Facts:
    """Return facts of another machine."""
    return replace(WELL, machine=replace(WELL.machine, **changes))


def test_what_is_well_is_said_to_be() -> None:
    """Nothing is serious or noted, and each subject is named with what was seen."""
    found = examine(WELL)
    assert {finding.severity for finding in found} == {"good"}
    texts = click.unstyle("\n".join(lines(found)))
    for part in (
        "ok config   /etc/ringd/ringd.toml: this is 'studio'",
        "/run/ringd/ringd.sock: mode 0660, group ringd; looked at /run/ringd/ringd.sock (XDG_RUN",
        "ok ring     ready, generation 3, 2 members",
        "studio (this machine), 10.0.0.1:5680: on eth0, MTU 1500",
        "mini, mini.local:5680, over eth0 (10.0.0.1), MTU 1500: connected in 0.40 ms, full packets",
        "all 2 members run 1",
        "all clocks agree within 1 s",
        "ok key      there is one, and other users can neither read nor change it",
        "ok files    the daemon has 40 of 65536 open files",
        "ok memory   shared memory can be had",
        "8192 MiB, 4096 MiB of them free",
        "0 serious, 0 notes, 11 good",
    ):
        assert part in texts


NAMESAKE = {"name": "mini", "address": "10.0.0.9:1", "reason": "another machine bears the name"}
HOLE = {"peer": "mini", "reason": "perhaps small packets pass"}
LISTEN = {"port": 15000, "to": "mini:5000", "trouble": None}
DRAINED = table_of(up(0), up(1, draining=True), size=2).missing()[1]

FAULTS = {
    "config": (
        config("f: join.heartbeat: not a duration; write 2s"),
        ("serious", "config", "join.heartbeat: not a duration", "write 2s"),
    ),
    "key's mode": (
        config('f: ring.key_file = "k": open to others (mode 0644); run "chmod 600 k"'),
        ("serious", "key", "open to others (mode 0644)", 'run "chmod 600 k"'),
    ),
    "no key": (
        replace(WELL, config=replace(WELL.config, keyed=False)),
        ("note", "key", "whoever reaches a member's port can join", "ringd-cli keygen"),
    ),
    "another key than the daemon's": (
        replace(WELL, config=replace(WELL.config, unloaded=("key",))),
        ("note", "key", "another one than the daemon goes by", "ringd-cli reload on each"),
    ),
    "a file that was changed": (
        replace(WELL, config=replace(WELL.config, unloaded=("join",))),
        ("note", "config", "[join] in the file differs from what", "run ringd-cli reload"),
    ),
    "a file that was changed, and refused": (
        replace(
            status(reload_error={"reason": "bad"}),
            config=replace(WELL.config, unloaded=("ring", "ops")),
        ),
        ("note", "config", "the last reload was refused: bad", "ringd-cli reload"),
    ),
    "a key that only the daemon may read": (
        config('f: ring.key_file = "k": cannot be read: Permission denied; let the user own it'),
        ("note", "key", "cannot be read: Permission denied", "run this as root"),
    ),
    "a config that only the daemon may read": (
        config("f: cannot be read: Permission denied; name a readable file with --config"),
        ("note", "config", "f: cannot be read: Permission denied", "run this as root"),
    ),
    "port taken": (
        replace(WELL, config=replace(WELL.config, obstacles=("cannot listen; stop the program",))),
        ("serious", "port", "cannot listen", "stop the program"),
    ),
    "port in use": (
        replace(WELL, config=replace(WELL.config, in_use=("cannot listen; stop the program",))),
        ("note", "port", "cannot listen, unless it is this member's own ringd", "stop the program"),
    ),
    "no daemon": (
        daemon(socket="", status=None, members=(), trouble="none; start ringd", runtime_dir="/x"),
        (
            "serious",
            "socket",
            "none; looked at /run/ringd/ringd.sock (XDG_RUNTIME_DIR=/x",
            "start ringd here",
        ),
    ),
    "no permission": (
        daemon(socket="", status=None, members=(), trouble="it is for group 'ringd': type `x`"),
        ("serious", "socket", "it is for group 'ringd'; looked at", "type `x`"),
    ),
    "no permission, nor is there a line to type": (
        daemon(socket="", status=None, members=(), trouble="no permission; set ipc.group"),
        ("serious", "socket", "no permission; looked at", "set ipc.group"),
    ),
    "something else in the socket's place": (
        daemon(socket="", status=None, members=(), trouble="s is not a socket; move it away"),
        ("serious", "socket", "s is not a socket; looked at", "move it away"),
    ),
    "a daemon that is stuck": (
        daemon(socket="", status=None, members=(), trouble="no answer; it is stuck: restart it"),
        ("serious", "socket", "no answer; looked at", "it is stuck: restart it"),
    ),
    "a daemon that is starting": (
        daemon(socket="", status=None, members=(), trouble="the daemon is starting: it waits"),
        ("serious", "socket", "the daemon is starting: it waits; looked at", "run this again"),
    ),
    "a member is missing": (
        status(state="forming", waiting_for={"mini": "timed out"}),
        ("serious", "ring", "waits for mini: timed out", "see to ringd on mini"),
    ),
    "a member without room": (
        status(state="forming", waiting_for={"mini": "state file: s: No space left on device"}),
        ("serious", "ring", "waits for mini: state file: s: No space", "make room on the disk"),
    ),
    "a member that is drained": (
        status(state="forming", waiting_for={"mini": DRAINED}),
        ("serious", "ring", "waits for mini: shutting down, or", "run ringd-cli resume on mini"),
    ),
    "two under one name": (
        status(namesakes=[NAMESAKE]),
        ("serious", "names", "a machine at 10.0.0.9:1 is turned away", "another name"),
    ),
    "black hole, as the daemon suspects": (
        status(black_hole=HOLE),
        ("serious", "route", "the way to mini: perhaps small packets pass", "MTU"),
    ),
    "black hole, as probed": (
        way(full=False, ping="ping -s 1472 10.0.0.2"),
        ("serious", "route", "small packets pass and full ones do not", "ping -s 1472 10.0.0.2"),
    ),
    "second-best address": (
        status(links={"right": {"peer": "mini", "preferred": False, "preferred_error": "off"}}),
        ("note", "route", "the right link to mini is not over its preferred address: off", "anew"),
    ),
    "reload refused": (
        status(reload_error={"reason": "bad"}),
        ("note", "config", "the last reload was refused: bad", "ringd-cli reload"),
    ),
    "a reload that wants a restart": (
        status(reload_error={"reason": "ipc.mode changed: restart ringd to use the new values"}),
        ("note", "config", "ipc.mode changed: restart", "restart it, or put the old values back"),
    ),
    "a port that streams cannot have": (
        status(streams={"listens": [LISTEN | {"trouble": "cannot listen: in use"}, LISTEN]}),
        ("note", "streams", "streams to mini:5000: cannot listen: in use", "[[streams]]"),
    ),
    "no trace": (
        daemon(members=(), trouble="it hangs; see its log"),
        ("note", "version", "what the members say of themselves is not to be had: it", "its log"),
    ),
    "slow disk": (status(disk={"slow": True}), ("note", "disk", "more than a second", "state-dir")),
    "few files left": (
        status(open_files={"count": 900, "limit": 1024, "reserve": 64}),
        ("serious", "files", "the daemon has 900 of 1024 open files", "LimitNOFILE"),
    ),
    "a name that is not known": (
        way(target="", error="cannot resolve the name", seconds=None),
        ("serious", "route", "mini, mini.local:5680: cannot resolve", "correct the address"),
    ),
    "a name that leads to loopback": (
        way(target="127.0.1.1"),
        ("serious", "names", "leads to this machine itself (127.0.1.1)", "/etc/hosts"),
    ),
    "another member's address here": (
        way(target="10.0.0.1"),
        ("serious", "names", "that is an address of this machine", "--node"),
    ),
    "refused": (
        unreachable(errno.ECONNREFUSED, "connection refused (errno 111)"),
        ("serious", "port", "connection refused (errno 111)", "start ringd on mini"),
    ),
    "no route": (
        unreachable(errno.EHOSTUNREACH),
        ("serious", "port", "why", "see that mini is on, and on this network"),
    ),
    "no network": (
        unreachable(errno.ENETUNREACH),
        ("serious", "port", "why", "connect this machine to that network"),
    ),
    "silent": (unreachable(0), ("serious", "port", "why", "no firewall drops what comes in there")),
    "small packets": (
        way(mtu=576),
        ("note", "route", "MTU 576: small packets cost time", "raise it"),
    ),
    "own address not here": (
        replace(WELL, ways=(replace(OWN, interface=""), OTHER)),
        ("serious", "route", "no interface here has 10.0.0.1", "correct the address"),
    ),
    "own name not known": (
        replace(WELL, ways=(replace(OWN, error="cannot resolve the name"), OTHER)),
        ("serious", "route", "studio (this machine), 10.0.0.1:5680: cannot resolve", "correct"),
    ),
    "versions": (
        daemon(members=(About("studio", "1", 0.0), About("mini", "0.9", 0.0))),
        ("note", "version", "mini runs 0.9, and this is 1", "install the same release"),
    ),
    "clocks": (
        daemon(members=(About("studio", "1", 0.0), About("mini", "1", -90.0))),
        ("note", "clock", "mini's clock is 90.0 s behind the one here", "NTP"),
    ),
    "no answer": (
        daemon(members=(About("studio", "1", 0.0),), silent=("mini",)),
        ("note", "version", "mini did not say its version and time", "see to ringd on mini"),
    ),
    "no shared memory": (
        machine(segments="Operation not permitted"),
        ("serious", "memory", "shared memory cannot be had: Operation not permitted", "free some"),
    ),
    "little memory": (
        machine(available=LITTLE_MEMORY - 1),
        ("note", "memory", "8192 MiB, 255 MiB of them free", "end programs"),
    ),
    "few files for a daemon to come": (
        replace(
            daemon(socket="", status=None, members=(), trouble="no daemon here"),
            machine=replace(WELL.machine, open_files=FEW_FILES - 1),
        ),
        ("note", "files", "could have 1023 open files", "ulimit -n"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault(fault: str) -> None:
    """It is found, with its severity, its subject and a remedy; nothing else is found with it."""
    facts, (severity, subject, text, *remedy) = FAULTS[fault]
    bad = [finding for finding in examine(facts) if finding.severity != "good"]
    found = [finding for finding in bad if text in finding.text]
    assert [(one.severity, one.subject) for one in found] == [(severity, subject)]
    assert all(word in found[0].remedy for word in remedy)
    assert "start ringd here" not in found[0].remedy or fault == "no daemon"
    assert all(finding.remedy for finding in bad)
    assert bad == found or not facts.daemon.socket  # without a daemon there are two


def test_a_status_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemon says of itself stands, also where it cannot say what the others say."""

    def ask(_socket: Path, question: type, *_: object) -> dict[str, Any]:
        if question is AskTrace:
            raise RingError("it takes too long")
        return STATUS

    monkeypatch.setattr(doctor, "find_socket", lambda path: path)
    monkeypatch.setattr(doctor, "ask", ask)
    (tmp_path / "s").touch()
    known = doctor.gather(tmp_path / "s", tmp_path / "none.toml", None).daemon
    assert (known.status, known.trouble) == (STATUS, "it takes too long")
    assert known.socket == str(tmp_path / "s")
    (tmp_path / "s").unlink()  # as it may be at any moment
    known = doctor.gather(tmp_path / "s", tmp_path / "none.toml", None).daemon
    assert "gone by now" in known.access


def test_an_address_too_many() -> None:
    """Of a member that is reached over another address, one that is not is worth a note."""
    second = replace(OTHER, address="10.9.0.2:5680", seconds=None, refusal="timed out")
    bad = [f for f in examine(replace(WELL, ways=(OWN, OTHER, second))) if f.severity != "good"]
    assert [(finding.severity, finding.subject) for finding in bad] == [("note", "port")]


def test_a_ring_on_one_machine() -> None:
    """There loopback is where the members are."""
    local = replace(OTHER, target="127.0.0.1", source="127.0.0.1", interface="lo")
    facts = replace(WELL, config=replace(WELL.config, alone=True), ways=(OWN, local))
    assert {finding.severity for finding in examine(facts)} == {"good"}


def test_the_serious_comes_first() -> None:
    """What is good is last, and the count says how many there are of each."""
    facts = replace(unreachable(errno.ECONNREFUSED), machine=replace(WELL.machine, available=1))
    severities = [finding.severity for finding in examine(facts)]
    assert severities == sorted(severities, key=["serious", "note", "good"].index)
    assert lines(examine(facts))[-1] == "1 serious, 1 note, 9 good"
    assert lines([Finding("note", "clock", "late", "NTP")]) == [
        "\x1b[33m !\x1b[0m clock    late",
        "            -> NTP",
        "0 serious, 1 note, 0 good",
    ]
