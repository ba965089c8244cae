"""The page of a run: what it has measured, in Markdown with plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from instrument import samples
from instrument.markdown import table
from instrument.modes import EVERY, MODES
from instrument.plot import can_plot, plot
from instrument.results import Key, Results, Series
from instrument.sizes import human
from measures import (
    apart,
    beside,
    halves,
    idle,
    in_flight,
    memory,
    one_machine,
    single_calls,
    system_calls,
    token,
)
from profiles import Profile
from targets import table_of

_PEER = "gloo"
"""The system that tables compare the others with."""

_COLUMNS = """\
Everything that is compared was measured in one run, in turn, round by round. time is the median
over {rounds} rounds of the slowest member's time per call, spread the distance from the fastest to
the slowest round by that median; busbw is algbw x 2(n-1)/n. cpu is the processor time of one
member's processes, its daemon's included, with all their threads; s/GB that of all members per GB
of the tensor. Every result was checked: #wrong counts elements. x Gloo is the speed by Gloo's.
`floor: bytes over TCP` sends and receives as many bytes over as many connections, with nothing
added and no Python on the way, always the same buffer, as iperf3 does; `floor: memory over TCP`
from the whole of one tensor into the whole of another. `floor: relay` passes them from a program
over a Unix socket to a bare daemon, to the others and back. `ringd` has default settings, so its
links are sealed for integrity; `protect off` and `encrypt` are rings with another `ring.protect`,
`bfloat16` and `int8` calls with that `wire`.
"""

_UNSEALED = """\
None of the others seals what it sends. The rows above that compare with them, for a ring that does
not either (`ring.protect = "off"`):
"""


def busbw(key: Key, seconds: float) -> float:
    """Return what each link carried, in GB/s."""
    return key.nbytes / seconds / 1e9 * 2 * (key.n - 1) / key.n


def write(path: Path, profile: Profile, results: Results, facts: dict[str, str]) -> None:
    """Write the page to *path*, and its plots beside it."""
    known = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = [
        f"# {profile.title}\n",
        _COLUMNS.format(rounds=profile.rounds),
        f"Machine: {known}.\n",
        *(f"* {note}" for note in results.notes),
        "\n## Targets\n",
        "Where a row is about several sizes or peers, the one farthest from its target is named.\n",
        table_of(profile.targets, results),
    ]
    if profile.unsealed:
        text += ["## Without seals\n", _UNSEALED, table_of(profile.unsealed, results)]
    for n in results.members(single_calls.WHAT):
        text += [f"## n = {n}\n", *_plots(path, results, n), _single_calls(results, n)]
        text += [part(results, n) for part in (_small_calls, _other_calls, _figures)]
    text.append(_one_machine(results))
    wrong = f"Wrong elements in all results of the run: {results.wrong}."
    path.write_text("\n".join([part for part in text if part] + [wrong]) + "\n")


def _plots(path: Path, results: Results, n: int) -> list[str]:
    """Write the plots of single calls; return how the page shows them."""
    what = single_calls.WHAT
    by_mode: dict[str, list[tuple[int, float]]] = {}
    for key, series in results.rows(what, n):
        if key.mode in EVERY:
            by_mode.setdefault(key.mode, []).append((key.nbytes, series.median))
    # No line goes through one point.
    if not can_plot() or len(results.sizes(what, n)) < 2:  # noqa: PLR2004
        return []

    def lines(value: Callable[[Key, float], float | None]) -> dict[str, list[tuple[int, float]]]:
        found = {}
        for mode, points in by_mode.items():
            values = [(size, value(Key(what, n, size, mode), time)) for size, time in points]
            kept = [(size, each) for size, each in values if each is not None]
            if kept:
                found[MODES[mode].title] = kept
        return found

    def against(mode: str) -> Callable[[Key, float], float | None]:
        """Return how many times as fast as the key's mode *mode* is."""
        return lambda key, _: (
            None
            if key.mode.startswith("ringd")
            else results.speedup(what, n, key.nbytes, mode, key.mode)
        )

    drawn = [
        ("time", "time of a call", "µs", lines(lambda _, time: time * 1e6), None),
        ("busbw", "bus bandwidth", "GB/s", lines(busbw), None),
        ("ratio", "speed of ringd by that of", "ratio", lines(against("ringd")), 1.0),
        (
            "ratio-empty",
            "speed of ringd with ring.empty by that of",
            "ratio",
            lines(against("ringd-empty")),
            1.0,
        ),
    ]
    shown = []
    for name, caption, unit, plotted, mark in drawn:
        if plotted:
            file = path.with_name(f"{path.stem}-{n}-{name}.svg")
            plot(file, f"{caption}, n = {n}", f"{caption} ({unit})", plotted, mark)
            shown.append(f"![{caption}, n = {n}]({file.name})\n")
    return shown


_SINGLE_HEAD = (
    *("size", "count", "system", "time (µs)", "spread", "cpu (µs)", "s/GB"),
    *("algbw (GB/s)", "busbw (GB/s)", "#wrong", "x Gloo"),
)


def _single_calls(results: Results, n: int) -> str:
    rows = []
    for key, series in results.rows(single_calls.WHAT, n):
        seconds, cpu = series.median, samples.median(series.cpu)
        rows.append(
            (
                human(key.nbytes),
                str(key.nbytes // 4),
                MODES[key.mode].title,
                f"{seconds * 1e6:.1f}",
                f"{samples.spread(series.seconds):.0%}",
                f"{cpu / n * 1e6:.1f}",
                f"{cpu / key.nbytes * 1e9:.2f}" if key.nbytes >= 1 << 20 else "",
                f"{key.nbytes / seconds / 1e9:.3f}",
                f"{busbw(key, seconds):.3f}",
                str(series.wrong),
                _speedup(results, key),
            )
        )
    return table(_SINGLE_HEAD, rows)


def _speedup(results: Results, key: Key) -> str:
    value = results.speedup(*key, _PEER)
    return "" if value is None else f"{value:.2f}"


def _small_calls(results: Results, n: int) -> str:
    """Return what small calls cost in context switches and system calls."""
    rows = []
    for nbytes in system_calls.SIZES:
        for key, series in results.rows(single_calls.WHAT, n):
            if key.nbytes == nbytes:
                counted = results.figure(system_calls.name(key.mode, nbytes), n)
                switches = f"{samples.median(series.sleeps) / n:.1f}"
                calls = "" if counted is None else f"{counted / n:.1f}"
                rows.append((human(nbytes), MODES[key.mode].title, switches, calls))
    if not rows:
        return ""
    head = ("size", "system", "voluntary context switches", "system calls")
    return "For each call and member, its daemon's included:\n\n" + table(head, rows)


def _other_calls(results: Results, n: int) -> str:
    """Return the tables of what is no plain sequence of calls."""
    parts = []
    for what in (in_flight.WHAT, apart.WHAT, *halves.DTYPES):
        rows = [_other_row(key, series, results) for key, series in results.rows(what, n)]
        if rows:
            about = in_flight.ABOUT if what == in_flight.WHAT else f"{what[0].upper()}{what[1:]}:"
            parts.append(f"{about}\n\n{table(_OTHER_HEAD, rows)}")
    tokens = [
        (MODES[key.mode].title, f"{beyond * 1e3:.2f}", str(series.wrong))
        for key, series in results.rows(token.WHAT, n)
        if key.mode != "nothing" and (beyond := token.beyond_work(results, n, key.mode)) is not None
    ]
    if tokens:
        about = "A token, 48 calls of 16 KiB with 0.5 ms of work before each:"
        said = table(("system", "beyond the work (ms)", "#wrong"), tokens)
        parts.append(f"{about}\n\n{said}")
    return "\n".join(parts)


_OTHER_HEAD = ("size", "system", "time (µs)", "calls/s", "cpu (µs)", "#wrong", "x Gloo")


def _other_row(key: Key, series: Series, results: Results) -> tuple[str, ...]:
    return (
        human(key.nbytes),
        MODES[key.mode].title,
        f"{series.median * 1e6:.1f}",
        f"{1 / series.median:,.0f}",
        f"{samples.median(series.cpu) / key.n * 1e6:.1f}",
        str(series.wrong),
        _speedup(results, key),
    )


def _figures(results: Results, n: int) -> str:
    """Return the single figures."""
    known = [
        (idle.SHARE, 100, "%"),
        (idle.WAKES, 1, ""),
        (memory.BEFORE, 1 / (1 << 20), "MiB"),
        (memory.HIGHEST, 1 / (1 << 20), "MiB"),
        (beside.QUIET, 1e6, "µs"),
        (beside.BUSY, 1e6, "µs"),
    ]
    lines = [
        f"* {name}: {value * factor:.3g} {unit}".rstrip()
        for name, factor, unit in known
        if (value := results.figure(name, n)) is not None
    ]
    return "\n".join([*lines, ""]) if lines else ""


def _one_machine(results: Results) -> str:
    bandwidth = results.figure(one_machine.BANDWIDTH, 1)
    if bandwidth is None:
        return ""
    rows = [
        (
            human(key.nbytes),
            MODES[key.mode].title.removesuffix(", TCP"),
            f"{series.median * 1e6:.1f}",
            f"{key.nbytes / series.median / 1e9:.3f}",
            str(series.wrong),
            _speedup(results, key),
        )
        for key, series in results.rows(one_machine.WHAT, 1)
    ]
    head = ("size", "system", "time (µs)", "algbw (GB/s)", "#wrong", "x Gloo")
    about = (
        f"All cores together read and write {bandwidth / 1e9:.1f} GB/s as they copy. Open MPI uses"
        " shared memory here."
    )
    return f"## Four programs on one machine\n\n{about}\n\n{table(head, rows)}"
