"""What reaches the journal: how severe it is, no line too long; elsewhere nothing of that."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import structlog
from cluster import Cluster, wait_until

from ringd.cli.ask import ask
from ringd.host import journal
from ringd.observe import logs
from ringd.wire.border.messages import AskReload


@pytest.fixture(autouse=True)
def _restore_structlog():
    yield
    structlog.reset_defaults()


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Give a stream that is said to lead to the journal."""
    with (tmp_path / "journal").open("w+", encoding="utf-8") as file:
        monkeypatch.setenv("JOURNAL_STREAM", identity(file.fileno()))
        yield file


def identity(file):
    """Return what systemd says about a descriptor, or a path."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return f"{status.st_dev}:{status.st_ino}"


def written(stream):
    """Return the lines that were logged."""
    assert logs.flush(10)
    stream.seek(0)
    return stream.read().splitlines()


def test_lines_carry_their_priority(stream):
    """Each level has its own; the rest is the JSON as it was."""
    logs.configure("debug", stream=stream)
    log = structlog.get_logger()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("it happened")
    lines = written(stream)
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["it happened"] * 5


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_is_too_long(stream, form):
    """A traceback, a list and a text of any size make lines that the journal shows."""
    logs.configure(form=form, stream=stream)
    log = structlog.get_logger()
    try:
        int("x" * 4000)
    except ValueError:
        log.exception("bug", members=[f"member {i}" for i in range(5000)], reason="é" * 9000)
    lines = written(stream)
    assert {line[:3] for line in lines} == {"<3>"}
    assert max(len(line.encode()) for line in lines) <= journal.MAX_LINE
    if form == "json":
        (line,) = lines
        assert json.loads(line[3:])["event"] == "bug"


def test_elsewhere_nothing_stands_before_a_line(tmp_path, monkeypatch):
    """Also where the environment of a service was inherited and the stream is another one."""
    monkeypatch.setenv("JOURNAL_STREAM", identity(tmp_path))
    with (tmp_path / "log").open("w+", encoding="utf-8") as file:
        logs.configure(stream=file)
        structlog.get_logger().warning("it happened", reason="y" * 10_000)
        (line,) = written(file)
    assert json.loads(line)["event"] == "it happened"
    assert len(line) <= journal.MAX_LINE


@pytest.mark.parametrize("stream", [None, sys.__stderr__])
def test_no_journal_without_its_word(monkeypatch, stream):
    """On macOS and on a terminal there is none."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not journal.leads_to(stream)


@pytest.fixture
def service(place):
    """Give a ring of two of which one daemon runs as a service: journal, notify socket and all."""
    with (
        Cluster(place, 2) as cluster,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(place / "notify"))
        manager.settimeout(30)
        cluster[0].log_path.touch()
        cluster.environ["NOTIFY_SOCKET"] = manager.getsockname()
        cluster.environ["JOURNAL_STREAM"] = identity(cluster[0].log_path)
        cluster.manager = manager
        yield cluster


def told(cluster):
    """Return the next message to the service manager."""
    return cluster.manager.recv(4096).decode().split("\n")


def command(node, *words):
    """Run ringd-cli against *node*."""
    return subprocess.run(
        [sys.executable, "-m", "ringd.cli.main", *words, "--socket", str(node.socket)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_service_says_how_it_stands_from_the_start(service):
    """The first word says that it is ready for programs, and in what state the ring is."""
    service.start([0])
    messages = [told(service)]
    while "READY=1" not in messages[-1]:
        messages.append(told(service))
    ready, status = messages[-1]
    assert ready == "READY=1"
    assert status.startswith("STATUS=forming: ")
    service.start([1])
    while not messages[-1][-1].startswith("STATUS=ready: "):
        messages.append(told(service))


def test_service_that_cannot_start_says_so_as_an_error(service):
    """A bad config is found by looking for errors in the journal."""
    service.write_config("[join]\nheartbeat = 1\n")
    service.start([0])
    assert service[0].process.wait(30) == 78
    lines = service[0].log_path.read_text().splitlines()
    assert lines
    assert {line[:9] for line in lines} == {"<3>Error:"}


def test_reload_says_what_came_of_it(service):
    """Good: exit 0; refused: exit 1 with the reason, and the old settings stay."""
    node = service[0]
    service.start([0])
    wait_until(node.status, "an answer")
    done = command(node, "reload")
    assert (done.returncode, done.stdout) == (0, "Reloaded.\n")
    service.write_config("[ipc]\nwindow = 7\n")
    done = command(node, "reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the reload was refused, the old settings stay: ipc.window changed" in done.stderr
    done = command(node, "reload", "--json")
    assert done.returncode == 1
    assert "ipc.window changed" in json.loads(done.stdout)["refused"]
    service.config.write_text("[ring")
    assert "ringd.toml" in ask(node.socket, AskReload)["refused"]
    assert node.status()["reload_error"] is not None
    service.write_config("")
    assert ask(node.socket, AskReload)["refused"] is None
    assert node.status()["reload_error"] is None
    warned = [line for line in node.log_path.read_text().splitlines() if line.startswith("<3>")]
    assert len(warned) == 3


def test_fault_of_our_own_is_one_line_of_the_log(service):
    """An exception that nobody expected ends the daemon with its traceback in the log's form."""
    code = (
        "import sys; from ringd.daemon import main; "
        "main.Daemon.run = lambda self: {}['missing']; main.main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--config", str(service.config), "--node", "n0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    content = json.loads(line)
    assert (content["level"], content["event"]) == ("critical", "ended by a fault of ringd")
    assert content["exception"].endswith("KeyError: 'missing'")
