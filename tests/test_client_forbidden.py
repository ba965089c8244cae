"""A socket that this user may not use: said at once, with what to do, by library and commands."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon

import ringd
from ringd.cli.main import main
from ringd.client import ring as ring_module
from ringd.client.channel import Channel
from ringd.daemon.main import main as daemon_main
from ringd.wire.border import lifeline
from tests.cluster import PATIENCE
from tests.ringkit import Call

NOBODY = 65534
LONG = 60.0
"""Seconds that nobody is to wait for here."""


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be somebody to whom modes apply, where root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def public() -> Iterator[Path]:
    """Give a directory that everybody can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["socket", "directory"])
def shut(public: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give a daemon's socket that this user may not use, by itself or by what it lies in."""
    place = public / "ringd"
    place.mkdir()
    with FakeDaemon(place / "s") as daemon:
        if request.param == "directory":
            place.chmod(0)
        else:
            for end in ("", lifeline.SUFFIX):
                Path(daemon.path + end).chmod(0)
        yield Path(daemon.path)
        place.chmod(0o755)


@pytest.mark.parametrize("brief", [False, True])
def test_connect_says_so_at_once(
    shut: Path, monkeypatch: pytest.MonkeyPatch, *, brief: bool
) -> None:
    """Nobody waits for a daemon that is there, nor is told to start one.

    Also if connect's time is over before that is sure: it is so as of the last look.
    """
    timeout = LONG
    if brief:
        monkeypatch.setattr("ringd.client.keeper._SURELY_FORBIDDEN", math.inf)
        timeout = 2.0  # enough for a first look, on a busy machine, too
    begun = time.monotonic()
    with ordinary_user(), pytest.raises(ringd.Refused, match="no permission") as refused:
        ringd.connect(shut, timeout=timeout)
    assert time.monotonic() - begun < LONG / 2
    assert str(shut) in str(refused.value)
    assert "mode 0000" in str(refused.value)
    assert "start one" not in str(refused.value)


@pytest.mark.parametrize("words", [["status"], ["health"], ["health", "--wait", "60s"], ["rejoin"]])
def test_commands_say_so_at_once(shut: Path, words: list[str]) -> None:
    """In one line, with the exit code of an error: the usage was right, and a daemon is there."""
    with ordinary_user():
        result = CliRunner().invoke(main, [*words, "--socket", str(shut)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {shut}: no permission")
    assert "mode 0000" in result.output


def test_one_that_may_be_used_is(shut: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several places, the forbidden ones are in nobody's way."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    with FakeDaemon(public / "own", size=3) as own:
        Path(own.path).chmod(0o666)
        Path(own.path + lifeline.SUFFIX).chmod(0o666)
        Path(own.path + ".zmq").chmod(0o666)  # its gate is this user, too, for a while
        places = (shut, public / "none", Path(own.path))
        monkeypatch.setattr(ring_module, "socket_candidates", lambda: places)
        monkeypatch.setattr("ringd.host.paths.socket_candidates", lambda: places)
        with ordinary_user():
            with ringd.connect(timeout=LONG) as ring:
                assert ring.size == 3
            assert "no permission" not in CliRunner().invoke(main, ["status"]).output


def test_all_places_are_told(shut: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who expected another daemon reads that there is none."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    places = (public / "none", shut)
    monkeypatch.setattr(ring_module, "socket_candidates", lambda: places)
    monkeypatch.setattr("ringd.host.paths.socket_candidates", lambda: places)
    with ordinary_user():
        with pytest.raises(ringd.Refused) as refused:
            ringd.connect(timeout=LONG)
        output = CliRunner().invoke(main, ["status"]).output
    for text in (str(refused.value), output):
        assert all(str(place) in text for place in places)


def test_a_daemon_that_is_just_making_its_socket_is_waited_for(public: Path) -> None:
    """Until its group is right, nobody but its owner gets in: that is no refusal."""
    with FakeDaemon(public / "s", size=3) as daemon:
        Path(daemon.path + ".zmq").chmod(0o666)  # its gate is this user, too, for a while
        ends = [Path(daemon.path + end) for end in ("", lifeline.SUFFIX)]
        for end in ends:
            os.chown(end, NOBODY if os.geteuid() == 0 else -1, -1)
            end.chmod(0)
        looked = threading.Event()

        def look(*arguments: Any) -> Channel:
            try:
                return Channel(*arguments)
            finally:
                looked.set()

        with ordinary_user(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("ringd.client.keeper.Channel", look)
            call = Call(lambda: ringd.connect(daemon.path, timeout=LONG))
            assert looked.wait(PATIENCE)
            for end in ends:
                end.chmod(0o666)
            with call.result() as ring:
                assert ring.size == 3


@pytest.mark.parametrize("command", [*main.commands.values(), daemon_main], ids=lambda c: c.name)
def test_no_file_is_judged_before_it_is_used(command: click.Command) -> None:
    """What may not be read is an error in our own words, and no wrong usage."""
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            assert not parameter.type.readable, parameter.name


def test_a_config_that_may_not_be_read(public: Path) -> None:
    """The daemon's exit code is that of a config that cannot be used."""
    config = public / "ringd.toml"
    config.touch(0o000)
    with ordinary_user():
        result = CliRunner().invoke(daemon_main, ["--config", str(config)])
    assert result.exit_code == 78
    assert result.output.startswith(f"Error: {config}: cannot be read: Permission denied")
