"""Why a socket may not be used: in words, and with the line to type."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ringd.host import permission
from ringd.host.permission import Asker, Barrier, explain

SOCKET = Path("/run/ringd/ringd.sock")
ANN = Asker(1000, frozenset({1000, 27}), frozenset({1000, 27}), "ann")


def socket(mode: int = 0o660, **changes: object) -> Barrier:
    """The system daemon's socket."""
    fields = {"uid": 900, "gid": 901, "owner": "ringd", "group": "ring"} | changes
    return Barrier(str(SOCKET), stat.S_IFSOCK | mode, **fields)


def directory(mode: int = 0o750) -> Barrier:
    """What it lies in."""
    return Barrier("/run/ringd", stat.S_IFDIR | mode, 900, 901, "ringd", "ring")


@pytest.mark.parametrize("barrier", [socket(), directory()])
@pytest.mark.parametrize("macos", [False, True])
def test_not_in_the_group(barrier: Barrier, *, macos: bool) -> None:
    """The group, who is not in it, and the command of this system that mends it."""
    line = "dseditgroup -o edit -a ann -t user ring" if macos else "usermod -aG ring ann"
    text = explain(SOCKET, barrier, ANN, macos=macos)
    assert text.startswith(f"{SOCKET}: no permission")
    assert "for group 'ring'" in text
    assert "user 'ann' is not in it" in text
    assert f"`sudo {line}`, then log out and in again" in text
    assert ("to enter /run/ringd" in text) == stat.S_ISDIR(barrier.mode)


@pytest.mark.parametrize("barrier", [socket(), directory()])
def test_not_in_this_login_yet(barrier: Barrier) -> None:
    """Who was added to the group after they had logged in needs no administrator any more."""
    asker = Asker(1000, frozenset({1000}), frozenset({1000, 901}), "ann")
    text = explain(SOCKET, barrier, asker)
    assert "user 'ann' is in it, but not yet in this login" in text
    assert "log out and in again, or type `newgrp ring`" in text
    assert "usermod" not in text


def test_nobody_is_told_to_join_root() -> None:
    """A daemon that root started by hand has root's group: its config is to name another."""
    text = explain(SOCKET, socket(gid=0, group="root"), ANN)
    assert "ipc.group" in text
    assert "usermod" not in text


def test_group_without_a_name() -> None:
    """In a container the host's groups are numbers."""
    asker = Asker(1000, frozenset({1000}))
    text = explain(SOCKET, socket(group=""), asker)
    assert "group of gid 901" in text
    assert "uid 1000 is not in it" in text
    assert "--group-add 901" in text


@pytest.mark.parametrize(
    ("barrier", "remedy"), [(socket(0o600), "ipc.mode"), (directory(0o700), "ipc.socket")]
)
def test_for_its_owner_alone(barrier: Barrier, remedy: str) -> None:
    """No group helps: its owner is named, and what they can set."""
    text = explain(SOCKET, barrier, ANN)
    assert "for its owner, 'ringd', alone" in text
    assert remedy in text
    assert "usermod" not in text


def test_first_class_that_applies_decides() -> None:
    """An owner, and then a member of the group, get no more than what is set for these."""
    owner = Asker(900, frozenset({901}), user="ringd")
    assert "`chmod u+w /run/ringd/ringd.sock`" in explain(SOCKET, socket(0o066), owner)
    member = Asker(1000, frozenset({901}), user="ann")
    assert "for its owner, 'ringd', alone" in explain(SOCKET, socket(0o606), member)


@pytest.mark.parametrize("mode", [0o666, 0o660])
def test_more_than_the_mode_forbids(mode: int) -> None:
    """Where owner, group and mode would do, something else is at work."""
    member = Asker(1000, frozenset({1000, 901}), user="ann")
    assert "SELinux, AppArmor or a sandbox" in explain(SOCKET, socket(mode), member)


def test_nothing_to_be_seen() -> None:
    """Also then the socket is named."""
    assert str(SOCKET) in explain(SOCKET, None, ANN)


def test_what_is_in_the_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket, or else the first directory from there that can be looked at."""
    place = tmp_path / "a" / "b" / "s"
    place.parent.mkdir(parents=True)
    place.touch(0o600)
    found = permission._barrier(place)
    assert found is not None
    assert (found.path, found.uid) == (str(place), place.stat().st_uid)
    look = Path.stat

    def forbidden(path: Path) -> object:
        if (tmp_path / "a") in path.parents:
            raise PermissionError
        return look(path)

    monkeypatch.setattr(Path, "stat", forbidden)
    found = permission._barrier(place)
    assert found is not None
    assert found.path == str(tmp_path / "a")
