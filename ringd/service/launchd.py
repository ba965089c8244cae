"""The service as launchd knows it: the job, its user, its log's rotation, and the steps.

Keys and types are those that launchd.plist(5) documents; what launchd does not know, it ignores
without a word. The job has only what all readers of property lists read alike: texts, whole
numbers, true and false, lists and tables, and no comments.
"""

from __future__ import annotations

import plistlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringd.service.description import (
    OPEN_FILES,
    STOP_WITHIN,
    SUMMARY,
    UMASK,
    Service,
    State,
)
from ringd.service.steps import Remove, RemoveEmpty, Step, Write, config_steps, run

LABEL = "dev.ringd.ringd"
SYSTEM_JOB = Path("/Library/LaunchDaemons") / f"{LABEL}.plist"
AGENTS = Path("Library", "LaunchAgents")
"""Of a user, in the home."""

NEWSYSLOG = Path("/etc/newsyslog.d/ringd.conf")

RESTART_AFTER = 10
"""Seconds between two starts at least. launchd starts it anew also after exit 78."""

ACCOUNT_IDS = range(300, 400)
"""Uids and gids for services, among those below 500 that macOS hides from the login window."""

_BUSY_TRIES = 10
"""A job that was just ended is still there for a moment, in which launchd takes no new one."""


def job(service: Service) -> str:
    """Return the property list of *service*."""
    files = {"NumberOfFiles": OPEN_FILES}
    content: dict[str, Any] = {"Label": LABEL, "ProgramArguments": list(service.command)}
    if service.environment:
        content["EnvironmentVariables"] = service.environment
    if service.user:
        content |= {"UserName": service.user, "GroupName": service.user}
    content |= {
        "Umask": UMASK,  # as a number, written in decimal
        "WorkingDirectory": "/",
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_AFTER,
        "ExitTimeOut": STOP_WITHIN,
        # "Background" would throttle processor and network.
        "ProcessType": "Interactive",
        "SoftResourceLimits": files,
        "HardResourceLimits": files,
    }
    if service.log is not None:
        content["StandardErrorPath"] = str(service.log)
    return plistlib.dumps(content, sort_keys=False).decode()


def newsyslog(service: Service) -> str:
    """Return the newsyslog.d file: five old logs of 10 MiB, compressed; nobody is signalled.

    The daemon notices by itself that its log was moved away.
    """
    return (
        "# logfilename [owner:group] mode count size(KiB) when flags\n"
        f"{service.log} {service.user}:{service.user} 640 5 10240 * NJ\n"
    )


@dataclass(frozen=True, slots=True)
class Accounts:
    """The users and groups of the machine, by name, with their numbers."""

    users: dict[str, int]
    groups: dict[str, int]

    @classmethod
    def read(cls, users: str, groups: str) -> Accounts:
        """Return them from what :data:`USERS` and :data:`GROUPS` print."""
        return cls(_numbers(users), _numbers(groups))

    def free_id(self) -> int:
        """Return a number that is nobody's yet, for the user and the group.

        Raises:
            ValueError: There is none left for services.
        """
        taken = {*self.users.values(), *self.groups.values()}
        for number in ACCOUNT_IDS:
            if number not in taken:
                return number
        raise ValueError(
            f"all ids from {ACCOUNT_IDS[0]} to {ACCOUNT_IDS[-1]} are taken; make the user and the "
            "group with other ones by hand, then install again"
        )


USERS = ("dscl", ".", "-list", "/Users", "UniqueID")
GROUPS = ("dscl", ".", "-list", "/Groups", "PrimaryGroupID")


def _numbers(listing: str) -> dict[str, int]:
    found = (re.fullmatch(r"(\S+)\s+(-?\d+)", line.strip()) for line in listing.splitlines())
    return {match[1]: int(match[2]) for match in found if match}


def accounts(service: Service, known: Accounts) -> list[Step]:
    """Return the steps that make the user and the group of *service*, where they are missing."""
    user, group = f"/Users/{service.user}", f"/Groups/{service.user}"
    gid = known.groups.get(service.user)
    uid = known.users.get(service.user)
    fresh = known.free_id() if gid is None or uid is None else 0
    records: list[tuple[str, dict[str, str]]] = []
    if gid is None:
        gid = fresh
        records.append((group, {"PrimaryGroupID": str(gid)}))
    if uid is None:
        attributes = {
            "UniqueID": str(fresh),
            "PrimaryGroupID": str(gid),
            "NFSHomeDirectory": "/var/empty",
            "UserShell": "/usr/bin/false",
            "IsHidden": "1",
        }
        records.append((user, attributes))
    steps: list[Step] = []
    for record, attributes in records:
        steps.append(run("dscl", ".", "-create", record))
        steps += [
            run("dscl", ".", "-create", record, key, value)
            for key, value in {"RealName": SUMMARY, "Password": "*", **attributes}.items()
        ]
    return steps


def install(
    service: Service,
    job_path: Path,
    domain: str,
    known: Accounts,
    *,
    key: Path | None,
    start: bool,
) -> list[Step]:
    """Return the steps that install *service*.

    Args:
        service: What is to be installed.
        job_path: Where its property list belongs.
        domain: ``system``, or ``gui/UID`` for a user's.
        known: The machine's users and groups.
        key: The ring's key, if it is there already.
        start: Whether the daemon is to be started, or started anew.
    """
    steps: list[Step] = []
    if service.user:
        steps += accounts(service, known)
        steps += [_directory(service, path, mode) for path, mode in _directories(service)]
        steps.append(
            run(
                *("sudo", "-u", service.user, str(service.program), "--version"),
                remedy=f"the user {service.user} cannot run {service.program}: install ringd where "
                "all users can run it, such as with `sudo pipx install --global .` in a checkout",
            )
        )
        steps.append(Write(NEWSYSLOG, newsyslog(service)))
    steps += [
        *config_steps(service, key),
        Write(job_path, job(service)),
        run("plutil", "-lint", "-s", str(job_path)),
        run("launchctl", "bootout", f"{domain}/{LABEL}", optional=True),
        run("launchctl", "enable", f"{domain}/{LABEL}"),
    ]
    if start:
        log = f"its log says why: {service.log}"
        steps += [
            run(
                *("launchctl", "bootstrap", domain, str(job_path)),
                remedy=log,
                tries=_BUSY_TRIES,
            ),
            run("launchctl", "kickstart", f"{domain}/{LABEL}", remedy=log),
        ]
    return steps


def _directories(service: Service) -> list[tuple[Path, str]]:
    """Return the directories of a machine's service, the outer ones first."""
    found: list[tuple[Path, str]] = []
    if service.socket is not None:
        found.append((service.socket.parent, "0750"))
    if service.state_dir is not None:
        found.append((service.state_dir, "0750"))
    if service.log is not None:
        found.append((service.log.parent, "0750"))
    return found


def _directory(service: Service, path: Path, mode: str) -> Step:
    return run("install", "-d", "-o", service.user, "-g", service.user, "-m", mode, str(path))


def uninstall(service: Service, job_path: Path, domain: str, *, purge: bool) -> list[Step]:
    """Return the steps that take it away again; with *purge* also its user, state and log."""
    steps: list[Step] = [
        run("launchctl", "bootout", f"{domain}/{LABEL}", optional=True),
        Remove(job_path),
    ]
    if service.user:
        steps.append(Remove(NEWSYSLOG))
    if not purge:
        steps.append(RemoveEmpty(service.config.parent))
    else:
        steps.append(Remove(service.config.parent))
        if service.user:
            steps += [Remove(path) for path, _ in _directories(service)]
            steps += [
                run("dscl", ".", "-delete", f"/{kind}/{service.user}", optional=True)
                for kind in ("Users", "Groups")
            ]
        elif service.log is not None:
            steps.append(Remove(service.log))
    return steps


def question(domain: str) -> tuple[str, ...]:
    """Return the command whose output :func:`state` reads."""
    return ("launchctl", "print", f"{domain}/{LABEL}")


def state(output: str, job_path: Path, *, installed: bool) -> State:
    """Return what ``launchctl print`` said of the job at *job_path*; empty if it is not loaded."""
    values = dict(re.findall(r"^\t([a-z ]+) = (.+)$", output, re.MULTILINE))
    pid = values.get("pid", "")
    words = values.get("state", "not loaded")
    if "last exit code" in values and not pid:
        words += f", last exit code {values['last exit code']}"
    return State(
        definition=str(job_path) if installed else "",
        enabled=bool(output),
        running=bool(pid),
        pid=int(pid) if pid.isdigit() else 0,
        words=words,
    )


def node_in(text: str) -> str:
    """Return the member that a job made here names; empty if none."""
    try:
        variables = plistlib.loads(text.encode()).get("EnvironmentVariables", {})
    except (plistlib.InvalidFileException, ValueError, AttributeError):
        return ""
    return str(variables.get("RINGD_NODE", ""))
