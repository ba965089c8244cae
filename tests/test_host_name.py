"""A host whose name is no member's yet: at boot, or after the network has changed it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ringd.cli.ask import find_socket
from ringd.config.load import UnknownHost, choose_node, load
from ringd.config.settings import Config
from ringd.daemon import main as program
from ringd.errors import ConfigError, DaemonUnavailable
from ringd.observe import logs
from tests.cluster import wait_until
from tests.ownports import free_ports

RING = """
[ring]
name = "test"
[[ring.members]]
name = "{name}"
addresses = ["127.0.0.1:{port}"]
"""
MEMBER = """
[[ring.members]]
name = "{name}"
addresses = ["127.0.0.1:2"]
"""


@pytest.fixture
def config(place: Path) -> Path:
    """Return the config of a ring of one, the member "mini"."""
    path = place / "ringd.toml"
    path.write_text(RING.format(name="mini", port=free_ports(1)[0]))
    return path


@pytest.mark.parametrize(
    ("names", "hostname", "expected"),
    [
        (["studio", "mini"], "mini-2", "mini"),
        (["studio", "mini"], "Mini-13.local", "mini"),
        (["studio", "mini.lan"], "mini-2.lan", "mini.lan"),
        (["mini", "mini-2"], "mini-2", "mini-2"),
        (["node-1", "node-2"], "node-2-2", "node-2"),
    ],
)
def test_a_name_that_the_network_has_numbered(
    names: list[str], hostname: str, expected: str
) -> None:
    """A host that was renamed as another one had its name, or seemed to, is still that member."""
    assert choose_node(names, None, hostname) == expected


@pytest.mark.parametrize(
    ("names", "hostname"),
    [
        (["mini", "mini-2"], "mini-3"),  # where members have numbers, one more is another machine
        (["node", "node-7"], "node-2"),
        (["mini"], "mini-1"),
        (["mini"], "mini-100"),
        (["mini"], "mini2"),
        (["mini.a", "mini.b"], "mini-2"),
    ],
)
def test_a_number_that_may_be_another_machines(names: list[str], hostname: str) -> None:
    """Where it is not clear whose name was changed, nobody's place is taken."""
    with pytest.raises(ValueError, match="--node"):
        choose_node(names, None, hostname)


def test_only_the_hosts_name_is_waited_for(config: Path) -> None:
    """What is wrong with the file besides, or with a name that was given, does not mend itself."""
    with pytest.raises(UnknownHost):
        load(config, hostname="localhost")
    with pytest.raises(ConfigError) as named:
        load(config, "localhost")
    config.write_text(config.read_text() + "[join]\nheartbeat = 1\n")
    with pytest.raises(ConfigError) as worse:
        load(config, hostname="localhost")
    config.write_text(RING.format(name="mini.a", port=1) + MEMBER.format(name="mini.b"))
    with pytest.raises(ConfigError, match="several members") as several:
        load(config, hostname="mini")
    for caught in (named, worse, several):
        assert not isinstance(caught.value, UnknownHost)


class Daemon:
    """A daemon that only says which member it is."""

    def __init__(self, settings: Config, *_places: Path) -> None:
        self.node = settings.node

    def run(self) -> None:
        """End at once."""
        assert logs.flush()
        click.echo(self.node)


def start(monkeypatch: pytest.MonkeyPatch, config: Path, names: list[str], *options: str) -> Result:
    """Run ``ringd`` on a host that has each of *names* in turn, the last one for ever."""
    remaining = list(names)
    monkeypatch.setattr(
        "ringd.config.load.socket.gethostname",
        lambda: remaining.pop(0) if len(remaining) > 1 else remaining[0],
    )
    monkeypatch.setattr(program, "Daemon", Daemon)
    monkeypatch.setattr(program, "LOOK_AGAIN", 0.001)
    monkeypatch.setattr(program, "raise_open_files", lambda: None)
    monkeypatch.setattr(program.heap, "give_back_large_blocks", lambda: None)
    places = ["--socket", str(config.parent / "s"), "--state-dir", str(config.parent)]
    return CliRunner().invoke(program.main, ["--config", str(config), *places, *options])


def test_a_name_that_comes_late(monkeypatch: pytest.MonkeyPatch, config: Path, place: Path) -> None:
    """The daemon starts as soon as the host has its name; until then it says so once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "notify"))
        result = start(monkeypatch, config, ["localhost"] * 20 + ["mini.local"])
        assert result.stdout == "mini\n"
        manager.setblocking(False)
        said = manager.recv(4096)
        assert said.startswith(b"STATUS=waiting")
        assert b'"localhost"' in said
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    assert result.stderr.count("localhost") == 1
    assert "RINGD_NODE" in result.stderr


def test_a_name_that_does_not_come(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """After a while the service manager is let go on, with an exit code that it restarts on."""
    monkeypatch.setattr(program, "WAIT_FOR_NAME", 0.05)
    result = start(monkeypatch, config, ["localhost"])
    assert (result.exit_code, result.exception.__class__) == (75, SystemExit)


def test_a_check_does_not_wait(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """``--check-config`` and a name that was given say at once what is wrong."""
    assert start(monkeypatch, config, ["localhost", "mini"], "--check-config").exit_code == 78
    assert start(monkeypatch, config, ["localhost"], "--node", "other").exit_code == 78


def test_a_numbered_name_is_told(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """Whoever takes the host for a member by another name says so."""
    result = start(monkeypatch, config, ["mini-2.local"])
    assert result.stdout == "mini\n"
    assert "mini-2.local" in result.stderr
    assert "mini-2" not in start(monkeypatch, config, ["mini.local"]).stderr


def test_a_config_that_is_mended_meanwhile(config: Path, place: Path) -> None:
    """A real daemon that waits reads its config anew, and starts with what it says then."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RINGD_")}
    command = [sys.executable, "-m", "ringd.daemon.main", "--config", str(config)]
    command += ["--socket", str(place / "s"), "--state-dir", str(place / "state")]
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    try:

        def events() -> list[str]:
            whole = (place / "log").read_text().rpartition("\n")[0]
            return [json.loads(line)["event"] for line in whole.splitlines()]

        wait_until(lambda: "waiting for this host's name" in events(), "a word")
        wait_until((place / "s.lock").exists, "the lock")
        with pytest.raises(DaemonUnavailable) as caught:
            find_socket(place / "s")
        assert f"the daemon, process {daemon.pid} on host" in str(caught.value)
        assert "is starting: waiting for this host's name: " in str(caught.value)
        assert "RINGD_NODE" in str(caught.value)
        host = socket.gethostname().partition(".")[0]
        beside = config.with_suffix(".new")  # it may be read at any moment
        beside.write_text(config.read_text().replace('"mini"', f'"{host}"'))
        beside.rename(config)
        wait_until(lambda: "ring ready" in events(), "the ring")
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
