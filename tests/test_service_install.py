"""``ringd-cli service``: what is written and run, and what a person is told, with fake managers.

The commands of the service managers are programs on ``PATH`` that record how they are called and
answer as the real ones do (``service_fakes.py``); files go into a tree of the test's own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import plistlib
import shutil
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringd.cli.host import Host
from ringd.cli.main import main
from ringd.cli.managers import Launchd, Systemd
from ringd.config.keyfile import create_key
from ringd.errors import RingError
from ringd.host import paths
from ringd.service import launchd, systemd
from ringd.service.steps import run

COMMANDS = (
    *("systemctl", "systemd-sysusers", "userdel", "groupdel"),
    *("launchctl", "dscl", "plutil", "sudo"),
    *("install", "chown", "chmod"),
)
CONFIG = '[ring]\nname = "r"\n[[ring.members]]\nname = "mini"\naddresses = ["127.0.0.1:5680"]\n'
UNIT = "etc/systemd/system/ringd.service"
JOB = "Library/LaunchDaemons/dev.ringd.ringd.plist"
SYSTEM = {False: paths.system_paths(macos=False), True: paths.system_paths(macos=True)}


class Machine:
    """A tree of files, and fake commands."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, *, macos: bool) -> None:
        self.macos = macos
        self.root = place / "root"
        self.fakes = place / "fakes"
        self.home = self.root / "home" / "ann"
        scripts = place / "scripts"
        definitions = self.root / (JOB if macos else UNIT)
        for directory in (
            *(self.root / "run/systemd/system", definitions.parent),
            *(self.fakes, self.home, scripts),
        ):
            directory.mkdir(parents=True)
        for command in COMMANDS:
            fake = scripts / command
            text = Path(__file__).with_name("service_fakes.py").read_text().splitlines(True)
            fake.write_text("".join([f"#!{sys.executable} -IS\n", *text[1:]]))
            fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{scripts}:{os.environ['PATH']}")
        monkeypatch.setenv("SERVICE_FAKES", str(self.fakes))
        monkeypatch.setattr("ringd.cli.service.HOST", Host(self.root))
        monkeypatch.setattr("ringd.cli.service.MACOS", macos)
        monkeypatch.setattr("ringd.cli.host._RETRY_AFTER", 0.01)
        monkeypatch.setattr("socket.gethostname", lambda: "mini.local")
        self._monkeypatch = monkeypatch
        self.be(0)

    def be(self, uid: int) -> None:
        """Let the commands believe that user *uid* gives them."""
        self._monkeypatch.setattr(os, "geteuid", lambda: uid)

    def cli(self, *words: str) -> Result:
        """Run ``ringd-cli service``."""
        return CliRunner().invoke(main, ["service", *words])

    def calls(self) -> list[list[str]]:
        """Return what the fake commands were told since this was last asked."""
        path = self.fakes / "calls"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        path.unlink()
        return [json.loads(line) for line in lines]

    def configure(self, text: str = CONFIG) -> Path:
        """Put a config and a key there; return the config's path."""
        config = self.root / "etc/ringd/ringd.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text)
        create_key(config.parent / "ring.key")
        return config

    def files(self) -> dict[str, str]:
        """Return all files of the tree and what stands in them."""
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_text() for path in found}


@pytest.fixture
def linux(place: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with systemd."""
    return Machine(place, monkeypatch, macos=False)


@pytest.fixture
def mac(place: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with launchd."""
    return Machine(place, monkeypatch, macos=True)


@pytest.fixture(params=["linux", "mac"])
def either(request: pytest.FixtureRequest) -> Machine:
    """Return the one and the other."""
    machine: Machine = request.getfixturevalue(request.param)
    return machine


def test_first_install_on_linux(linux: Machine) -> None:
    """Without a config nothing is started; the next steps are told."""
    done = linux.cli("install")
    assert done.exit_code == 0, done.output
    assert linux.calls() == [
        ["systemd-sysusers", "/etc/sysusers.d/ringd.conf"],
        ["install", "-d", "-m", "0755", "/etc/ringd"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--quiet", "ringd.service"],
    ]
    assert set(linux.files()) == {UNIT, "etc/sysusers.d/ringd.conf"}
    assert "not started, for there is no config yet" in done.output
    assert "sudo ringd-cli init /etc/ringd/ringd.toml --member" in done.output
    assert "sudo ringd-cli keygen /etc/ringd/ring.key" in done.output
    assert "usermod -aG ringd USER" in done.output


def test_install_with_a_config_on_linux(linux: Machine) -> None:
    """The key becomes the daemon's, the member is named in the unit, and it is started."""
    linux.configure()
    before = linux.files()
    done = linux.cli("install")
    assert done.exit_code == 0, done.output
    calls = linux.calls()
    assert ["chown", "root:ringd", "/etc/ringd/ring.key"] in calls
    assert ["chmod", "0640", "/etc/ringd/ring.key"] in calls
    assert calls[-1] == ["systemctl", "restart", "ringd.service"]
    assert "Environment=RINGD_NODE=mini\n" in linux.files()[UNIT]
    assert "started, as the member 'mini'" in done.output
    assert {name: linux.files()[name] for name in before} == before


def test_first_install_on_a_mac(mac: Machine) -> None:
    """User, group and directories are made with the first free number; launchd takes the job."""
    done = mac.cli("install")
    assert done.exit_code == 0, done.output
    calls = mac.calls()
    records = json.loads((mac.fakes / "accounts").read_text())
    assert records["/Groups/_ringd"]["PrimaryGroupID"] == "302"
    assert records["/Users/_ringd"]["UniqueID"] == "302"
    assert records["/Users/_ringd"]["PrimaryGroupID"] == "302"
    assert [call[-1] for call in calls if call[:2] == ["install", "-d"]] == [
        "/var/db/ringd",
        "/var/db/ringd/state",
        "/var/log/ringd",
        "/etc/ringd",
    ]
    assert ["plutil", "-lint", "-s", f"/{JOB}"] in calls
    assert calls[-1] == ["launchctl", "enable", "system/dev.ringd.ringd"]  # no config yet
    assert set(mac.files()) == {JOB, "etc/newsyslog.d/ringd.conf"}
    assert "dseditgroup -o edit -a USER -t user _ringd" in done.output


def test_install_with_a_config_on_a_mac(mac: Machine) -> None:
    """A job that was loaded is there for a while yet; then the new one is taken, and started."""
    mac.configure()
    (mac.fakes / "loaded").touch()
    (mac.fakes / "busy").write_text("2")
    done = mac.cli("install")
    assert done.exit_code == 0, done.output
    calls = [call for call in mac.calls() if call[0] == "launchctl"]
    target = "system/dev.ringd.ringd"
    assert calls == [
        ["launchctl", "bootout", target],
        ["launchctl", "enable", target],
        *3 * [["launchctl", "bootstrap", "system", f"/{JOB}"]],
        ["launchctl", "kickstart", target],
    ]
    assert plistlib.loads(mac.files()[JOB].encode())["EnvironmentVariables"] == {
        "RINGD_NODE": "mini",
        "RINGD_LOG_FILE": "/var/log/ringd/ringd.log",
    }
    again = mac.cli("install")
    assert again.exit_code == 0, again.output
    assert "-create" not in [call[2] for call in mac.calls() if call[0] == "dscl"]
    said = mac.cli("status")
    assert (said.exit_code, "running, process 4711; running" in said.output) == (0, True)


def test_a_job_that_launchd_refuses(mac: Machine) -> None:
    """What launchctl says is said, and where to look."""
    mac.configure()
    (mac.fakes / "busy").write_text("1000")
    done = mac.cli("install")
    assert done.exit_code == 1
    assert "Bootstrap failed: 5: Input/output error; its log says why: /var/log/" in done.output


def test_an_install_names_the_member_for_good(either: Machine) -> None:
    """What --node said stays when it is installed again, also under another host name."""
    text = CONFIG.replace("mini", "studio")
    either.configure(text)
    done = either.cli("install")
    assert done.exit_code == 1
    assert 'no member bears this host\'s name, "mini.local"' in done.output
    assert "not started, for the config has a fault" in done.output
    assert either.cli("install", "--node", "studio").exit_code == 0
    done = either.cli("install")
    assert (done.exit_code, "as the member 'studio'" in done.output) == (0, True)


def test_a_config_with_a_fault_is_not_started(either: Machine) -> None:
    """All that is wrong is said, with the command that starts it when it is mended."""
    either.configure("[ring]\nnam = 1\n")
    done = either.cli("install")
    assert done.exit_code == 1
    assert "ring.nam: unknown key" in done.output
    assert "Correct it, then: sudo ringd-cli service install" in done.output
    verbs = {call[1] for call in either.calls() if call[0] in ("systemctl", "launchctl")}
    assert not verbs & {"restart", "bootstrap", "kickstart"}


def test_a_daemon_that_does_not_start(linux: Machine) -> None:
    """What systemd says of it, and where its log is."""
    linux.configure()
    (linux.fakes / "broken").touch()
    done = linux.cli("install")
    assert done.exit_code == 1
    assert "Job for ringd.service failed" in done.output
    assert "journalctl -u ringd -n 20" in done.output


@pytest.mark.parametrize("user", [(), ("--user",)])
def test_a_dry_run_changes_nothing(either: Machine, user: tuple[str, ...]) -> None:
    """It shows each file in full, and each command; and needs no root."""
    either.be(1000)
    before = either.files()
    for verb in ("install", "uninstall"):
        done = either.cli(verb, *user, "--dry-run")
        assert done.exit_code == 0, done.output
        assert ("dev.ringd.ringd" if either.macos else "systemctl") in done.output
    assert either.files() == before
    asked = {(call[0], "-list" in call or "show-environment" in call) for call in either.calls()}
    assert asked <= {("dscl", True), ("systemctl", True)}


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_who_may_not(either: Machine, verb: str) -> None:
    """The machine's service is root's to install, a user's own is not."""
    either.be(1000)
    done = either.cli(verb)
    assert (done.exit_code, "put sudo in front, or add --user" in done.output) == (1, True)
    either.be(0)
    done = either.cli(verb, "--user")
    assert (done.exit_code, "leave --user out" in done.output) == (1, True)
    assert either.calls() == []


def test_a_users_own_service(either: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no account, stands in the home, and what may end it is said."""
    monkeypatch.setenv("HOME", "/home/ann")
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    either.be(1000)
    monkeypatch.setattr(paths, "_ours", lambda *_: True)
    done = either.cli("install", "--user")
    assert done.exit_code == 0, done.output
    calls = either.calls()
    written = {name for name in either.files() if not name.endswith(".made")}
    if either.macos:
        assert written == {f"home/ann/{launchd.AGENTS}/dev.ringd.ringd.plist"}
        assert ["launchctl", "enable", "gui/1000/dev.ringd.ringd"] in calls
        assert "local network" in done.output
        assert "ringd-cli init '/home/ann/Library/Application Support/ringd/" in done.output
    else:
        assert written == {"home/ann/.config/systemd/user/ringd.service"}
        assert ["systemctl", "--user", "enable", "--quiet", "ringd.service"] in calls
        assert "loginctl enable-linger" in done.output
    assert not {call[0] for call in calls} & {"dscl", "systemd-sysusers", "chown", "sudo"}
    assert either.cli("uninstall", "--user").exit_code == 0
    assert either.files() == {}


def test_directories_that_an_install_made_go_with_it(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an upgrade; those that were there stay, and so do those with something in them."""
    monkeypatch.setenv("HOME", "/home/ann")
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    either.be(1000)
    monkeypatch.setattr(paths, "_ours", lambda *_: True)
    if either.macos:  # where each home has this
        (either.home / "Library/Application Support").mkdir(parents=True)
    inner = either.home / (launchd.AGENTS if either.macos else ".config/systemd/user")
    config = either.root / str(paths.user_paths(macos=either.macos).config).lstrip("/")
    for place, installs in ((either.home, 1), (inner.parent, 2), (inner, 1)):
        place.mkdir(parents=True, exist_ok=True)
        before = set(either.home.rglob("*"))
        for _ in range(installs):
            assert either.cli("install", "--user").exit_code == 0
            config.parent.mkdir(parents=True, exist_ok=True)  # as `install -d` does
        assert either.cli("uninstall", "--user").exit_code == 0
        assert set(either.home.rglob("*")) == before
    inner.rmdir()
    assert either.cli("install", "--user").exit_code == 0
    (inner / "other").touch()
    assert either.cli("uninstall", "--user").exit_code == 0
    assert {path for path in either.home.rglob("*") if path.is_file()} == {inner / "other"}


def test_an_install_that_fails_leaves_no_directories(
    linux: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of those that it made for the unit that could not be written."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    linux.be(1000)

    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ringd.cli.host._write", full)
    done = linux.cli("install", "--user")
    assert (done.exit_code, "ringd.service: No space left on device" in done.output) == (1, True)
    assert list(linux.home.iterdir()) == []


def test_uninstall_leaves_config_key_and_state(either: Machine) -> None:
    """They are named; all else is gone, and a second time is no error."""
    either.configure()
    kept = either.files()
    assert either.cli("install").exit_code == 0
    state = either.root / str(SYSTEM[either.macos].state_dir).lstrip("/")
    state.mkdir(parents=True)
    for _ in range(2):
        done = either.cli("uninstall")
        assert done.exit_code == 0, done.output
        assert f"Still there: /etc/ringd, /{state.relative_to(either.root)};" in done.output
        assert either.files() == kept


def test_purge_leaves_nothing(either: Machine) -> None:
    """Neither files nor accounts."""
    either.configure()
    assert either.cli("install").exit_code == 0
    for path in ("var/lib/ringd/s", "var/db/ringd/state/s", "var/log/ringd/ringd.log"):
        if either.macos != path.startswith("var/lib"):
            (either.root / path).parent.mkdir(parents=True)
            (either.root / path).touch()
    either.calls()
    done = either.cli("uninstall", "--purge")
    assert (done.exit_code, done.output) == (0, "Removed.\n")
    assert either.files() == {}
    if either.macos:
        assert json.loads((either.fakes / "accounts").read_text()) == {}
    else:
        assert [call for call in either.calls() if call[0] != "systemctl"] == [
            ["userdel", "ringd"],
            ["groupdel", "ringd"],
        ]


@pytest.mark.parametrize(("verb", "said"), [("install", "systemctl start"), ("uninstall", "apt")])
def test_a_packages_service_is_the_packages(linux: Machine, verb: str, said: str) -> None:
    """Neither is it hidden behind another one, nor taken away piece by piece."""
    packaged = linux.root / str(systemd.PACKAGED_UNIT).lstrip("/")
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    done = linux.cli(verb)
    assert (done.exit_code, said in done.output) == (1, True)
    assert linux.calls() == []


def test_a_service_that_hides_the_packages_may_go(linux: Machine) -> None:
    """One that was installed before the package: it alone is taken away, and nothing purged."""
    linux.configure()
    assert linux.cli("install").exit_code == 0
    packaged = linux.root / str(systemd.PACKAGED_UNIT).lstrip("/")
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    before = linux.files()
    assert linux.cli("uninstall", "--purge").exit_code == 1
    assert linux.files() == before
    assert linux.cli("uninstall").exit_code == 0
    assert before.keys() - linux.files().keys() == {UNIT, "etc/sysusers.d/ringd.conf"}


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_one_at_a_time(either: Machine, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Whoever changes the service holds its lock from the first look on, and leaves no file."""
    lock = either.root / (JOB if either.macos else UNIT)
    lock = lock.with_name(f".{lock.name}.lock")
    found = []

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def watched(*args: object, **options: object) -> object:
            with lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(name)
            return method(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(Launchd if either.macos else Systemd, verb)
    watch(Host, "carry_out")
    assert either.cli(verb).exit_code == 0
    assert found == [verb, "carry_out"]
    assert not lock.exists()


def test_uninstall_where_nothing_is_leaves_nothing(either: Machine) -> None:
    """It says that there was nothing; not even a directory comes to be."""
    before = set(either.root.rglob("*"))
    done = either.cli("uninstall")
    assert (done.exit_code, done.output) == (0, "It was not installed.\n")
    assert set(either.root.rglob("*")) == before


def test_a_lock_in_a_directory_that_goes(place: Path) -> None:
    """Who waits is not disturbed by the one before, who takes the directory of the lock away."""
    host, unit = Host(place), Path("/units/user/ringd.service")
    held, awaited = threading.Event(), threading.Event()

    def first() -> None:
        with host.alone(unit, lambda: None):
            held.set()
            awaited.wait()

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with host.alone(unit, awaited.set):
        assert (place / "units/user").is_dir()
    thread.join()
    assert not (place / "units").exists()


def test_a_lock_whose_directory_cannot_be_made(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error at once; what cannot be made now is not tried again without end."""
    gone, make = place / "gone", Path.mkdir
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    tried = []

    def mkdir(path: Path, *words: object, **options: object) -> None:
        assert tried.count(path) < 2, "it is tried again"  # the second time after its parents
        tried.append(path)
        make(path, *words, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with (
        pytest.raises(RingError, match=r"\.ringd\.service\.lock: No such file or directory$"),
        Host(Path()).alone(Path("/units/ringd.service"), pytest.fail),
    ):
        pytest.fail("there is no lock")
    assert tried


def test_two_at_once_take_turns(place: Path) -> None:
    """The second says that it waits, and begins when the first is done."""
    host, unit = Host(place), Path("/units/ringd.service")
    held, awaited = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with host.alone(unit, lambda: seen.append("never")):
            held.set()
            awaited.wait()
            seen.append("first is done")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()

    def waiting() -> None:
        seen.append("second waits")
        awaited.set()

    with host.alone(unit, waiting):
        seen.append("second begins")
    thread.join()
    assert seen == ["second waits", "first is done", "second begins"]
    assert not (place / "units").exists()


def test_a_system_without_a_manager(linux: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No systemd at all: the command that another manager must run is told."""
    monkeypatch.setenv("PATH", "/nowhere")
    done = linux.cli("install")
    assert done.exit_code == 1
    assert "no systemd here" in done.output
    assert "--socket /run/ringd/ringd.sock" in done.output


def test_an_image_in_which_systemd_does_not_run(linux: Machine) -> None:
    """It is enabled for the first boot, and nothing is started."""
    shutil.rmtree(linux.root / "run/systemd")
    linux.configure()
    assert linux.cli("install").exit_code == 0
    assert [call for call in linux.calls() if call[0] == "systemctl"] == [
        ["systemctl", "enable", "--quiet", "ringd.service"]
    ]
    done = linux.cli("status")
    assert (done.exit_code, "systemd does not run here" in done.output) == (3, True)


def test_status_of_the_service(linux: Machine) -> None:
    """Not installed, down and running, for people and for scripts; by the exit code as well."""
    done = linux.cli("status")
    assert (done.exit_code, "not installed; install it with `sudo ringd" in done.output) == (
        3,
        True,
    )
    shown = linux.fakes / "shown"
    shown.write_text("FragmentPath=/u\nActiveState=failed\nSubState=failed\nResult=exit-code\n")
    done = linux.cli("status")
    assert done.exit_code == 3
    assert "not running; failed (failed), exit-code" in done.output
    assert "installed as /u; does not start by itself" in done.output
    shown.write_text("FragmentPath=/u\nActiveState=active\nSubState=running\nMainPID=12\n")
    done = linux.cli("status", "--json")
    assert done.exit_code == 0
    assert json.loads(done.output) == {
        "schema_version": 1,
        "definition": "/u",
        "enabled": False,
        "running": True,
        "pid": 12,
        "words": "active (running)",
    }


def test_a_file_that_cannot_be_written(linux: Machine) -> None:
    """It is named, and nothing half written is left."""
    (linux.root / "etc/sysusers.d").touch()
    done = linux.cli("install")
    assert done.exit_code == 1
    assert "/etc/sysusers.d/ringd.conf: " in done.output
    (linux.root / "etc/sysusers.d").unlink()
    (linux.root / UNIT).mkdir()
    assert linux.cli("install").exit_code == 1
    assert [path.name for path in (linux.root / UNIT).parent.iterdir()] == ["ringd.service"]


def test_a_command_that_is_not_there(place: Path) -> None:
    """Is an error in words, as is one that an install could do without."""
    steps = [run("no-such-command-here")]
    with pytest.raises(Exception, match="there is no no-such-command-here here"):
        Host(place).carry_out(steps)


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_help_of_each(linux: Machine, verb: str) -> None:
    """It has an example and the exit codes, in lines that a terminal has room for."""
    output = linux.cli(verb, "--help").output
    assert "Exit codes: 0 " in output
    assert f"ringd-cli service {verb}" in output.partition("Example: ")[2]
    assert max(map(len, output.splitlines())) <= 80
