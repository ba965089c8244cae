"""One chaos run, from the first daemon's start to the report."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import wait_until

from chaos.adversary import Adversary, Hang
from chaos.calls import STYLES
from chaos.faults import KINDS, Kind
from chaos.ledger import Ledger
from chaos.report import Report
from chaos.resources import Holding, holdings, open_files
from chaos.stage import MADE_ANEW, Stage
from chaos.warmup import STOP, warm_up

START = 60.0
"""Seconds in which all programs must have begun."""

GROWTH = 16 << 20
"""Bytes of memory that a daemon may have more of after hundreds of faults."""

MOST = 72 << 20
"""Bytes of memory that it may have in any case: some more than the documented bounds add up to."""

STILL = 1.5
"""Seconds without a change after which the daemons' descriptors have settled: links that nobody
speaks on are closed after less (``join.handshake_timeout``)."""

SETTLE = 20.0
"""Seconds in which they must have, or are taken as they are."""

SURVIVED_SHARE = 0.35
"""Of the faults, at the end: those that no daemon dies of, so that leaks show."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the run is to be."""

    seed: int
    size: int = 4
    faults: int = 0
    """How many at least; 0: until *duration* is over."""
    duration: float = 120.0
    """Seconds."""
    checksum: bool = True
    """Of the setting of that name; without it, no tensor is garbled."""
    groups: Sequence[str] = tuple(STYLES)
    only: Sequence[str] = ()
    """Names of the faults; all where there are none."""
    without: Sequence[str] = ()
    """Names of faults that are not wanted."""
    warm_up: int = 60
    """Calls of each group without faults before memory is measured first."""
    fill: bool = True
    """Whether the daemons' chunk buffers are filled then."""


def play(options: Options, directory: Path, command: str, tell: Callable[[str], None]) -> Report:
    """Do the run; *directory* keeps configs, logs and, if it went wrong, what is known of that."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # the network's thread must not hold up the adversary
    stage = Stage(directory, options.size, options.groups, options.seed, checksum=options.checksum)
    kinds = chosen(options)
    adversary = Adversary(stage, options.seed, tell)
    report = Report(command, options.size, stage.ledger)
    begun = time.monotonic()
    try:
        stage.heal()
        sets = _numbers(options, adversary, begun)
        _phase(stage, adversary, kinds, sets, 1 - SURVIVED_SHARE)
        mild = [kind for kind in kinds if not kind.ends_daemons]
        if mild and not stage.ledger.failed:
            warm_up(stage, options.warm_up, fill=options.fill)
            report.before = _idle(stage)
            so_far = sum(adversary.counts.values())
            _phase(stage, adversary, mild, sets, 1.0)
            report.after = _idle(stage, report.before)
            report.survived = sum(adversary.counts.values()) - so_far
            if not stage.ledger.failed:
                _compare(stage, report)
    except (Hang, AssertionError) as error:
        if not stage.ledger.failed:
            stage.ledger.violate("hangs", str(error))
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - what was found up to then is told all the same
        stage.ledger.violate("run broke off", traceback.format_exc())
    finally:
        try:
            _conclude(stage, report, directory)
        finally:
            stage.close()
            sys.setswitchinterval(interval)
    report.seconds = time.monotonic() - begun
    report.counts = adversary.counts
    report.added, report.recovered = dict(adversary.added), dict(adversary.recovered)
    report.harmed = sum(proxy.harmed for proxy in stage.proxies)
    return report


def chosen(options: Options) -> list[Kind]:
    """Return the kinds of faults that the run is to have."""
    return [
        kind
        for kind in KINDS
        if (options.checksum or not kind.needs_checksum)
        and (not options.only or kind.name in options.only)
        and kind.name not in options.without
    ]


def _numbers(
    options: Options, adversary: Adversary, begun: float
) -> Callable[[float], Iterator[int]]:
    """Return what gives the numbers of the sets of faults up to a share of the whole run."""
    number = 0

    def sets(share: float) -> Iterator[int]:
        nonlocal number
        while (
            sum(adversary.counts.values()) < share * options.faults
            if options.faults
            else time.monotonic() < begun + share * options.duration
        ):
            number += 1
            yield number

    return sets


def _phase(
    stage: Stage,
    adversary: Adversary,
    kinds: Sequence[Kind],
    sets: Callable[[float], Iterator[int]],
    share: float,
) -> None:
    """Start the programs, disturb them, and have them stop."""
    stage.programs.start_all()
    adversary.await_progress(time.monotonic(), START)
    for number in sets(share):
        adversary.act(number, kinds)
        if stage.ledger.failed:
            return
    stage.programs.finish(STOP)
    wait_until(stage.look_for_sockets, "sockets", 2 * MADE_ANEW)  # who starts next needs them


def _idle(stage: Stage, before: Sequence[Holding] = ()) -> list[Holding]:
    """Return what the daemons hold when the ring is up, no program is there, and all is still.

    More files than *before* have the whole time to be closed: some are looked after every 10 s.
    """
    stage.cluster.wait_ready()
    begun = changed = time.monotonic()
    files: list[int] = []
    while True:
        found = holdings(stage.cluster)
        now = time.monotonic()
        former, files = files, [holding.files for holding in found]
        more = any(new.files > old.files for old, new in zip(before, found, strict=False))
        if files != former or more or any(holding.shared for holding in found):
            changed = now
        if now - changed >= STILL or now - begun > SETTLE:
            return found
        time.sleep(0.1)


def _compare(stage: Stage, report: Report) -> None:
    for node, old, new in zip(stage.cluster.nodes, report.before, report.after, strict=True):
        if new.pid != old.pid:
            stage.ledger.violate("daemons crashed", f"{node.name} is another process")
        if new.shared or new.files > old.files or new.memory > min(old.memory + GROWTH, MOST):
            stage.ledger.violate("leaks", f"{node.name}: {old} became {new}")


def _conclude(stage: Stage, report: Report, directory: Path) -> None:
    """Judge what was heard last, and write down what is known."""
    try:
        for node in stage.cluster.nodes:
            stage.inspect(node)
        stage.ledger.settle()
        _keep_words(stage.ledger, directory)
        if not report.good:
            _keep_evidence(stage, directory)
    except Exception:  # noqa: BLE001 - as above
        stage.ledger.violate("run broke off", traceback.format_exc())


def _keep_words(ledger: Ledger, directory: Path) -> None:
    """Write down what was excused, and why, and how long each notice took."""
    judge = ledger.judge
    for name, lines in {
        "excused": ledger.excused,
        "group_lost": map(str, judge.group_lost.all),
        "peer_lost": map(str, judge.peer_lost.all),
        "overdue": map(str, judge.overdue.all),
    }.items():
        (directory / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _keep_evidence(stage: Stage, directory: Path) -> None:
    """Write down what each daemon and each program was at."""
    for node in stage.cluster.nodes:
        if node.process is not None and node.process.poll() is None:
            files = "\n".join(open_files(node.pid)) + "\n"
            (directory / f"{node.name}.files.txt").write_text(files)
    (directory / "violations.txt").write_text("\n".join(stage.ledger.violations) + "\n")
    stage.programs.stacks()
    stage.record("end")
    stage.programs.pump(1.0)
