"""The usual places, on Linux and on macOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringd.host.paths import (
    Paths,
    default_paths,
    find_config,
    socket_candidates,
    system_paths,
    user_paths,
)


def test_system_paths():
    """The whole machine's daemon has fixed places."""
    assert system_paths(macos=False) == Paths(
        Path("/etc/ringd/ringd.toml"), Path("/run/ringd/ringd.sock"), Path("/var/lib/ringd")
    )
    assert system_paths(macos=True) == Paths(
        Path("/etc/ringd/ringd.toml"), Path("/var/db/ringd/ringd.sock"), Path("/var/db/ringd/state")
    )


def test_user_paths_on_linux():
    """A user's daemon follows the XDG directories, and their defaults below the home."""
    environ = {
        "HOME": "/home/ann",
        "XDG_CONFIG_HOME": "/c",
        "XDG_RUNTIME_DIR": "/run/user/7",
        "XDG_STATE_HOME": "/s",
    }
    assert user_paths(environ, macos=False) == Paths(
        Path("/c/ringd/ringd.toml"), Path("/run/user/7/ringd/ringd.sock"), Path("/s/ringd")
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
    environ = {"HOME": "/home/ann"}
    assert socket_candidates(environ, macos=macos) == (
        user_paths(environ, macos=macos).socket,
        system_paths(macos=macos).socket,
    )


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
