"""The usual places, on Linux and on macOS."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from clientkit import unavailable
from fake_daemon import FakeDaemon
from structlog.testing import capture_logs

import ringd
from ringd.cli.main import main
from ringd.daemon import main as daemon_main
from ringd.host import paths
from ringd.host.paths import (
    Paths,
    User,
    default_paths,
    find_config,
    left_out,
    socket_candidates,
    system_paths,
    user_paths,
)

ME = User(os.geteuid(), Path("/home/me"))

of_xdg = pytest.mark.skipif(paths.MACOS, reason="macOS has none of the XDG variables")


def give_away(monkeypatch, place):
    """Have *place*, and all in it, belong to another user, who is not root."""
    look = Path.stat

    def stat(path, **options):
        status = look(path, **options)
        if path != place and place not in path.parents:
            return status
        return SimpleNamespace(st_uid=os.geteuid() + 1, st_mode=status.st_mode)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    """Have no runtime directories but those that a test makes."""
    monkeypatch.setattr(paths, "RUNTIME_DIRS", tmp_path / "run")


def test_system_paths():
    """The whole machine's daemon has fixed places."""
    assert system_paths(macos=False) == Paths(
        Path("/etc/ringd/ringd.toml"), Path("/run/ringd/ringd.sock"), Path("/var/lib/ringd")
    )
    assert system_paths(macos=True) == Paths(
        Path("/etc/ringd/ringd.toml"), Path("/var/db/ringd/ringd.sock"), Path("/var/db/ringd/state")
    )


def test_user_paths_on_linux(tmp_path):
    """A user's daemon follows the XDG directories, and their defaults below the home."""
    environ = {
        "HOME": "/home/ann",
        "XDG_CONFIG_HOME": "/c",
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_STATE_HOME": "/s",
    }
    assert user_paths(environ, macos=False) == Paths(
        Path("/c/ringd/ringd.toml"), tmp_path / "ringd/ringd.sock", Path("/s/ringd")
    )
    assert user_paths({"HOME": "/home/ann"}, macos=False) == Paths(
        Path("/home/ann/.config/ringd/ringd.toml"),
        Path("/home/ann/.local/state/ringd/ringd.sock"),
        Path("/home/ann/.local/state/ringd"),
    )


def test_relative_xdg_directories_do_not_count():
    """As the XDG specification says."""
    environ = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": ""}
    assert user_paths(environ, macos=False) == user_paths({"HOME": "/home/ann"}, macos=False)


def test_user_paths_on_macos():
    """On a Mac all three are in the user's Library, whatever XDG says."""
    base = Path("/Users/ann/Library/Application Support/ringd")
    environ = {"HOME": "/Users/ann", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert user_paths(environ, macos=True) == Paths(
        base / "ringd.toml", base / "ringd.sock", base / "state"
    )


@pytest.mark.parametrize("macos", [False, True])
def test_default_is_by_user(macos):
    """Root runs the system's daemon, others their own."""
    environ = {"HOME": "/home/ann"}
    assert default_paths(environ, root=True, macos=macos) == system_paths(macos=macos)
    assert default_paths(environ, root=False, macos=macos) == user_paths(environ, macos=macos)


@pytest.mark.parametrize("macos", [False, True])
def test_socket_candidates(macos):
    """A client tries the user's own daemon first."""
    environ, user = {"HOME": "/home/ann"}, User(os.geteuid(), Path("/home/ann"))
    found = socket_candidates(environ, macos=macos, user=user)
    assert user_paths(environ, macos=macos, user=user).socket in found[:-1]
    assert found[-1] == system_paths(macos=macos).socket


class Homes:
    """Environments in which things of one user are started."""

    def __init__(self, place):
        self.user = User(os.geteuid(), place / "home")
        self.runtime = place / "run" / str(os.geteuid())
        self.runtime.mkdir(parents=True)
        home = {"HOME": str(place / "home")}
        self.environs = {
            "desktop": home | {"XDG_RUNTIME_DIR": str(self.runtime)},
            "ssh command": home,
            "cron": {},
            "su from root": home | {"XDG_RUNTIME_DIR": str(place / "run" / "0")},
            "another home": {"HOME": str(place / "other")},
            "own XDG": home | {"XDG_RUNTIME_DIR": str(place), "XDG_STATE_HOME": str(place / "s")},
        }


KINDS = ["desktop", "ssh command", "cron", "su from root", "another home"]


@pytest.mark.parametrize("program", KINDS)
@pytest.mark.parametrize("daemon", KINDS)
@pytest.mark.parametrize("logged_in", [True, False])
@pytest.mark.parametrize("macos", [True, False])
def test_a_user_has_one_daemon(tmp_path, daemon, program, logged_in, macos):
    """Whatever started the one and the other, and whether there was a runtime directory then."""
    homes = Homes(tmp_path)
    if not logged_in:
        homes.runtime.rmdir()
    socket = user_paths(homes.environs[daemon], macos=macos, user=homes.user).socket
    if not logged_in:  # they log in later
        homes.runtime.mkdir()
    found = socket_candidates(homes.environs[program], macos=macos, user=homes.user)
    if daemon != "another home" or program == daemon:
        assert socket in found
    if logged_in and not macos:
        assert socket == homes.runtime / "ringd" / "ringd.sock"


def test_a_place_that_only_the_environment_leads_to_is_told(tmp_path):
    """The daemon says how other programs find it; silent where they all look."""
    homes = Homes(tmp_path)
    for kind in ("desktop", "ssh command", "cron", "su from root"):
        assert paths.by_environment(homes.environs[kind], macos=False, user=homes.user) == ""
    for kind, name in (("own XDG", "XDG_RUNTIME_DIR"), ("another home", "HOME")):
        environ = homes.environs[kind]
        if kind == "another home":
            homes.runtime.rmdir()
        socket = user_paths(environ, macos=False, user=homes.user).socket
        told = paths.by_environment(environ, macos=False, user=homes.user)
        assert f"{name}={environ[name]}" in told
        assert f"RINGD_SOCKET={socket}" in told


@of_xdg
def test_a_daemon_that_some_programs_cannot_find_says_so(tmp_path, monkeypatch):
    """As it starts, unless its socket was named."""
    settings = SimpleNamespace(
        ring=SimpleNamespace(key=b""),
        ipc=SimpleNamespace(socket=None, reserve=64),
        log=SimpleNamespace(level="info", format="text"),
        metrics=SimpleNamespace(wanted=False),
        node="n0",
    )
    monkeypatch.setattr(daemon_main.load, "load", lambda *_: settings)
    monkeypatch.setattr(daemon_main.logs, "configure", lambda *_: None)
    monkeypatch.setattr(daemon_main.heap, "give_back_large_blocks", lambda: None)
    monkeypatch.setattr(daemon_main, "raise_open_files", lambda: None)
    monkeypatch.setattr(daemon_main, "Daemon", lambda *_: SimpleNamespace(run=lambda: None))
    monkeypatch.setattr(daemon_main.os, "geteuid", lambda: ME.uid or 4711)
    monkeypatch.setattr(paths, "current_user", lambda: ME)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    with capture_logs() as logged:
        daemon_main.main(["--node", "n0"], standalone_mode=False)
        daemon_main.main(["--node", "n0", "--socket", "s"], standalone_mode=False)
    (entry,) = logged
    assert f"RINGD_SOCKET={tmp_path / 'ringd' / 'ringd.sock'}" in entry["reason"]


def test_a_runtime_directory_that_is_gone_is_not_taken(tmp_path):
    """It went with the last logout, and only the system can make it: the next place is taken."""
    homes = Homes(tmp_path)
    environ = homes.environs["desktop"]
    homes.runtime.rmdir()
    place = user_paths(environ, macos=False, user=homes.user).socket
    assert place == tmp_path / "home" / ".local/state/ringd/ringd.sock"


@pytest.mark.parametrize("depth", ["theirs", "theirs/ringd"])
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"])
@pytest.mark.parametrize("macos", [True, False])
def test_nothing_of_another_user_is_trusted(tmp_path, monkeypatch, variable, depth, macos):
    """A variable left from somebody else leads neither program nor daemon to their directory."""
    theirs = tmp_path / "theirs"
    (theirs / "ringd").mkdir(parents=True)
    if variable == "HOME":
        (theirs / ".local" / "state" / "ringd").mkdir(parents=True)
        depth = "theirs"
    give_away(monkeypatch, tmp_path / depth)
    environ = {variable: str(theirs)}
    own = user_paths(environ, macos=macos, user=ME)
    found = socket_candidates(environ, macos=macos, user=ME)
    assert all(theirs not in path.parents for path in (own.socket, own.state_dir, *found))
    if not macos or variable == "HOME":
        assert str(theirs) in left_out(environ, macos=macos, user=ME)
        assert "RINGD_SOCKET" in left_out(environ, macos=macos, user=ME)


def test_a_directory_that_anybody_may_fill_is_not_trusted(tmp_path, monkeypatch):
    """As /tmp: until the user's own directory stands there, somebody else may make it."""
    look = Path.stat

    def stat(path, **options):
        status = look(path, **options)
        return SimpleNamespace(st_uid=0, st_mode=0o41777) if path == tmp_path else status

    monkeypatch.setattr(Path, "stat", stat)
    user = User(4711, None) if os.geteuid() == 0 else ME
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    socket = tmp_path / "ringd" / "ringd.sock"
    assert socket not in socket_candidates(environ, macos=False, user=user)
    assert socket != user_paths(environ, macos=False, user=user).socket
    socket.parent.mkdir()
    assert socket in socket_candidates(environ, macos=False, user=ME)


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        ("me", 0o700, True),
        ("me", 0o775, True),
        ("me", 0o777, False),
        ("me", 0o1777, False),
        ("root", 0o755, True),
        ("root", 0o775, False),
        ("root", 0o2775, False),
        ("root", 0o1777, False),
        ("other", 0o700, False),
    ],
)
def test_a_directory_is_trusted_in_which_nobody_else_may_write(tmp_path, monkeypatch, case, made):
    """Whether the directory itself is looked at, or that in which somebody may make it."""
    owner, mode, trusted = case
    uid = {"me": 4711, "root": 0, "other": 4712}[owner]
    place = tmp_path / "ringd"
    if made:
        place.mkdir()
    look = Path.stat

    def stat(path, **options):
        look(path, **options)
        return SimpleNamespace(st_uid=uid, st_mode=0o40000 | mode)

    monkeypatch.setattr(Path, "stat", stat)
    assert paths._ours(place, 4711) is trusted


def test_nothing_is_left_out_of_an_ordinary_login(tmp_path):
    """So nothing is said about it."""
    homes = Homes(tmp_path)
    assert left_out(homes.environs["desktop"], macos=False, user=homes.user) == ""


@of_xdg
def test_all_places_are_told(place, monkeypatch):
    """A program and a command that find no daemon list where they looked, and where not."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "stale"))
    monkeypatch.setattr(paths, "system_paths", lambda **_: Paths(*[place / "system"] * 3))
    monkeypatch.setattr(paths, "_ours", lambda path, _uid: place / "stale" not in path.parents)
    monkeypatch.setenv("HOME", str(place / "home"))
    said = unavailable()
    output = CliRunner().invoke(main, ["status"]).output
    for text in (said, output):
        looked, _, not_looked = text.partition("not looked for at ")
        for path in socket_candidates():
            assert str(path) in looked
        assert "which it logs as it starts, with RINGD_SOCKET or " in looked
        assert str(place / "stale" / "ringd" / "ringd.sock") in not_looked


def test_a_daemon_in_the_last_place_is_found(place, monkeypatch):
    """Program and command find what runs in any of the user's places."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "gone"))
    monkeypatch.setenv("HOME", str(place / "none"))
    user = User(os.geteuid(), place)
    monkeypatch.setattr(paths, "current_user", lambda: user)
    with FakeDaemon(socket_candidates()[-2], size=3), ringd.connect(timeout=10) as ring:
        assert ring.size == 3
        assert "no daemon here" not in CliRunner().invoke(main, ["status"]).output


def test_no_home():
    """A process without a home (in a container) still gets full paths."""
    for macos in (False, True):
        assert all(path.is_absolute() for path in socket_candidates({}, macos=macos))


@pytest.mark.parametrize(
    ("there", "expected"),
    [((), "own"), (("own",), "own"), (("system",), "system"), (("own", "system"), "own")],
)
def test_find_config(tmp_path, monkeypatch, there, expected):
    """A user's own config comes before the system's; if neither is there, it is the one named."""
    environ = {"HOME": str(tmp_path)}
    own = user_paths(environ, macos=False).config
    system = tmp_path / "etc.toml"
    places = Paths(system, tmp_path, tmp_path)
    monkeypatch.setattr("ringd.host.paths.system_paths", lambda **_: places)
    files = {"own": own, "system": system}
    for name in there:
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].touch()
    assert find_config(environ, root=False, macos=False) == files[expected]


def test_a_config_that_cannot_be_seen_is_not_there(monkeypatch):
    """A home that may not be entered is no reason to fail without a word."""

    def hidden(_path):
        raise PermissionError

    monkeypatch.setattr(Path, "exists", hidden)
    environ = {"HOME": "/home/ann"}
    assert find_config(environ, root=False, macos=False) == user_paths(environ, macos=False).config
