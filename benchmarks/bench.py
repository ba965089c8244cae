"""How fast is all-reduce through the daemons, beside what others offer and the machine carries?

    python benchmarks/bench.py [--quick | --network] [--before PYTHON_OR_SOURCE]
    python benchmarks/bench.py --size 2 --sizes 4B,1MiB --modes ringd,gloo --output figures

Rings of 2 and 4 daemons on loopback, f32 sums from 4 B to 256 MiB; see measures/ for each thing
that is measured, and targets.py for what is to be reached. --network does it over links of 1
Gbit/s, between network namespaces (root). What is not installed here is left out, and the page says
so. Exit code 1 if a result was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import page
from instrument import machine
from instrument.batch import Failure
from instrument.builds import Build, build_at
from instrument.counters import can_count_system_calls
from instrument.line_up import LineUp
from instrument.modes import IN_FLIGHT, MODES, team_names
from instrument.patterns import MOST_RANKS
from instrument.plan import Panel
from instrument.plot import can_plot
from instrument.processes import end_on_sigterm
from instrument.progress import Progress, clock_text
from instrument.results import Results
from instrument.runner import forecast, run
from instrument.sites import Site, loopback, shaped
from instrument.sizes import human, sizes_of
from instrument.starts import line_up, missing
from measures import (
    apart,
    beside,
    growth,
    halves,
    idle,
    in_flight,
    memory,
    one_machine,
    single_calls,
    system_calls,
    token,
)
from profiles import FULL, QUICK, SHAPED, Profile
from targets import WIRE, table_of

_PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"
_START_SECONDS = 6.0
"""To start the teams, for each member."""
_COUNTING_SECONDS = 60.0
_IDLE_SECONDS = 20.0
_MEMORY_SECONDS = 5.0
_BESIDE_SECONDS = 30.0


_ASKED_FOR = [name for name, mode in MODES.items() if not mode.together]
"""Modes by name: others come with those that make a call for each tensor."""

_FAR = 8
"""Members of the network with which one size is measured, and what with."""
_FAR_SIZE = 16 << 10
_FAR_MODES = ("ringd", "before")


class Run:
    """One run: what is asked for, what was measured, how far it is."""

    def __init__(self, profile: Profile, chosen: argparse.Namespace) -> None:
        self._profile = profile
        self._modes: tuple[str, ...] = chosen.modes
        self._sizes: list[int] = chosen.sizes
        self._members: list[int] = chosen.size
        self._before: Build | None = chosen.before
        self._far: bool = chosen.far
        self._can_count = can_count_system_calls()
        self.results = Results()
        self.progress = Progress(self._forecast())

    def measure(self) -> None:
        """Measure everything.

        Raises:
            Failure: ringd has failed.
        """
        profile = self._profile
        if not self._can_count:
            self.results.notes.append("system calls were not counted: perf cannot do so here")
        for n in self._members:
            with self._site(n) as site:
                self._measure_site(site, self._panels(), thorough=profile.thorough)
        if far := self._far_panels():
            with self._site(_FAR) as site:
                self._measure_site(site, far, thorough=False)
        if profile.thorough and "ringd" in self._modes:
            growth.measure(self.results, profile.rounds, self.progress)
            one_machine.measure(self.results, profile.rounds, self.progress)

    def _site(self, n: int) -> contextlib.AbstractContextManager[Site]:
        rate = self._profile.rate
        return contextlib.nullcontext(loopback(n)) if rate is None else shaped(n, rate)

    def _measure_site(self, site: Site, panels: Sequence[Panel], *, thorough: bool) -> None:
        n = site.size
        if site.payload is not None:
            self.results.set_figure(WIRE, n, site.payload)
        asked = tuple(dict.fromkeys(cell.mode for panel in panels for cell in panel))
        names = [name for name in team_names(asked) if self._is_there(name, site)]
        with line_up(site, names, self._before) as made:
            self.progress.step(_START_SECONDS * n, f"n = {n}, the teams are there")
            for panel in panels:
                run([made], panel, self._profile.rounds, self.results, self.progress)
                self._say(n, panel)
            if thorough:
                self._measure_thoroughly(made)
            self.results.notes.extend(made.failures)

    def _measure_thoroughly(self, made: LineUp) -> None:
        what = f"n = {made.site.size}"
        if self._can_count:
            system_calls.measure(made, self._modes, self.results)
            self.progress.step(_COUNTING_SECONDS, f"{what}, system calls")
        if "ringd" in made.teams:
            idle.measure(made, _IDLE_SECONDS, self.results)
            self.progress.step(_IDLE_SECONDS, f"{what}, idle")
            memory.measure(made, self.results)
            self.progress.step(_MEMORY_SECONDS, f"{what}, memory")
            beside.measure(made, self._profile.rounds, self.results)
            self.progress.step(_BESIDE_SECONDS, f"{what}, beside a huge call")

    def _is_there(self, name: str, site: Site) -> bool:
        why = missing(name, site, self._before)
        note = f"{name} was left out: {why}"
        if why and note not in self.results.notes:
            self.results.notes.append(note)
            self.progress.say(note)
        return not why

    def _panels(self) -> list[Panel]:
        """Return what is compared with each number of members."""
        profile = self._profile
        pace = 0.5e9 if profile.rate is None else profile.rate / 16
        panels = single_calls.panels(self._modes, self._sizes, profile.budget, pace)
        panels += in_flight.panels(self._of(IN_FLIGHT))
        if profile.rate is None:
            panels += token.panels(self._of(token.MODES))
            panels += apart.panels(self._of(apart.MODES))
        if profile.thorough:
            panels += halves.panels()
        return [panel for panel in panels if panel]

    def _of(self, modes: Sequence[str]) -> list[str]:
        """Return those of *modes* that are asked for."""
        return [mode for mode in modes if mode in self._modes or mode == "nothing"]

    def _far_panels(self) -> list[Panel]:
        """Return what is compared with so many members of a network, unless others are named."""
        modes = self._of(_FAR_MODES)
        if self._profile.rate is None or not self._far or not modes:
            return []
        return single_calls.panels(modes, [_FAR_SIZE], self._profile.budget)

    def _forecast(self) -> float:
        """Return about how many seconds all of it takes."""
        profile = self._profile
        each = forecast(self._panels(), profile.rounds)
        if profile.thorough:
            each += _COUNTING_SECONDS + _IDLE_SECONDS + _MEMORY_SECONDS + _BESIDE_SECONDS
        total = sum(each + _START_SECONDS * n for n in self._members)
        if far := self._far_panels():
            total += _START_SECONDS * _FAR + forecast(far, profile.rounds)
        if profile.thorough:
            total += len(growth.MEMBERS) * forecast(growth.panels(), profile.rounds)
            total += forecast(one_machine.panels(), profile.rounds)
        return total

    def _say(self, n: int, panel: Panel) -> None:
        """Print what a panel has brought."""
        for cell in panel:
            key = cell.key(n)
            series = self.results.of(key)
            if series.seconds:
                ratio = self.results.speedup(*key, "gloo")
                beside_gloo = "" if ratio is None else f"{ratio:8.2f} x Gloo"
                self.progress.say(
                    f"n = {n}  {cell.what:<22} {human(cell.nbytes):>8}"
                    f"  {MODES[cell.mode].title:<24} {series.median * 1e6:>12.1f} us"
                    f"  {page.busbw(key, series.median):>7.3f} GB/s"
                    f"  #wrong {series.wrong}{beside_gloo}"
                )


def options() -> tuple[Profile, argparse.Namespace]:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="in three minutes, with fewer sizes")
    how.add_argument("--network", action="store_true", help="over links of 1 Gbit/s")
    parser.add_argument("--before", type=Path, help="a former build: its Python, or its source")
    parser.add_argument("--size", default="2,4", help="daemons per ring; default %(default)s")
    parser.add_argument("--sizes", help=f"of the tensor; default {FULL.sizes}")
    parser.add_argument("--rounds", type=int, help="the median counts; default 7, or 5 if quick")
    parser.add_argument("--modes", help=f"of {', '.join(_ASKED_FOR)}; see profiles.py")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for page and plots; default: docs/benchmarks, if everything is measured",
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="write all samples there, too, as JSON"
    )
    chosen = parser.parse_args()
    everything = ("size", "sizes", "rounds", "modes")
    if all(vars(chosen)[name] == parser.get_default(name) for name in everything):
        chosen.output = chosen.output or _PAGES
    chosen.far = all(vars(chosen)[name] == parser.get_default(name) for name in ("size", "sizes"))
    profile = QUICK if chosen.quick else SHAPED if chosen.network else FULL
    rounds = chosen.rounds or profile.rounds
    try:
        chosen.size = [int(text) for text in chosen.size.split(",")]
        chosen.sizes = sizes_of(chosen.sizes or profile.sizes)
        chosen.before = chosen.before and build_at(chosen.before)
    except (ValueError, Failure) as error:
        parser.error(str(error))
    try:  # now, rather than when all is measured
        if chosen.output:
            chosen.output.mkdir(parents=True, exist_ok=True)
        if chosen.results:
            chosen.results.parent.mkdir(parents=True, exist_ok=True)
            chosen.results.open("a").close()
    except OSError as error:
        parser.error(f"nothing can be written there: {error}")
    chosen.modes = tuple(chosen.modes.split(",") if chosen.modes else profile.modes)
    if unknown := set(chosen.modes) - set(_ASKED_FOR):
        parser.error(f"no such mode: {', '.join(unknown)}; there are {', '.join(_ASKED_FOR)}")
    if min(chosen.size) < 2:  # noqa: PLR2004 - a ring of one has nothing to send
        parser.error("a ring has at least 2 daemons here")
    if max(chosen.size) > MOST_RANKS and any(MODES[mode].wire for mode in chosen.modes):
        parser.error(f"with a wire sums are exact up to {MOST_RANKS} daemons: name other --modes")
    if rounds < 1:
        parser.error("at least one round counts")
    return replace(profile, rounds=rounds), chosen


def main() -> None:
    """Measure, print, write."""
    end_on_sigterm()
    profile, chosen = options()
    facts = machine.facts()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    whole, others = Run(profile, chosen), machine.Others()
    whole.results.notes.append(machine.when())  # now: commits may come meanwhile
    if chosen.output and not can_plot():
        whole.results.notes.append("plots were left out: matplotlib is not there")
    print(f"about {clock_text(whole.progress.total)} in all", flush=True)
    try:
        whole.measure()
    except Failure as failure:
        sys.exit(str(failure))
    results = whole.results
    share = others.share()
    if share is not None:
        results.notes.append(f"other processes used {share:.0%} of the processors meanwhile")
    if chosen.results:
        results.save(chosen.results)
    print(f"\n{table_of(profile.targets, results)}", *results.notes, sep="\n")
    if chosen.output:
        path = chosen.output / f"{profile.name}.md"
        page.write(path, profile, results, facts)
        print(f"written to {path}")
    if results.wrong:
        sys.exit(f"{results.wrong} WRONG ELEMENTS")


if __name__ == "__main__":
    main()
