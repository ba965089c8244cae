"""``ringd-cli forward`` and ``run``: ends of streams that outlive their daemons."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from borderkit import Raw

from ringd.cli import guard
from ringd.cli.ask import ask as ask_daemon
from ringd.cli.guard import Guard
from ringd.cli.holding import Holding
from ringd.cli.run import Child
from ringd.host.process import ending
from ringd.loop import Loop
from ringd.streams.end import End
from ringd.wire.border import messages as border
from ringd.wire.border.messages import AskDrain, AskResume
from ringd.wire.link import streams as wire
from tests.cluster import PATIENCE, Cluster, Node, wait_until
from tests.ownports import free_ports
from tests.ringkit import PATIENT, wait_state
from tests.streamkit import Server, ask, connect, echo, exactly, hear
from tests.test_ring_streams import MIB, table

CLI = [sys.executable, "-m", "ringd.cli.main"]


started: list[Command] = []


def end_all() -> None:
    """Leave none of the commands behind, nor what they run."""
    while started:
        started.pop().stop()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test has started."""
    yield
    end_all()


class Command:
    """``ringd-cli`` with *arguments*, at *node*'s daemon; :func:`end_all` ends it."""

    def __init__(self, node: Node, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*CLI, *arguments],
            env={**os.environ, "RINGD_SOCKET": str(node.socket)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(self)

    def __enter__(self) -> Command:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and what it runs, if that is still to be done."""
        if self.process.poll() is None:
            self.process.terminate()  # which is passed on
            try:
                self.process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()

    def end(self, timeout: float = PATIENCE) -> tuple[int, str, str]:
        """Wait for its end; return its exit code, and what it printed."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


def program(text: str) -> list[str]:
    """Return the command of a program in Python."""
    return [sys.executable, "-c", textwrap.dedent(text)]


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Give ports for the tests here: of a server on n2, and two free ones."""
    return free_ports(3)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Cluster]:
    """Give three daemons; n0 may reach the first of *ports* on n2."""
    text = PATIENT + table("n2", ports[0], None, ["n0"])
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=text) as cluster:
        cluster.start().wait_ready()
        yield cluster


def test_forward(ring: Cluster, ports: list[int]) -> None:
    """A port leads there for as long as the command runs, whatever becomes of its daemon."""
    server, here, _ = ports
    with Server(echo, server), Command(ring[0], "forward", f"{here}=n2:{server}") as command:
        with connect(here) as client:
            assert ask(client, b"hello") == b"hello"
            ring[0].restart()
            client.sendall(b"are you there?")
            ring.wait_ready()
            assert exactly(client, 14) == b"are you there?"
            command.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        code, out, err = command.end()
        assert code == 0
        assert out == f"127.0.0.1:{here} leads to port {server} of 'n2'\n"
        assert "what is open goes on when it is back" in err
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", here))


HALF = """
    import os, socket, sys, time
    sys.path.insert(0, os.getcwd())
    from tests.ringkit import Call
    from tests.streamkit import connect, digest, hear, speech
    own, size, port = map(int, sys.argv[1:])

    def say(connection):
        for piece in speech(own, size):
            connection.sendall(piece)
            time.sleep(0.02)
        connection.shutdown(socket.SHUT_WR)

    if own == 1:
        connection = connect(port)
    else:
        with socket.create_server(("127.0.0.1", port)) as listener:
            print("listening", flush=True)
            connection, _ = listener.accept()
    saying = Call(lambda: say(connection))
    assert hear(connection) == digest(3 - own, size)
    saying.result()
"""
"""One of two programs that speak to each other, for some seconds."""


def test_run_survives_the_death_of_every_daemon(ring: Cluster, ports: list[int]) -> None:
    """In the midst of two speeches, both ways: programs on both sides notice nothing."""
    server, here, _ = ports
    size = str(8 * MIB)
    serve = ("run", "--serve", str(server), "--", *program(HALF), "2", size, str(server))
    reach = ("run", "--forward", f"{here}=n2:{server}", *program(HALF), "1", size, str(here))
    with Command(ring[2], *serve) as serving:
        assert serving.process.stdout.readline() == "listening\n"
        with Command(ring[0], *reach) as reaching:
            wait_until(lambda: ring[2].status()["streams"]["programs"][0]["open"])
            for victims in ([0], [2], [0, 1, 2]):
                assert reaching.process.poll() is None
                for victim in victims:
                    ring[victim].kill()
                for victim in victims:
                    ring[victim].start()
                ring.wait_ready()
            code, out, err = reaching.end()
            assert (code, out) == (0, ""), err
        code, _, err = serving.end()
        assert code == 0, err
    wait_until(lambda: not any(node.status()["streams"]["programs"] for node in ring.nodes))


def test_a_program_that_is_killed_resets_the_other_end(ring: Cluster, ports: list[int]) -> None:
    """With the command that had its end."""
    server, here, _ = ports
    errors: list[OSError] = []

    def serve(connection: socket.socket) -> None:
        try:
            hear(connection)
        except OSError as error:
            errors.append(error)

    with (
        Server(serve, server),
        Command(ring[0], "forward", f"{here}=n2:{server}") as command,
        connect(here) as client,
    ):
        client.sendall(b"x")
        wait_until(lambda: ring[2].status()["streams"]["open"])
        command.process.kill()
        wait_until(lambda: errors, "the reset")
    assert isinstance(errors[0], ConnectionResetError)
    wait_until(lambda: not ring[2].status()["streams"]["open"])


def test_what_a_program_has_said_arrives_after_its_end(ring: Cluster, ports: list[int]) -> None:
    """Also while there is no ring."""
    server, here, _ = ports
    heard: list[str] = []
    text = f"""
        import os, sys
        sys.path.insert(0, os.getcwd())
        from tests.cluster import wait_until
        from tests.streamkit import connect, let_in
        client = connect({here})
        client.sendall(b"x" * 100_000)
        wait_until(lambda: let_in(client, os.getppid()))  # who hangs up before is turned away
        print("said", flush=True)
    """
    with Server(lambda c: heard.append(hear(c)), server):
        ask_daemon(ring[1].socket, AskDrain, timeout=PATIENCE)
        wait_state(ring[0], "forming")
        with Command(ring[0], "run", "--forward", f"{here}=n2:{server}", *program(text)) as command:
            assert command.process.stdout.readline() == "said\n"
            ask_daemon(ring[1].socket, AskResume, timeout=PATIENCE)  # at once, as it waits for 10 s
            code, _, err = command.end()
        assert (code, err) == (0, "")
        wait_until(lambda: heard)


def test_a_program_is_told_nothing_of_connections_that_it_has_left(
    ring: Cluster, ports: list[int]
) -> None:
    """All that it said has arrived; that the other one had yet to end them is nobody's loss."""
    server, here, _ = ports
    heard, over = threading.Event(), threading.Event()
    text = f"""
        import os, sys
        sys.path.insert(0, os.getcwd())
        from tests.cluster import wait_until
        from tests.streamkit import connect, let_in
        client = connect({here})
        client.sendall(b"hello")
        wait_until(lambda: let_in(client, os.getppid()))
    """

    def serve(connection: socket.socket) -> None:
        assert exactly(connection, 5) == b"hello"
        heard.set()
        over.wait(PATIENCE)

    with Server(serve, server):
        reach = ("run", "--forward", f"{here}=n2:{server}", *program(text))
        with Command(ring[0], *reach) as command:
            assert command.end() == (0, "", "")
        assert heard.wait(PATIENCE)
        over.set()


def holding_that_tells(loop: Loop, tell: Callable[[str], None]) -> Holding:
    """Return what a command holds, of streams to n1, that has no daemon yet."""
    holding = Holding(
        loop, Path("unused"), "a test", forwards=(), serves=(), on_ready=lambda: None, tell=tell
    )
    holding._names = ("n0", "n1")
    return holding


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (lambda holding: holding.program_ended(well=True), False),
        (lambda holding: holding.program_ended(well=False), True),
        (lambda _: None, True),
    ],
    ids=["ends well", "fails", "goes on"],
)
def test_a_reset_behind_the_last_word(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[Holding], None], *, told: bool
) -> None:
    """Where programs end together, and well, one is the first, and the others are told nothing."""
    monkeypatch.setattr("ringd.cli.holding.GO_ON_FOR", 0.0)
    said: list[str] = []
    loop = Loop()
    holding = holding_that_tells(loop, said.append)
    end = End(1, 1, window=lambda: MIB)
    end.other_closed = True
    holding._was_reset(end, "the program has ended")
    assert not said
    happens(holding)
    loop.call_later(0.0, loop.stop)
    loop.run()
    loop.close()
    expected = ["a connection with 'n1' was reset: the program has ended"]
    assert said == (expected if told else [])


def test_a_reset_before_the_last_word_is_told_at_once() -> None:
    """Something was yet to come."""
    said: list[str] = []
    loop = Loop()
    holding = holding_that_tells(loop, said.append)
    holding._was_reset(End(1, 1, window=lambda: MIB), "the program has ended")
    loop.close()
    assert said == ["a connection with 'n1' was reset: the program has ended"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["true"], 0, ""),
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
        (["no-such-command", "-x"], 127, "no-such-command: there is no such command"),
        (["/"], 126, "/: cannot be run: Permission denied"),
        ([], 2, "Missing argument 'COMMAND...'"),
        (["--forward", "n2", "true"], 2, '"n2" is not like 15000=studio:5000'),
        (["--forward", "0=n2:5", "true"], 2, '"0=n2:5" is not like'),
        (["--forward", "x:5", "true"], 1, "no member is named 'x'; there are n0, n1, n2"),
        (["--forward", "n0:5", "true"], 1, "'n0' is this machine, whose ports need no stream"),
        (["--forward", "n2:5", "true"], 1, "the config does not let 'n0' reach port 5 of 'n2'"),
        (["--serve", "5", "true"], 1, "the config lets nobody reach port 5 of 'n0'"),
        (["--serve", "70000", "true"], 2, "not in the range"),
        (["--socket", "/nowhere", "true"], 3, "no daemon here"),
    ],
)
def test_how_run_ends(ring: Cluster, arguments: list[str], code: int, words: str) -> None:
    """With the exit code of the command; or in words, if it comes to none."""
    with Command(ring[0], "run", *arguments) as command:
        found, out, err = command.end()
    assert (found, out) == (code, "")
    assert words in err if words else err == ""


def test_a_port_that_is_taken(ring: Cluster, ports: list[int]) -> None:
    """Is an error before anything is run."""
    with Server(echo) as other:
        target = f"{other.port}=n2:{ports[0]}"
        with Command(ring[0], "run", "--forward", target, "echo", "hello") as command:
            code, out, err = command.end()
    assert (code, out) == (1, "")
    assert f"127.0.0.1:{other.port}" in err
    assert "another program has that port" in err


def test_a_port_is_served_by_one_program(ring: Cluster, ports: list[int]) -> None:
    """The second one is told by which."""
    serve = ("run", "--serve", str(ports[0]))
    with Command(ring[2], *serve, "sleep", "60") as first:
        wait_until(lambda: ring[2].status()["streams"]["programs"])
        with Command(ring[2], *serve, "true") as second:
            code, _, err = second.end()
        assert code == 1
        assert f"by ringd-cli run sleep (pid {first.process.pid}); end that first" in err
        first.process.send_signal(signal.SIGTERM)
        assert first.end()[0] == 128 + signal.SIGTERM


def test_signals_are_passed_on(ring: Cluster) -> None:
    """And what the program makes of them is how it ends."""
    text = """
        import signal, sys, time
        for number, code in ((signal.SIGINT, 3), (signal.SIGUSR1, 4)):
            signal.signal(number, lambda *_, code=code: sys.exit(code))
        print("ready", flush=True)
        time.sleep(60)
    """
    for number, code in ((signal.SIGINT, 3), (signal.SIGUSR1, 4)):
        with Command(ring[0], "run", *program(text)) as command:
            assert command.process.stdout.readline() == "ready\n"
            command.process.send_signal(number)
            assert command.end()[0] == code


def test_what_a_killed_run_leaves_is_told_to_end(ring: Cluster) -> None:
    """It has lost its connections, and might wait for others without end."""
    text = """
        import os, time
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    with Command(ring[0], "run", *program(text)) as command:
        pid = int(command.process.stdout.readline())
        command.process.kill()
        wait_until(lambda: ending(pid), "the program has ended")


def test_a_program_whose_guard_was_dismissed_is_left_alone() -> None:
    """Its number may be another's."""
    with subprocess.Popen(["sleep", "600"]) as process:
        Guard(process.pid).dismiss()
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_no_shell_to_watch_over_a_program(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is said, and the program is run all the same."""
    monkeypatch.setattr(guard, "SHELL", "/no/such/shell")
    child = Child(loop, ("sh", "-c", "exit 3"))
    child.start({})
    wait_until(lambda: (child.reap(), child.code)[1] is not None)
    assert child.code == 3
    said = "No such file or directory: if this is killed, sh goes on alone\n"
    assert capsys.readouterr().err.endswith(said)


class Vandal(Raw):
    """A program that speaks to a real daemon as it likes."""

    def __init__(self, node: Node, **fields: object) -> None:
        super().__init__(SimpleNamespace(path=str(node.socket)), attach=False, call_socket=True)
        hold = {"version": border.VERSION, "program": "vandal", "serves": (), "reaches": ()}
        self.call(border.Hold(**{**hold, **fields}))
        self.first = self.receive()

    def carry(self, body: bytes, payload: bytes | None = None, **fields: int) -> None:
        """Send a stream's message."""
        carry = {"number": 7, "member": 2, "generation": 0, "offset": 0, "body": body}
        self.call(border.Carry(**{**carry, **fields}), payload)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 99}, "version 99"),
        ({"program": "x" * 2000}, "name is too long"),
        ({"serves": ("x",) * 257}, "256 services"),
        ({"serves": ("",)}, "printable"),
        ({"serves": ("\x1b[2J",)}, "printable"),
        ({"serves": ("x" * 65,)}, "up to 64 characters"),
        ({"reaches": (("n2", "x" * 65),)}, "up to 64 characters"),
        ({"reaches": (("n9", "x"),)}, "no member is named 'n9'"),
    ],
)
def test_what_no_program_may_hold(ring: Cluster, fields: dict[str, object], words: str) -> None:
    """Is denied in words."""
    vandal = Vandal(ring[0], **fields)
    assert isinstance(vandal.first, border.Denied)
    assert words in vandal.first.message
    vandal.close()


def test_a_program_cannot_harm_the_links_or_others_streams(ring: Cluster, ports: list[int]) -> None:
    """Whatever it sends; nor can it get beyond what the config allows."""
    server, here, _ = ports
    vandal = Vandal(ring[0])
    assert isinstance(vandal.first, border.Held)
    generation = vandal.receive().generation
    now = {"generation": generation}
    with (
        Server(echo, server),
        Command(ring[0], "forward", f"{here}=n2:{server}"),
        connect(here) as client,
    ):
        assert ask(client, b"hello") == b"hello"
        vandal.carry(b"garbage", **now)
        vandal.carry(b"garbage", b"x" * 200_000, **now)
        state = wire.encode(wire.State(0, 1 << 40, True, True, False))
        for member in (0, 3, 65535):
            vandal.carry(state, member=member, **now)
        vandal.carry(state, generation=generation + 1)
        vandal.carry(wire.encode(wire.Data(last=False)), b"x", **now)
        vandal.call(border.Over(12345))
        vandal.carry(wire.encode(wire.Connect("tcp:22", 5, True)), number=9, **now)
        refusal = vandal.receive()
        while refusal.number != 9:  # the other ends of what it never had may ask it, too
            refusal = vandal.receive()
        assert refusal.member == 2
        assert "does not let 'n0' reach port 22" in wire.decode(refusal.body).reason
        vandal.carry(wire.encode(wire.Connect("no such service", 5, True)), number=10, **now)
        assert wire.decode(vandal.receive().body).absent
        vandal.carry(state, number=1 << 63, offset=1 << 63, **now)
        assert isinstance(vandal.receive(), border.Denied)
        assert ask(client, b"still there?") == b"still there?"
    vandal.close()
    assert ring.wait_ready() == generation
