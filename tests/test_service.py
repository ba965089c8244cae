"""The service's description: what systemd and launchd are told is valid and fits the program."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ringd.daemon.daemon import DRAIN
from ringd.daemon.main import EX_CONFIG, main
from ringd.host.limits import OPEN_FILES
from ringd.host.paths import system_paths
from ringd.ring.statewriter import AT_STOP
from ringd.service import description, launchd, systemd
from ringd.service.description import Service
from ringd.service.steps import Write, config_steps, describe, run

LINUX, MACOS = system_paths(macos=False), system_paths(macos=True)

ON_LINUX = Service(
    program=Path("/opt/ringd/bin/ringd"),
    control=Path("/opt/ringd/bin/ringd-cli"),
    config=LINUX.config,
    user="ringd",
    socket=LINUX.socket,
    state_dir=LINUX.state_dir,
    node="mini",
)
ON_MACOS = replace(
    ON_LINUX,
    config=MACOS.config,
    user="_ringd",
    socket=MACOS.socket,
    state_dir=MACOS.state_dir,
    log=Path("/var/log/ringd/ringd.log"),
)
OF_A_USER = Service(
    program=Path("/home/ann/my tools/100%/ringd"),
    control=Path("/home/ann/my tools/100%/ringd-cli"),
    config=Path("/home/ann/.config/ringd/ringd.toml"),
    state_dir=Path("/home/ann/.local/state/ringd"),
)

# Keys and types as launchd.plist(5) documents them; those in use and their nearest kin.
LAUNCHD_KEYS = {
    "Label": str,
    "Disabled": bool,
    "UserName": str,
    "GroupName": str,
    "Program": str,
    "ProgramArguments": list,
    "KeepAlive": (bool, dict),
    "RunAtLoad": bool,
    "WorkingDirectory": str,
    "EnvironmentVariables": dict,
    "Umask": int,
    "ExitTimeOut": int,
    "ThrottleInterval": int,
    "InitGroups": bool,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "SoftResourceLimits": dict,
    "HardResourceLimits": dict,
    "Nice": int,
    "ProcessType": str,
    "LowPriorityIO": bool,
    "SessionCreate": bool,
}


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit as {section: {key: [values]}}."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals == "=", line
            section.setdefault(key, []).append(value)
    return found


def options(command: list[str]) -> dict[str, str]:
    """Return the {option: value} of a command line of long options."""
    return dict(zip(command[1::2], command[2::2], strict=True))


def test_what_stands_in_two_places_is_the_same() -> None:
    """The description is pure, so it repeats two numbers; and it leaves time for the end."""
    assert description.KEEPS_DOWN == EX_CONFIG
    assert description.OPEN_FILES == OPEN_FILES
    assert description.STOP_WITHIN > 2 * (DRAIN + AT_STOP)


@pytest.mark.parametrize("service", [ON_LINUX, ON_MACOS])
def test_the_command_line_names_the_usual_places(service: Service) -> None:
    """Where programs look; and the command knows all its options."""
    places = MACOS if service is ON_MACOS else LINUX
    assert service.command[0] == "/opt/ringd/bin/ringd"
    assert options(list(service.command)) == {
        "--config": str(places.config),
        "--socket": str(places.socket),
        "--state-dir": str(places.state_dir),
    }
    known = {option for parameter in main.params for option in parameter.opts}
    assert set(options(list(service.command))) <= known
    environment = {parameter.envvar for parameter in main.params}
    assert set(service.environment) - {"RINGD_LOG_FILE"} == {"RINGD_NODE"} <= environment


def test_the_unit_restarts_but_not_on_a_bad_config() -> None:
    """The service comes back after a crash; exit 78, a bad config, stays down."""
    unit = sections(systemd.unit(ON_LINUX))
    service = unit["Service"]
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == ["78"]
    assert "ProtectHostname" not in service  # a name that mends itself is waited for
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert service["Environment"] == ["RINGD_NODE=mini"]
    assert systemd.node_in(systemd.unit(ON_LINUX)) == "mini"
    assert systemd.node_in(systemd.unit(replace(ON_LINUX, node=""))) == ""


def test_the_unit_has_the_directories_that_systemd_makes() -> None:
    """They are those of the command line."""
    service = sections(systemd.unit(ON_LINUX))["Service"]
    assert (service["User"], service["Group"]) == (["ringd"], ["ringd"])
    assert f"/run/{service['RuntimeDirectory'][0]}" == str(LINUX.socket.parent)
    assert f"/var/lib/{service['StateDirectory'][0]}" == str(LINUX.state_dir)
    [line] = [ln for ln in systemd.sysusers(ON_LINUX).splitlines() if not ln.startswith("#")]
    assert line == 'u ringd - "ringd daemon" /var/lib/ringd'


def test_the_unit_reloads_with_a_command_that_waits() -> None:
    """What systemctl reload says is what came of it: the outcome is the command's exit code."""
    [command] = sections(systemd.unit(ON_LINUX))["Service"]["ExecReload"]
    assert command.split() == ["/opt/ringd/bin/ringd-cli", "reload", "--socket", str(LINUX.socket)]


def test_the_sandbox_leaves_what_the_daemon_needs() -> None:
    """Local sockets, clients' credentials, and what ZeroMQ insists on work inside it."""
    service = sections(systemd.unit(ON_LINUX))["Service"]
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"][0].split())
    assert not {"PrivateUsers", "PrivateNetwork"} & set(service)
    assert service["ProtectSystem"] == ["strict"]
    # ZeroMQ ends the process when it may not set its threads' scheduling.
    assert service["SystemCallFilter"][-1] == "sched_setscheduler"


def test_a_program_in_a_home_is_all_that_is_seen_of_it() -> None:
    """One that pipx has installed runs although homes are hidden."""
    own, python = Path("/home/ann/.local/share/pipx/venvs/ringd"), Path("/usr")
    service = sections(systemd.unit(replace(ON_LINUX, needs=(own, python))))["Service"]
    assert service["ProtectHome"] == ["tmpfs"]
    assert service["BindReadOnlyPaths"] == [str(own)]
    service = sections(systemd.unit(replace(ON_LINUX, needs=(python,))))["Service"]
    assert service["ProtectHome"] == ["yes"]
    assert "BindReadOnlyPaths" not in service


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("service", [ON_LINUX, OF_A_USER], ids=["system", "user"])
def test_systemd_finds_nothing_wrong_with_the_unit(service: Service, tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent; the words of the command arrive as they were."""
    for name in ("ringd", "ringd-cli"):
        program = tmp_path / "my tools" / "100%" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
    place = program.parent
    here = replace(service, program=place / "ringd", control=place / "ringd-cli")
    unit = tmp_path / "ringd.service"
    unit.write_text(systemd.unit(here))
    done = analyze("verify", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sandbox_is_tight(tmp_path: Path) -> None:
    """`systemd-analyze security` gives it 2.0 or less; it counts in tenths."""
    unit = tmp_path / "ringd.service"
    unit.write_text(systemd.unit(ON_LINUX))
    done = analyze("security", "--offline=yes", "--threshold=20", unit)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", [ON_MACOS, OF_A_USER], ids=["daemon", "agent"])
def test_the_job_has_documented_keys_of_the_right_type(service: Service) -> None:
    """What launchd does not know it ignores silently, so every key is checked here."""
    content = plistlib.loads(launchd.job(service).encode())
    wrong = {
        key: value
        for key, value in content.items()
        if key not in LAUNCHD_KEYS
        or not isinstance(value, LAUNCHD_KEYS[key])
        or (isinstance(value, bool) and LAUNCHD_KEYS[key] is int)
    }
    assert wrong == {}
    assert content["ProgramArguments"] == list(service.command)
    assert content["Label"] == launchd.SYSTEM_JOB.stem
    assert content["KeepAlive"] == {"SuccessfulExit": False}
    assert content["Umask"] == 0o077
    assert content["ProcessType"] != "Background"
    assert ("UserName" in content) == (service is ON_MACOS)
    assert launchd.node_in(launchd.job(service)) == service.node
    assert launchd.node_in("no list") == ""


def plain(value: object) -> bool:
    """Whether *value* has only what all readers of property lists read alike."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return isinstance(value, bool) or type(value) in (str, int)


@pytest.mark.parametrize("service", [ON_MACOS, OF_A_USER], ids=["daemon", "agent"])
def test_two_independent_readers_read_the_job_alike(service: Service) -> None:
    """Python's plistlib, and libplist's plistutil, which writes what it has read in binary."""
    text = launchd.job(service).encode()
    ours = plistlib.loads(text)
    assert plain(ours)
    program = shutil.which("plistutil")
    if program is None:
        pytest.skip("no plistutil here")
    theirs = subprocess.run(
        [program, "-i", "-", "-f", "bin", "-o", "-"], input=text, capture_output=True, check=True
    ).stdout
    assert plistlib.loads(theirs, fmt=plistlib.FMT_BINARY) == ours


def test_newsyslog_line() -> None:
    """Fields as newsyslog.conf(5) has them: file, owner, mode, count, KiB, when, flags."""
    [line] = [ln for ln in launchd.newsyslog(ON_MACOS).splitlines() if not ln.startswith("#")]
    file, owner, mode, count, size, when, flags = line.split()
    assert (file, owner) == ("/var/log/ringd/ringd.log", "_ringd:_ringd")
    assert (int(mode, 8), int(count), int(size), when, flags) == (0o640, 5, 10240, "*", "NJ")


def test_free_ids_of_accounts() -> None:
    """The first number that neither a user nor a group has; where none is left, in words."""
    known = launchd.Accounts.read("_a  300\nnobody -2\nodd line here\n", "_b 301\n")
    assert known == launchd.Accounts({"_a": 300, "nobody": -2}, {"_b": 301})
    assert known.free_id() == 302
    full = launchd.Accounts({f"_{n}": n for n in launchd.ACCOUNT_IDS}, {})
    with pytest.raises(ValueError, match="all ids from 300 to 399 are taken"):
        full.free_id()


@pytest.mark.parametrize(
    ("users", "groups", "made"),
    [
        ({}, {}, {"/Users/_ringd", "/Groups/_ringd"}),
        ({}, {"_ringd": 350}, {"/Users/_ringd"}),
        ({"_ringd": 350}, {}, {"/Groups/_ringd"}),
        ({"_ringd": 350}, {"_ringd": 350}, set()),
    ],
)
def test_accounts_that_are_there_are_left_alone(
    users: dict[str, int], groups: dict[str, int], made: set[str]
) -> None:
    """Only what is missing is made; the user is in the group, whichever number that has."""
    steps = launchd.accounts(ON_MACOS, launchd.Accounts(users, groups))
    words = [step.argv for step in steps]
    assert {argv[3] for argv in words} == made
    if "/Users/_ringd" in made:
        gid = str(groups.get("_ringd", 300))
        assert ("dscl", ".", "-create", "/Users/_ringd", "PrimaryGroupID", gid) in words


def test_only_who_may_read_a_key_changes() -> None:
    """Neither config nor key is written; a user's own key is left as it is."""
    key = Path("/etc/ringd/ring.key")
    directory = run("install", "-d", "-m", "0755", "/etc/ringd")
    assert config_steps(ON_LINUX, None) == [directory]
    assert config_steps(ON_LINUX, key) == [
        directory,
        run("chown", "root:ringd", str(key)),
        run("chmod", "0640", str(key)),
    ]
    assert len(config_steps(OF_A_USER, key)) == 1


def test_what_would_be_done_is_shown_in_full() -> None:
    """Files with all that stands in them, commands as a shell reads them."""
    steps = [Write(Path("/a"), "one\n\ntwo\n", 0o600), run("dscl", "a b")]
    assert describe(steps) == "write /a (mode 0600):\n    one\n\n    two\nrun dscl 'a b'"
    assert shlex.split(describe(steps[1:])) == ["run", "dscl", "a b"]


SHOWN = """\
FragmentPath=/etc/systemd/system/ringd.service
UnitFileState=enabled
ActiveState=active
SubState=running
MainPID=4711
StatusText=forming: waits for b = 2
Result=success
"""


def test_what_systemd_says_of_the_service() -> None:
    """Running, failed, or unknown to it."""
    state = systemd.state(SHOWN)
    assert (state.running, state.enabled, state.pid) == (True, True, 4711)
    assert state.words == "active (running): forming: waits for b = 2"
    failed = SHOWN.replace("active\n", "failed\n").replace("=success", "=exit-code")
    assert systemd.state(failed).words.startswith("failed (running), exit-code")
    assert not systemd.state(failed).running
    assert systemd.state("FragmentPath=\nActiveState=inactive\nSubState=dead\n").definition == ""


def test_what_launchd_says_of_the_service() -> None:
    """Of the job itself, not of its parts, and with its last exit code while it does not run."""
    path = launchd.SYSTEM_JOB
    printed = (
        "system/dev.ringd.ringd = {\n\tstate = running\n\tpid = 7\n\tx = {\n\t\tpid = 8\n\t}\n}"
    )
    state = launchd.state(printed, path, installed=True)
    assert (state.definition, state.running, state.pid, state.words) == (
        str(path),
        True,
        7,
        "running",
    )
    ended = "x = {\n\tstate = not running\n\tlast exit code = 78\n}"
    state = launchd.state(ended, path, installed=True)
    assert (state.running, state.words) == (False, "not running, last exit code 78")
    assert launchd.state("", path, installed=False).definition == ""
    assert os.fspath(path).endswith("dev.ringd.ringd.plist")
