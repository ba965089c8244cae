"""The service as systemd knows it: the unit, its user, and the steps that install them.

systemd.exec(5) explains the sandbox. Left out of it: PrivateUsers, which hides the uid and gid of
clients; PrivateNetwork; ProtectHostname, under which a name that the host gets later is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ringd.service.description import (
    KEEPS_DOWN,
    NAME,
    OPEN_FILES,
    STOP_WITHIN,
    SUMMARY,
    UMASK,
    Service,
    State,
)
from ringd.service.steps import Remove, RemoveEmpty, Run, Step, Write, config_steps, run

UNIT = f"{NAME}.service"
SYSTEM_UNIT = Path("/etc/systemd/system") / UNIT
SYSUSERS = Path("/etc/sysusers.d") / f"{NAME}.conf"

PACKAGED_UNIT = Path("/usr/lib/systemd/system") / UNIT
"""Where a package of the distribution has its own."""

WATCHDOG = 30
"""Seconds without a sign of progress after which the daemon is ended and started anew."""

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))

_FOR_ALL = (
    ("NoNewPrivileges", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    # ZeroMQ sets its threads' (ordinary) scheduling and ends the process if that is refused.
    ("SystemCallFilter", "sched_setscheduler"),
    ("SystemCallErrorNumber", "EPERM"),
)

_FOR_SYSTEM = (
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("PrivateMounts", "yes"),
    ("DevicePolicy", "closed"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
)


def unit(service: Service) -> str:
    """Return the unit file of *service*."""
    system = bool(service.user)
    sections = {
        "Unit": _unit_section(system=system),
        "Service": [
            *_process(service),
            *(_identity(service) if system else ()),
            *_FOR_ALL,
            *((*_FOR_SYSTEM, *_homes(service.needs)) if system else ()),
        ],
        "Install": [("WantedBy", "multi-user.target" if system else "default.target")],
    }
    edit = "systemctl edit" if system else "systemctl --user edit"
    lines = [f"# Written by ringd; what is to differ on this machine: {edit} {NAME}"]
    for section, settings in sections.items():
        lines += ["", f"[{section}]", *(f"{key}={value}" for key, value in settings)]
    return "\n".join(lines) + "\n"


def _unit_section(*, system: bool) -> list[tuple[str, str]]:
    settings = [("Description", SUMMARY)]
    if system:
        # Not network-online.target: ringd dials until the network is there.
        settings.append(("After", "network.target nss-lookup.target"))
    return [*settings, ("StartLimitIntervalSec", "0")]


def _process(service: Service) -> list[tuple[str, str]]:
    """Return how the process is started, watched and ended."""
    settings = [
        # READY=1 when config and socket are good, not when the ring is complete: two booting
        # machines would wait for each other.
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecStart", _command_line(service.command)),
        # Waits for the outcome; SIGHUP would have systemd believe in a reload that was refused.
        ("ExecReload", _command_line(service.reload_command)),
        ("Restart", "on-failure"),
        ("RestartSec", "1s"),
        ("RestartPreventExitStatus", str(KEEPS_DOWN)),
        ("TimeoutStopSec", f"{STOP_WITHIN}s"),
        ("WatchdogSec", f"{WATCHDOG}s"),
        ("UMask", f"{UMASK:04o}"),
        ("LimitNOFILE", str(OPEN_FILES)),
        # The watchdog ends it with SIGABRT, and a core has the ring's key in it.
        ("LimitCORE", "0"),
    ]
    settings += [
        ("Environment", _quoted(f"{name}={value}")) for name, value in service.environment.items()
    ]
    if service.environment_file is not None:
        settings.append(("EnvironmentFile", f"-{service.environment_file}"))
    return settings


def _identity(service: Service) -> list[tuple[str, str]]:
    """Return whose process it is, and the directories that systemd makes for it."""
    return [
        ("User", service.user),
        ("Group", service.user),
        ("RuntimeDirectory", NAME),
        # The sockets' own modes say who may call.
        ("RuntimeDirectoryMode", "0755"),
        # Clients find the directory again after a restart, and the daemon its lock.
        ("RuntimeDirectoryPreserve", "restart"),
        ("StateDirectory", NAME),
        ("StateDirectoryMode", "0750"),
    ]


def _homes(needs: Iterable[Path]) -> list[tuple[str, str]]:
    """Return what hides the homes, all but what the program itself is made of.

    One that pipx has installed lies in a home, which may be closed to all other users.
    """
    inside = [path for path in needs if any(path.is_relative_to(home) for home in _HOMES)]
    if not inside:
        return [("ProtectHome", "yes")]
    return [
        ("ProtectHome", "tmpfs"),
        *(("BindReadOnlyPaths", _quoted(str(path).replace(":", "\\:"))) for path in inside),
    ]


def _command_line(words: Iterable[str]) -> str:
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(word: str) -> str:
    """Return *word* as systemd reads it back: it expands ``%``, and divides at blanks."""
    word = word.replace("%", "%%")
    if word and not set(word) & set(" \t\"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def sysusers(service: Service) -> str:
    """Return the sysusers.d(5) file that makes the daemon's user and group."""
    return (
        "# The daemon's own user. Whose programs may use the ring joins the group of that name.\n"
        f'u {service.user} - "ringd daemon" {service.state_dir}\n'
    )


def tmpfiles(service: Service) -> str:
    """Return the tmpfiles.d(5) file that makes the socket's directory.

    systemd makes it too, whenever it starts the daemon; here it can be made anew by itself.
    """
    assert service.socket is not None  # noqa: S101 - a machine's service has one
    return f"d {service.socket.parent} 0755 {service.user} {service.user} -\n"


def install(
    service: Service, unit_path: Path, *, key: Path | None, runs: bool, start: bool
) -> list[Step]:
    """Return the steps that install *service*.

    Args:
        service: What is to be installed.
        unit_path: Where its unit belongs.
        key: The ring's key, if it is there already.
        runs: Whether the manager runs here; a system image may be prepared without it.
        start: Whether the daemon is to be started, or started anew.
    """
    steps: list[Step] = []
    if service.user:
        steps += [
            Write(SYSUSERS, sysusers(service)),
            run("systemd-sysusers", str(SYSUSERS)),
        ]
    steps += [*config_steps(service, key), Write(unit_path, unit(service))]
    if runs:
        steps.append(_systemctl(service, "daemon-reload"))
    steps.append(_systemctl(service, "enable", "--quiet", UNIT))
    if runs and start:
        log = "journalctl --user -u" if not service.user else "journalctl -u"
        steps.append(
            _systemctl(service, "restart", UNIT, remedy=f"its log says why: {log} {NAME} -n 20")
        )
    return steps


def uninstall(
    service: Service, unit_path: Path, *, runs: bool, purge: bool, packaged: bool = False
) -> list[Step]:
    """Return the steps that take it away again; with *purge* also its user and its state.

    The config's directory is that of a package, if there is one.
    """
    steps: list[Step] = []
    if runs:
        steps.append(_systemctl(service, "stop", UNIT, optional=True))
    steps += [_systemctl(service, "disable", "--quiet", UNIT, optional=True), Remove(unit_path)]
    if runs:
        steps.append(_systemctl(service, "daemon-reload"))
        steps.append(_systemctl(service, "reset-failed", UNIT, optional=True))
    if service.user:
        steps.append(Remove(SYSUSERS))
    if not (purge or packaged):
        steps.append(RemoveEmpty(service.config.parent))
    if purge:
        steps += [Remove(path) for path in (service.config.parent, service.state_dir) if path]
        if service.user:
            steps += [
                run("userdel", service.user, optional=True),
                # userdel leaves a group that has members.
                run("groupdel", service.user, optional=True),
            ]
    return steps


def journal(service: Service, lines: int) -> tuple[str, ...]:
    """Return the command that prints the last *lines* of the service's log."""
    manager = () if service.user else ("--user",)
    words = ("-q", "-u", UNIT, "-o", "short-iso-precise", "-n", str(lines))
    return ("journalctl", *manager, "--no-pager", *words)


def question(service: Service) -> tuple[str, ...]:
    """Return the command whose output :func:`state` reads."""
    return _systemctl(
        service,
        "show",
        "--property=FragmentPath,UnitFileState,ActiveState,SubState,MainPID,StatusText,Result",
        UNIT,
    ).argv


def state(output: str) -> State:
    """Return what ``systemctl show`` said."""
    values = dict(line.partition("=")[::2] for line in output.splitlines())
    active, result = values.get("ActiveState", ""), values.get("Result", "")
    words = f"{active} ({values.get('SubState', '')})"
    if result not in ("", "success"):
        words += f", {result}"
    if values.get("StatusText"):
        words += f": {values['StatusText']}"
    pid = values.get("MainPID", "")
    return State(
        definition=values.get("FragmentPath", ""),
        enabled=values.get("UnitFileState", "") == "enabled",
        running=active in ("active", "reloading"),
        pid=int(pid) if pid.isdigit() else 0,
        words=words,
    )


def node_in(text: str) -> str:
    """Return the member that a unit made here names; empty if none."""
    for line in text.splitlines():
        name, _, node = line.partition("=")[2].partition("=")
        if line.startswith("Environment=") and name == "RINGD_NODE":
            return node
    return ""


def _systemctl(service: Service, *words: str, remedy: str = "", optional: bool = False) -> Run:
    scope = () if service.user else ("--user",)
    return run("systemctl", *scope, *words, remedy=remedy, optional=optional)
