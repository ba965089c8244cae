"""A program works with no daemon but its own user's, root's and the service's."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon

import ringd
from ringd.cli.ask import ERROR
from ringd.cli.main import main
from ringd.forward.attachment import Attachment
from ringd.forward.connection import Target
from ringd.host import trust
from ringd.loop import Loop

LONG = 60.0
"""Seconds that nobody is to wait for here."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Give a daemon in a directory of its own."""
    (tmp_path / "place").mkdir(mode=0o755)
    with FakeDaemon(tmp_path / "place" / "s") as daemon:
        yield daemon


def refused(path: str, why: str) -> None:
    """Make sure that library and command refuse the daemon at *path* at once, for that reason."""
    begun = time.monotonic()
    with pytest.raises(ringd.Refused, match=why):
        ringd.connect(path, timeout=LONG)
    assert time.monotonic() - begun < LONG / 2
    said = CliRunner().invoke(main, ["status", "--socket", path])
    assert said.exit_code == ERROR
    assert why.split(".*", maxsplit=1)[0] in said.output


def test_another_users_daemon_is_a_stranger(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has taken the socket's name, the kernel says who it is."""
    monkeypatch.setattr(trust, "trusted_users", lambda: {54321})
    refused(daemon.path, f"user {os.geteuid()} answers there.*run the daemon as one of these")


def test_a_place_that_all_can_write_to_is_no_place(daemon: FakeDaemon) -> None:
    """Somebody could put the other one of the two sockets there."""
    place = Path(daemon.path).parent
    place.chmod(0o777)
    refused(daemon.path, f"every user can put a socket there; correct the mode of {place}")
    place.chmod(0o1777)  # as /tmp, where nobody can remove what is another's
    with ringd.connect(daemon.path, timeout=LONG) as ring:
        assert ring.node


def test_streams_are_handed_to_no_stranger(
    daemon: FakeDaemon, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one takes the place of the daemon that was there before: it is heard no more."""
    troubles: list[tuple[str, bool]] = []

    def trouble(reason: str, *, denied: bool) -> None:
        troubles.append((reason, denied))
        loop.stop()

    attachment = Attachment(
        loop,
        Path(daemon.path),
        "program",
        serves=(),
        reaches=(),
        accepts=lambda *_: Target(1),
        on_held=lambda *_: None,
        on_trouble=trouble,
        on_reset=lambda _member, _reason: None,
    )
    attachment.start()
    loop.run()
    assert troubles.pop() == ("a fake daemon carries no streams", True)
    monkeypatch.setattr(trust, "trusted_users", lambda: {54321})
    loop.run()
    attachment.close()
    ((reason, denied),) = troubles
    assert f"user {os.geteuid()} answers there" in reason
    assert not denied  # which it would be, had it been asked


def test_the_services_user_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is one; and so are root and this user."""
    monkeypatch.setattr(trust, "SERVICE_USER", "nobody")
    assert trust.trusted_users() == {0, os.geteuid(), pwd.getpwnam("nobody").pw_uid}
    monkeypatch.setattr(trust, "SERVICE_USER", "none of that name")
    assert trust.trusted_users() == {0, os.geteuid()}
