"""Packaging: what the service managers are told is valid and fits the program."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ringd.host.paths import system_paths

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "packaging" / "systemd" / "ringd.service"
SYSUSERS = ROOT / "packaging" / "systemd" / "ringd.sysusers"
PLIST = ROOT / "packaging" / "launchd" / "dev.ringd.ringd.plist"

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


def unit():
    """Return the unit as {section: {key: [values]}}, continued lines joined."""
    sections = {}
    for line in UNIT.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals == "=", line
            section.setdefault(key, []).append(value)
    return sections


def plist():
    """Return the launchd property list."""
    return plistlib.loads(PLIST.read_bytes())


def options(command):
    """Return the {option: value} of a command line of long options."""
    return dict(zip(command[1::2], command[2::2], strict=True))


def test_unit_restarts_but_not_on_a_bad_config():
    """The service comes back after a crash; exit 78, a bad config, stays down."""
    service = unit()["Service"]
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == ["78"]
    assert "ProtectHostname" not in service  # a name that mends itself is waited for
    assert unit()["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_unit_uses_the_usual_places():
    """The command line names the places where clients look, which systemd makes."""
    [command] = unit()["Service"]["ExecStart"]
    places = system_paths(macos=False)
    assert command.split()[0] == "/usr/local/bin/ringd"
    assert options(command.split()) == {
        "--config": str(places.config),
        "--socket": str(places.socket),
        "--state-dir": str(places.state_dir),
    }
    service = unit()["Service"]
    assert f"/run/{service['RuntimeDirectory'][0]}" == str(places.socket.parent)
    assert f"/var/lib/{service['StateDirectory'][0]}" == str(places.state_dir)


def test_unit_reloads_with_a_command_that_waits():
    """What systemctl reload says is what came of it: the outcome is the command's exit code."""
    [command] = unit()["Service"]["ExecReload"]
    socket = str(system_paths(macos=False).socket)
    assert command.split() == ["/usr/local/bin/ringd-cli", "reload", "--socket", socket]


def test_unit_runs_as_its_own_user():
    """The daemon has a user and a group of its own, which sysusers makes."""
    service = unit()["Service"]
    assert (service["User"], service["Group"]) == (["ringd"], ["ringd"])
    lines = [
        line for line in SYSUSERS.read_text().splitlines() if line and not line.startswith("#")
    ]
    assert lines == ['u ringd - "ringd daemon" /var/lib/ringd']


def test_sandbox_leaves_what_the_daemon_needs():
    """Local sockets and clients' credentials work inside the sandbox."""
    service = unit()["Service"]
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"][0].split())
    assert "PrivateUsers" not in service
    assert "PrivateNetwork" not in service
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]


def test_system_calls_that_zeromq_insists_on():
    """ZeroMQ aborts the process when it may not set its threads' scheduling."""
    assert unit()["Service"]["SystemCallFilter"] == [
        "@system-service",
        "~@privileged @resources",
        "sched_setscheduler",
    ]


def test_plist_has_documented_keys_of_the_right_type():
    """What launchd does not know it ignores silently, so every key is checked here."""
    wrong = {
        key: value
        for key, value in plist().items()
        if key not in LAUNCHD_KEYS
        or not isinstance(value, LAUNCHD_KEYS[key])
        or (isinstance(value, bool) and LAUNCHD_KEYS[key] is int)
    }
    assert wrong == {}
    assert all(isinstance(word, str) for word in plist()["ProgramArguments"])
    assert plist()["KeepAlive"] == {"SuccessfulExit": False}


def test_plist_fits_the_program():
    """Label and file agree, the places are macOS's, and launchd's clumsy defaults are not used."""
    content = plist()
    places = system_paths(macos=True)
    assert content["Label"] == PLIST.stem
    assert options(content["ProgramArguments"]) == {
        "--config": str(places.config),
        "--socket": str(places.socket),
        "--state-dir": str(places.state_dir),
    }
    assert content["Umask"] == 0o077
    assert content["ExitTimeOut"] >= 20
    assert content["ProcessType"] != "Background"


def test_comments_of_the_plist_are_well_formed():
    """XML forbids two dashes inside a comment, where options like to stand."""
    comments = re.findall(r"<!--(.*?)-->", PLIST.read_text(), re.DOTALL)
    assert [comment for comment in comments if "--" in comment] == []


@pytest.mark.parametrize(
    "script", [".ci/run", "packaging/systemd/install.sh", "packaging/systemd/uninstall.sh"]
)
def test_scripts(script):
    """Scripts are executable and parse."""
    path = ROOT / script
    assert path.stat().st_mode & 0o111 == 0o111
    shell = path.read_text().partition("\n")[0].split("/")[-1].split()[-1]
    checked = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_make_help_lists_every_target():
    """The help, which plain make shows, knows every target that people may call."""
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        [shutil.which("make"), "-C", ROOT], capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[0] for line in shown.splitlines() if "Entering" not in line}
    assert set(phony.replace("\\\n", " ").split()) <= listed
