"""``ringd-cli demo``: the whole story on one machine, with real daemons and real programs.

Three daemons on loopback, started in an order and with a disturbance that would end most rings;
three programs that train one model; a daemon that is killed and comes back. Every value that
is shown was measured, and the exit code is 0 only if all of them are right.
"""

from __future__ import annotations

import importlib.util
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import IO

import click

from ringd.cli.ask import ask, fail
from ringd.cli.guard import Guard
from ringd.config.keyfile import create_key
from ringd.config.sample import render
from ringd.config.settings import Member
from ringd.errors import RingError
from ringd.host.ports import free_ports
from ringd.wire.border.messages import AskStatus

NODES = ("anna", "bert", "carl")
KILL_AT_EPOCH = 8
PATIENCE = 60.0
"""Seconds that any stage of the demo may take."""


class Story:
    """What the terminal shows: the time since the start, who speaks, and what."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def tell(self, who: str, text: str, **style: object) -> None:
        """Print one line."""
        seconds = time.monotonic() - self._start
        click.echo(f"{seconds:6.2f} s  {who:<8} " + click.style(text, **style))  # type: ignore[arg-type]  # click's own keywords

    def chapter(self, text: str) -> None:
        """Print a heading."""
        click.echo()
        self.tell("", text, bold=True)


class Child:
    """A process, its output line by line in a queue, ended with the demo, however that ends."""

    def __init__(self, name: str, command: list[str], stderr: IO[bytes] | None = None) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, bufsize=1
        )
        self._guard = Guard(self.process.pid)
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - tells mypy that it is a pipe
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def new_lines(self) -> Iterator[str]:
        """Return the lines that came since the last call."""
        while not self.lines.empty():
            line = self.lines.get()
            self.seen.append(line)
            yield line

    def end(self) -> int:
        """End it if it still runs; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self._guard.dismiss()
        self._reader.join(5)
        return code


class Demo:
    """The stage: a directory with config, key and sockets, and the processes in it."""

    def __init__(self, directory: Path, story: Story, stack: ExitStack) -> None:
        self.directory = directory
        self.story = story
        self._stack = stack
        self._ports = free_ports(len(NODES))
        self._config = directory / "ringd.toml"
        members = [
            Member(name, (f"127.0.0.1:{port}",))
            for name, port in zip(NODES, self._ports, strict=True)
        ]
        self._config.write_text(render("demo", members, key_file="ring.key", insecure=False))
        create_key(directory / "ring.key")

    def socket(self, node: str) -> Path:
        """Return where programs reach the daemon of *node*."""
        return self.directory / f"{node}.sock"

    def daemon(self, node: str) -> Child:
        """Start the daemon of *node*."""
        log = self._stack.enter_context((self.directory / f"{node}.log").open("ab"))
        command = [sys.executable, "-m", "ringd.daemon.main", "--config", str(self._config)]
        command += ["--node", node, "--socket", str(self.socket(node))]
        command += ["--state-dir", str(self.directory / f"{node}.state")]
        child = Child(node, command, log)
        self._stack.callback(child.end)
        self.story.tell(node, f"daemon started (pid {child.process.pid})", fg="cyan")
        return child

    def program(self, node: str, script: Path) -> Child:
        """Start the training program beside the daemon of *node*."""
        command = [sys.executable, str(script), "--socket", str(self.socket(node))]
        command += ["--epochs", "30", "--pace", "0.012"]
        child = Child(node, command)
        self._stack.callback(child.end)
        self.story.tell(node, "training program started", fg="cyan")
        return child

    def status(self, node: str) -> dict[str, object] | None:
        """Return the daemon's own word, None if it does not run."""
        try:
            return ask(self.socket(node), AskStatus)
        except RingError:
            return None

    def stranger(self, node: str) -> None:
        """Connect to the daemon's port as a port scanner would, and say nothing of sense."""
        port = self._ports[NODES.index(node)]
        with socket.create_connection(("127.0.0.1", port), 5) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        self.story.tell("stranger", f"visited {node}'s port and sent garbage", fg="yellow")

    def wait_ready(self, last: str) -> str:
        """Wait until all daemons are ready; return in words how soon after the start of *last*."""
        start = time.monotonic()
        while time.monotonic() < start + PATIENCE:
            ready = {}
            for node in sorted(NODES, key=lambda node: node == last):  # the last one last
                status = self.status(node)
                if status is not None and status["state"] == "ready":
                    ready[node] = status
            generations = {status["generation"] for status in ready.values()}
            if len(ready) == len(NODES) and len(generations) == 1:
                # Its uptime counts from when it listens; before, Python starts.
                listened = float(str(ready[last]["uptime"]))
                return (
                    f"{listened * 1e3:.0f} ms after {last}'s daemon listened "
                    f"({(time.monotonic() - start) * 1e3:.0f} ms after its process began), "
                    f"generation {generations.pop()}"
                )
            time.sleep(0.01)
        raise RingError(f"the ring did not form within {PATIENCE:g} s; logs in {self.directory}")

    def waiting(self, node: str) -> str:
        """Return in words for whom *node* waits."""
        status = self.status(node) or {}
        waiting = status.get("waiting_for")
        return ", ".join(waiting) if isinstance(waiting, dict) else "?"


@contextmanager
def training_script() -> Iterator[Path]:
    """Give the example's path: from the checkout, or from inside the installed package."""
    beside = Path(__file__).parents[2] / "examples" / "train_digits.py"
    if beside.exists():
        yield beside
        return
    with resources.as_file(resources.files("ringd") / "examples" / "train_digits.py") as path:
        yield path


@click.command()
@click.option("--keep", is_flag=True, help="Keep the directory with config and logs.")
def demo(*, keep: bool) -> None:
    """Show three daemons and three programs on this machine.

    Needs scikit-learn, and well under a minute.

    \b
    Exit codes: 0 every value was right, 1 error, or one was not, 2 wrong usage.
    Example: ringd-cli demo
    """  # noqa: D301  click wants the backspace itself
    if importlib.util.find_spec("sklearn") is None:
        raise click.ClickException("the demo trains with scikit-learn: pip install scikit-learn")
    directory = Path(tempfile.mkdtemp(prefix="ringd-demo-"))
    with training_script() as script, ExitStack() as stack:
        try:
            good = _play(Demo(directory, Story(), stack), script)
        except RingError as error:
            fail(error)
    if keep or not good:
        click.echo(f"Config and logs are in {directory}")
    else:
        shutil.rmtree(directory)
    sys.exit(0 if good else 1)


def _play(stage: Demo, script: Path) -> bool:
    tell = stage.story.tell
    stage.story.chapter("The daemons start, seconds apart and not undisturbed")
    daemons = {"bert": stage.daemon("bert")}
    programs = {"anna": stage.program("anna", script)}
    tell("anna", "  (her daemon does not run yet: the program waits for it)")
    _until(lambda: stage.status("bert") is not None, "bert's daemon answers")
    stage.stranger("bert")
    time.sleep(1.5)
    daemons["carl"] = stage.daemon("carl")
    _until(lambda: stage.status("carl") is not None, "carl's daemon answers")
    tell("carl", f"waits for: {stage.waiting('carl')}")
    daemons["bert"].process.kill()
    daemons["bert"].end()
    tell("bert", "daemon killed before the ring ever formed", fg="red")
    time.sleep(1.0)
    daemons["bert"] = stage.daemon("bert")
    _until(lambda: "anna" in stage.waiting("bert"), "bert's daemon answers, and misses anna's")
    tell("bert", f"waits for: {stage.waiting('bert')}")
    daemons["anna"] = stage.daemon("anna")
    tell("ring", f"ready {stage.wait_ready('anna')}", fg="green")

    stage.story.chapter("Three programs train one model; a daemon is killed under them")
    for node in ("carl", "bert"):
        programs[node] = stage.program(node, script)
    epoch = 0
    killed = recovered = False
    deadline = time.monotonic() + PATIENCE
    while any(program.process.poll() is None for program in programs.values()):
        if time.monotonic() > deadline:
            raise RingError(f"the training did not end within {PATIENCE:g} s")
        for line in programs["anna"].new_lines():
            match = re.match(r"epoch +(\d+)", line)
            epoch = int(match[1]) if match else epoch
            if not match or epoch % 4 == 0 or epoch in (1, KILL_AT_EPOCH + 1):
                tell("anna", line)
        if epoch >= KILL_AT_EPOCH and not killed:
            killed = True
            daemons["bert"].process.send_signal(signal.SIGKILL)
            daemons["bert"].end()
            tell("bert", "daemon killed in mid-training (kill -9)", fg="red")
            time.sleep(1.0)
            tell("anna", f"waits for: {stage.waiting('anna')}")
            daemons["bert"] = stage.daemon("bert")
            text = f"formed again {stage.wait_ready('bert')}; nobody lost a step"
            recovered = True
            tell("ring", text, fg="green")
        time.sleep(0.02)
    return _judge(stage, script, programs, recovered=recovered)


def _judge(stage: Demo, script: Path, programs: dict[str, Child], *, recovered: bool) -> bool:
    stage.story.chapter("Was it right?")
    results = {}
    codes = {}
    for node, program in programs.items():
        codes[node] = program.end()
        list(program.new_lines())
        results[node] = program.seen[-1] if program.seen else "nothing"
        stage.story.tell(node, results[node])
    alone = subprocess.run(
        [sys.executable, str(script), "--alone"], capture_output=True, text=True, check=False
    )
    one = re.search(r"accuracy ([\d.]+)", alone.stdout)
    many = re.search(r"accuracy ([\d.]+)", results[NODES[0]])
    checks = {
        "all programs ended well, with an accuracy of 95 % or more": not any(codes.values()),
        "all ranks hold the same weights, bit for bit": len(set(results.values())) == 1,
        "one process with all the images gets the same accuracy": (
            one is not None and many is not None and one[1] == many[1]
        ),
        "a daemon was killed and came back meanwhile": recovered,
    }
    for text, good in checks.items():
        mark = click.style("yes", fg="green") if good else click.style("NO", fg="red")
        click.echo(f"  {mark:>12}  {text}")
    return all(checks.values())


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RingError(f"not within the time: {what}")
        time.sleep(0.02)
