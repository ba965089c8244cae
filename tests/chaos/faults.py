"""Everything that the adversary can do, each as a short story that yields its pauses (seconds)."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from cluster import Node

from chaos.proxy import Harm
from chaos.stage import LOST_AFTER, REMOVALS, SLOWEST, Stage

Story = Callable[[Stage, Random], Iterator[float]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    name: str
    weight: float
    story: Story
    ends_daemons: bool = False
    needs_checksum: bool = False


# --- daemons --------------------------------------------------------------------------


def kill(stage: Stage, rng: Random) -> Iterator[float]:
    """End a daemon with SIGKILL, and start it again."""
    node = stage.node(rng)
    stage.kill(node)
    yield rng.choice([0.0, rng.uniform(0, 0.5)])
    stage.start(node)


def kill_again(stage: Stage, rng: Random) -> Iterator[float]:
    """The same one again and again, also while it starts."""
    node = stage.node(rng)
    for life in range(rng.randint(2, 4)):
        if life:
            yield rng.uniform(0.02, 0.9)
        stage.kill(node)
        yield rng.uniform(0, 0.1)
        stage.start(node)


def kill_all(stage: Stage, rng: Random) -> Iterator[float]:
    """All at once; they come back in any order."""
    nodes = stage.cluster.nodes
    for node in nodes:
        stage.kill(node)
    for node in rng.sample(nodes, len(nodes)):
        yield rng.uniform(0, 0.2)
        stage.start(node)


def terminate(stage: Stage, rng: Random) -> Iterator[float]:
    """Restart a daemon in good order."""
    yield from _restart(stage, stage.node(rng))


def terminate_in_turn(stage: Stage, rng: Random) -> Iterator[float]:
    """Restart all daemons in good order, one after the other, as an upgrade does."""
    nodes = stage.cluster.nodes
    for node in rng.sample(nodes, len(nodes)):
        yield from _restart(stage, node)
        yield rng.uniform(0.2, 1.0)


def _restart(stage: Stage, node: Node) -> Iterator[float]:
    process = node.process
    stage.signal(node, signal.SIGTERM)
    while process is not None and process.poll() is None:
        yield 0.02
    stage.start(node)  # unless somebody else has by now


def pause(shortest: float, longest: float) -> Story:
    """Return the story of a daemon that sleeps; in units of lost_after."""

    def story(stage: Stage, rng: Random) -> Iterator[float]:
        node = stage.node(rng)
        stage.signal(node, signal.SIGSTOP)
        yield LOST_AFTER * rng.uniform(shortest, longest)
        stage.signal(node, signal.SIGCONT)

    return story


def rejoin(stage: Stage, rng: Random) -> Iterator[float]:
    """As `ringd-cli rejoin`."""
    stage.rejoin(stage.node(rng))
    yield 0.0


def readdress(stage: Stage, rng: Random) -> Iterator[float]:
    """Reload a roster with a changed address."""
    stage.readdress(stage.node(rng))
    yield 0.0


def slow_disk(stage: Stage, rng: Random) -> Iterator[float]:
    """Have a ring form on disks that take longer than silence may last; it must, and hold."""
    ledger = stage.ledger
    seconds = rng.uniform(0.25, 1) * SLOWEST / 2  # for each of the two flushes of a save
    nodes = stage.cluster.nodes
    for node in rng.sample(nodes, rng.choice([1, 1, rng.randint(1, stage.size)])):
        stage.slow_disk(node, seconds)
    begun = time.monotonic()
    stage.rejoin(stage.node(rng))
    latest = begun + 5 * 2 * seconds + 5
    while True:
        ledger.breaks.read()
        broken = ledger.breaks.during(begun, math.inf)
        if broken is not None and broken[1] < math.inf and ledger.progressed(broken[1]):
            break
        if time.monotonic() > latest or not ledger.alone:
            break
        yield 0.05
    if ledger.alone and time.monotonic() > latest:
        ledger.violate("slow disk breaks the ring", f"no calls from {begun:.3f} to {latest:.3f}")
    yield rng.uniform(0, 2)
    for node in nodes:
        stage.slow_disk(node, 0.0)


def namesake(stage: Stage, rng: Random) -> Iterator[float]:
    """Start another machine under a member's name, often from a copy of its disk."""
    begun = time.monotonic()
    stage.namesake(rng.randrange(stage.size), copied=rng.random() < 0.7)
    yield rng.uniform(1, 4)
    if stage.ledger.alone:
        stage.ledger.breaks.read()
        broken = stage.ledger.breaks.during(begun, time.monotonic())
        if broken is not None:
            stage.ledger.violate("disturbed by a namesake", f"started {begun:.3f}, broke {broken}")
    stage.send_off_namesakes()


def remove_sockets(stage: Stage, rng: Random) -> Iterator[float]:
    """Take the sockets' files away from a daemon that lives."""
    stage.remove_sockets(stage.node(rng), rng.choice(REMOVALS))
    yield 0.0


# --- links ----------------------------------------------------------------------------


def cut(stage: Stage, rng: Random) -> Iterator[float]:
    """End a link: with a reset, or in good order."""
    proxy, reset = stage.proxy(rng), rng.random() < 0.7
    stage.network.ask(lambda: proxy.cut(reset=reset))
    yield 0.0


def stall(shortest: float, longest: float) -> Story:
    """Return the story of a cable that is out for a while; in units of lost_after."""

    def story(stage: Stage, rng: Random) -> Iterator[float]:
        proxy = stage.proxy(rng)
        stage.hush()
        stage.network.ask(lambda: setattr(proxy, "stalled", True))
        yield LOST_AFTER * rng.uniform(shortest, longest)
        stage.network.ask(lambda: setattr(proxy, "stalled", False))

    return story


def half_open(stage: Stage, rng: Random) -> Iterator[float]:
    """Reset one side of a link; the other side hears nothing of it."""
    proxy, far = stage.proxy(rng), rng.random() < 0.5
    stage.hush()
    stage.network.ask(lambda: proxy.half_open(far=far))
    yield 0.0


def delay(stage: Stage, rng: Random) -> Iterator[float]:
    """Make a link slow to arrive for a while."""
    proxy, seconds = stage.proxy(rng), rng.uniform(0.002, 0.1)
    stage.network.ask(lambda: setattr(proxy, "delay", seconds))
    yield rng.uniform(0.1, 1.0)
    stage.network.ask(lambda: setattr(proxy, "delay", 0.0))


def duplicate(stage: Stage, rng: Random) -> Iterator[float]:
    """Cut a link; what dials next arrives twice."""
    proxy = stage.proxy(rng)

    def prepare() -> None:
        proxy.twins = 2
        proxy.cut(reset=True)

    stage.network.ask(prepare)
    yield 0.0


def replay(stage: Stage, rng: Random) -> Iterator[float]:
    """Say the beginning of a link to a member once more."""
    proxy = stage.proxy(rng)
    stage.network.ask(proxy.replay)
    yield 0.0


def harm(kind: str, longest: int) -> Story:
    """Return the story of some bytes that do not arrive as they were sent."""

    def story(stage: Stage, rng: Random) -> Iterator[float]:
        after = rng.choice([0, rng.randrange(64), rng.randrange(4096), rng.randrange(1 << 18)])
        done = Harm(kind, after, rng.randint(1, longest), rng.randint(1, 255))
        stage.harm(stage.proxy(rng), done, up=rng.random() < 0.8)
        yield 0.1  # for it to come to pass

    return story


def strangers(stage: Stage, rng: Random) -> Iterator[float]:
    """Visit a daemon with garbage, or with silence."""
    node = stage.node(rng)
    for _ in range(rng.randint(1, 10)):
        words = rng.randbytes(rng.randrange(200)) if rng.random() < 0.7 else b""
        stage.stranger(node, words)
    yield 0.0


# --- programs -------------------------------------------------------------------------


def kill_program(stage: Stage, rng: Random) -> Iterator[float]:
    """End a program with SIGKILL; another takes its place."""
    group, rank = stage.program(rng)
    stage.programs.kill(group, rank)
    yield rng.uniform(0, 0.3)
    stage.programs.start(group, rank)


def kill_group(stage: Stage, rng: Random) -> Iterator[float]:
    """End all programs of a group but one."""
    group = rng.choice(stage.groups)
    size = stage.layout(group).size
    ranks = rng.sample(range(size), size - 1)
    for rank in ranks:
        stage.programs.kill(group, rank)
    for rank in ranks:
        yield rng.uniform(0, 0.1)
        stage.programs.start(group, rank)


def leave(stage: Stage, rng: Random) -> Iterator[float]:
    """End a program by an exception, so that it closes its ring; another takes its place."""
    yield from _leave(stage, rng, signal.SIGTERM)


def _leave(stage: Stage, rng: Random, signum: int) -> Iterator[float]:
    group, rank = stage.program(rng)
    stage.programs.kill(group, rank, signum)
    impatient = rng.random() < 0.5  # a user who presses Ctrl-C while the program cleans up
    while not stage.programs.gone(group, rank):
        yield 0.002 if impatient else 0.02
        if impatient:
            stage.programs.signal_leaving(group, rank, signal.SIGINT)
    stage.programs.start(group, rank)


def lose_machine(stage: Stage, rng: Random) -> Iterator[float]:
    """End a daemon and all programs beside it."""
    place = rng.randrange(stage.size)
    node = stage.cluster[place]
    there = [
        (group, rank)
        for group in stage.groups
        for rank, member in enumerate(stage.layout(group).places)
        if member == place
    ]
    for group, rank in there:
        stage.programs.kill(group, rank)
    stage.kill(node)
    yield rng.uniform(0, 0.3)
    stage.start(node)
    for group, rank in there:
        stage.programs.start(group, rank)


def leave_in_handler(stage: Stage, rng: Random) -> Iterator[float]:
    """Have a program close its ring and exit from within a signal's handler."""
    yield from _leave(stage, rng, signal.SIGALRM)


def pester(signum: int, most: int) -> Story:
    """Return the story of programs that get one signal after the other, at any instant."""

    def story(stage: Stage, rng: Random) -> Iterator[float]:
        group = rng.choice(stage.groups)
        size = stage.layout(group).size
        ranks = rng.sample(range(size), rng.choice([1, size]))
        for _ in range(rng.randint(most // 8, most)):
            for rank in ranks:
                stage.programs.signal(group, rank, signum)
            yield rng.choice([0.0, rng.uniform(0, 0.003), rng.uniform(0, 0.03)])

    return story


def burst(stage: Stage, rng: Random) -> Iterator[float]:
    """Have groups make thousands of calls before they wait for the first."""
    ledger = stage.ledger
    groups = rng.sample(list(stage.groups), min(len(stage.groups), rng.choice([1, 1, 2])))
    wanted = {group: ledger.bursts[group] + stage.layout(group).size for group in groups}
    for group in groups:
        stage.programs.ask_for("burst", group, wanted=True)
    latest = time.monotonic() + BURST_WITHIN
    while time.monotonic() < latest and any(ledger.bursts[g] < wanted[g] for g in groups):
        yield 0.02
    for group in groups:
        stage.programs.ask_for("burst", group, wanted=False)


BURST_WITHIN = 15.0
"""Seconds to wait for the bursts to begin."""


KINDS = (
    Kind("daemon killed", 8, kill, ends_daemons=True),
    Kind("daemon killed again and again", 3, kill_again, ends_daemons=True),
    Kind("all daemons killed", 2, kill_all, ends_daemons=True),
    Kind("daemon restarted (SIGTERM)", 4, terminate, ends_daemons=True),
    Kind("all daemons restarted in turn", 1, terminate_in_turn, ends_daemons=True),
    Kind("daemon paused, not noticed", 4, pause(0.05, 0.6)),
    Kind("daemon paused, noticed", 3, pause(1.3, 2.0)),
    Kind("rejoin", 5, rejoin),
    Kind("roster reloaded, address changed", 3, readdress),
    Kind("link cut", 14, cut),
    Kind("link silent, not noticed", 6, stall(0.05, 0.6)),
    Kind("link silent, noticed", 4, stall(1.3, 2.0)),
    Kind("link half open", 6, half_open),
    Kind("link slow", 5, delay),
    Kind("link truncated", 8, harm("truncate", 1)),
    Kind("connection duplicated", 5, duplicate),
    Kind("handshake replayed", 2, replay),
    Kind("bytes dropped", 7, harm("drop", 5000), needs_checksum=True),
    Kind("bytes garbled", 10, harm("garble", 16), needs_checksum=True),
    Kind("strangers", 2, strangers),
    Kind("program killed", 6, kill_program),
    Kind("all programs of a group killed but one", 2, kill_group),
    Kind("program left", 4, leave),
    Kind("machine lost (daemon and programs)", 2, lose_machine, ends_daemons=True),
    Kind("disk slow", 2, slow_disk),
    Kind("namesake", 3, namesake),
    Kind("sockets removed", 3, remove_sockets),
    Kind("interrupts", 10, pester(signal.SIGINT, 80)),
    Kind("signal handlers", 6, pester(signal.SIGUSR2, 40)),
    Kind("program left, closing in a handler", 3, leave_in_handler),
    Kind("burst of calls", 4, burst),
)
