"""How each team is started."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peers.gloo import Meeting
from peers.links import Ends
from peers.through_ringd import Place

from instrument import daemons, workers
from instrument.batch import Failure
from instrument.builds import Build
from instrument.line_up import LineUp
from instrument.processes import end
from instrument.sites import Site
from instrument.team import Team
from ringd.host.ports import free_ports

_SPIN = 50e-6
_BENCHMARKS = Path(__file__).parents[1]


@contextlib.contextmanager
def line_up(site: Site, names: Sequence[str], before: Build | None = None) -> Iterator[LineUp]:
    """Give the teams *names* on *site*, all ready, and end them afterwards.

    A peer that does not come together is left out, with a word in ``failures``.

    Raises:
        Failure: A team of ringd does not.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringd-bench-")))
        made = LineUp(site, directory, stack, before)
        for name in names:  # side by side
            with made.without_failed(name, f"n = {site.size}, start"):
                made.add(name, _STARTS[name](made))
        for name in list(made.teams):
            with made.without_failed(name, f"n = {site.size}, start"):
                made.wait_ready([name])
        yield made


def missing(name: str, site: Site, before: Build | None) -> str:
    """Return why the team *name* cannot be measured here; empty if it can."""
    if name == "before":
        return "" if before else "no former build was named (--before)"
    if name in {"gloo", "mlx"}:
        package = {"gloo": "torch", "mlx": "mlx"}[name]
        return "" if importlib.util.find_spec(package) else f"{package} is not installed"
    if name == "mpi":
        if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
            return "Open MPI (mpirun) or mpi4py is not installed"
        # Its ranks and mpirun talk over loopback, which namespaces do not share.
        return "" if site.rate is None else "Open MPI does not start in network namespaces"
    if name.startswith("relay") and sys.platform != "linux":
        return "the relay needs Linux's epoll"
    return ""


def start_ring(
    made: LineUp, name: str, build: Build, on_each: int = 1, protect: str | None = None
) -> Team:
    """Start daemons of *build*, and so many programs beside each.

    *protect*: their ``ring.protect``; None: the default.
    """
    running = daemons.running(made.site, made.own_directory(name), build, protect)
    ring = made.rings[name] = made.stack.enter_context(running)
    return start_programs(made, name, ring, build, on_each=on_each)


def start_programs(
    made: LineUp,
    name: str,
    ring: daemons.Daemons,
    build: Build,
    *,
    on_each: int = 1,
    group: str = "default",
) -> Team:
    """Start so many programs beside each daemon of *ring*, in a group of their own."""
    places = [
        Place(str(path), local, on_each, group) for path in ring.sockets for local in range(on_each)
    ]
    commands = [command for command in made.commands(build.python) for _ in range(on_each)]
    address = made.directory / f"{name}.workers"
    started = workers.start("ringd", places, address, commands, build.environment())
    return Team(name, started, ring.pids)


def start_gloo(made: LineUp, on_each: int = 1) -> Team:
    """Start so many programs at each place that use Gloo."""
    meeting = Meeting(str(made.directory / "gloo.meeting"), made.site.interface)
    commands = [command for command in made.commands() for _ in range(on_each)]
    return _start("gloo", [meeting] * len(commands), made, commands)


def start_mpi(made: LineUp, transports: str = "self,tcp", on_each: int = 1) -> Team:
    """Start programs under Open MPI, which talk over *transports*."""
    size = made.site.size * on_each
    command = [*workers.mpirun(size, transports, made.site.interface), sys.executable]
    return _start("mpi", [None] * size, made, [command])


def start_mlx(made: LineUp, lower: Sequence[str] = ()) -> Team:
    """Start programs of MLX that connect to each other.

    *lower*: what a program's command starts with, to have it keep fewer others from the processors.
    """
    hosts = [
        [f"{host}:{port}"]
        for host, port in zip(made.site.addresses, free_ports(made.site.size), strict=True)
    ]
    hostfile = made.directory / "mlx.json"
    hostfile.write_text(json.dumps(hosts))
    commands = [[*lower, *command] for command in made.commands()]
    return _start("mlx", [str(hostfile)] * made.site.size, made, commands)


def start_mlx_run(made: LineUp, lower: Sequence[str] = ()) -> Team:
    """Start the same, and a ring whose ``ringd-cli run --mlx`` is both neighbours of each."""
    running = daemons.running(made.site, made.own_directory("mlx-run"), Build())
    ring = made.rings["mlx-run"] = made.stack.enter_context(running)
    ring.wait_ready()
    commands = []
    for command, path in zip(made.commands(), ring.sockets, strict=True):
        run = [*command, "-m", "ringd.cli.main", "run", "--mlx", "--socket", str(path), "--"]
        commands.append([*run, *lower, *command])
    address = made.directory / "mlx-run.workers"
    started = workers.start("mlx", [None] * made.site.size, address, commands)
    return Team("mlx-run", started, [*ring.pids, *(each.pid for each in started.processes)])


def _start_relay(made: LineUp, name: str, spin: float) -> Team:
    size, directory = made.site.size, made.own_directory(name)
    paths = [str(directory / str(rank)) for rank in range(size)]
    servers = []
    for path, ends, command in zip(paths, _ends(made.site), made.commands(), strict=True):
        addresses = (f"{host}:{port}" for host, port in (ends.own, ends.right))
        command += ["-m", "peers.relay", path, *addresses, str(size), str(spin)]
        server = subprocess.Popen(command, cwd=_BENCHMARKS)
        made.stack.callback(end, server)
        servers.append(server.pid)
    started = workers.start("relay", paths, directory / "workers", made.commands())
    return Team(name, started, servers)


def _ends(site: Site) -> list[Ends]:
    """Return places for a ring of bare connections."""
    places = list(zip(site.addresses, free_ports(site.size), strict=True))
    return [Ends(place, places[(rank + 1) % len(places)]) for rank, place in enumerate(places)]


def _start(
    kind: str, arguments: Sequence[object], made: LineUp, commands: Sequence[Sequence[str]]
) -> Team:
    """Start a team without servers."""
    address = made.directory / f"{kind}.workers"
    return Team(kind, workers.start(kind, arguments, address, commands))


def _start_before(made: LineUp) -> Team:
    if made.before is None:
        raise Failure("no former build was named")
    return start_ring(made, "before", made.before)


_STARTS: dict[str, Callable[[LineUp], Team]] = {
    "ringd": lambda made: start_ring(made, "ringd", Build()),
    "ringd-off": lambda made: start_ring(made, "ringd-off", Build(), protect="off"),
    "ringd-encrypt": lambda made: start_ring(made, "ringd-encrypt", Build(), protect="encrypt"),
    "before": _start_before,
    "gloo": start_gloo,
    "mlx": start_mlx,
    "mlx-run": start_mlx_run,
    "mpi": start_mpi,
    "floor": lambda made: _start("floor", _ends(made.site), made, made.commands()),
    "relay": lambda made: _start_relay(made, "relay", 0.0),
    "relay-spin": lambda made: _start_relay(made, "relay-spin", _SPIN),
    "nothing": lambda made: _start("nothing", [None] * made.site.size, made, made.commands()),
}
