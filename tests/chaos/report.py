"""The result of a chaos run as a Markdown page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.calls import BURST
from chaos.ledger import Ledger
from chaos.notices import Notices
from chaos.resources import Holding
from chaos.splits import REASONS

_SPREAD = "p50 / p95 / max"

_ADDED = """\
Added time: to the next call that was complete on all ranks, for each group whose calls are small,
from the beginning of a fault that came alone; and from the end of the fault, or of the last of
several. A daemon that is killed stays away for up to 0.5 s: its end is when it is started again."""

_HELD = """\
What the daemons hold without programs, before and after {survived:,} faults that they all lived
through:"""

MUST_BE_ZERO = (
    "wrong values",
    "calls lost",
    "split outcomes",
    "GroupLost names a survivor",
    "GroupLost late",
    "PeerLost late",
    "deadlines ignored",
    "disturbed by a namesake",
    "sockets not made anew",
    "slow disk breaks the ring",
    "hangs",
    "daemons crashed",
    "leaks",
    "run broke off",
)

SHOWN = 40
"""Violations that the page tells in full."""


@dataclass
class Report:
    """What is told of a run."""

    command: str
    size: int
    ledger: Ledger
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    added: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a fault to the next complete call of each group, by kind."""
    recovered: dict[str, list[float]] = field(default_factory=dict)
    """The same, from the fault's end."""
    before: Sequence[Holding] = ()
    after: Sequence[Holding] = ()
    harmed: int = 0
    """Times that the network did something to bytes or a connection that it had been told to."""
    survived: int = 0
    """Faults between *before* and *after*, through which the daemons lived."""

    @property
    def good(self) -> bool:
        """Whether all that must be 0 is."""
        return self.ledger.good

    def markdown(self) -> str:
        """Return the page."""
        return "\n".join(
            [
                f"`{self.command}`",
                "",
                *self._failed(),
                "",
                *self._summary(),
                "",
                *self._faults(),
                "",
                *self._flat(),
            ]
        )

    def _summary(self) -> list[str]:
        ledger = self.ledger
        counts = ledger.counts
        complete = sum(ledger.calls.values())
        by_group = ", ".join(f"{name} {count:,}" for name, count in sorted(ledger.calls.items()))
        lines = [
            "| | |",
            "| --- | ---: |",
            f"| daemons | {self.size} |",
            f"| seconds | {self.seconds:.0f} |",
            f"| faults | {sum(self.counts.values()):,} |",
            f"| bytes and connections that these spoilt | {self.harmed:,} |",
            f"| calls complete on all ranks ({by_group}) | {complete:,} |",
            f"| messages received, every byte checked | {sum(ledger.messages.values()):,} |",
            f"| parts that splits made | {sum(ledger.splits.values()):,} |",
            f"| calls complete on all ranks of these | {sum(ledger.parts.values()):,} |",
            f"| results checked, every value | {counts['ok']:,} |",
            f"| bytes of them | {ledger.nbytes / 1e9:.1f} GB |",
            f"| calls ended by GroupLost | {counts['lost']:,} |",
            *_notices("GroupLost, from a program's end on", ledger.judge.group_lost),
            f"| calls ended by PeerLost | {counts['peer']:,} |",
            *_notices("PeerLost, from the loss on", ledger.judge.peer_lost),
            f"| calls ended by DeadlineExceeded | {counts['late']:,} |",
            *_notices("DeadlineExceeded, from the deadline on", ledger.judge.overdue),
            *(f"| interrupts that struck: {w} | {n:,} |" for w, n in sorted(ledger.struck.items())),
            f"| signal handlers that used a ring amid a call | {counts['touched']:,} |",
            f"| bursts of {BURST:,} calls before the first wait | {self._bursts():,} |",
            *(f"| split, excused: {why} | {ledger.excuses[why]:,} |" for why in REASONS),
        ]
        names = {"split outcomes": "split outcomes, unexcused"}
        lines += [f"| **{names.get(what, what)}** | **{counts[what]}** |" for what in MUST_BE_ZERO]
        return lines

    def _bursts(self) -> int:
        """Return how many all programs of a group have begun."""
        ledger = self.ledger
        return sum(n // ledger.groups[group].layout.size for group, n in ledger.bursts.items())

    def _failed(self) -> list[str]:
        """Return which checks failed, and how."""
        ledger = self.ledger
        kinds = Counter(violation.partition(":")[0] for violation in ledger.violations)
        failed = ", ".join(f"{kind} ({n})" for kind, n in sorted(kinds.items()))
        lines = [f"**Failed checks:** {failed or 'none'}"]
        lines += [f"* {' '.join(violation.split())}" for violation in ledger.violations[:SHOWN]]
        if len(ledger.violations) > SHOWN:
            lines.append(f"* and {len(ledger.violations) - SHOWN} more")
        return lines

    def _faults(self) -> list[str]:
        lines = [
            _ADDED,
            "",
            "| fault | count | alone | p50 | p95 | max | from its end, p50 | p95 | max |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for kind in sorted(set(self.counts) | set(self.recovered)):
            added, recovered = self.added.get(kind, []), self.recovered.get(kind, [])
            columns = " | ".join(f"{_spread(added)} / {_spread(recovered)}".split(" / "))
            count = f"{self.counts[kind]:,}" if kind in self.counts else ""
            lines.append(f"| {kind} | {count} | {len(recovered)} | {columns} |")
        return lines

    def _flat(self) -> list[str]:
        if not self.after:
            return ["What the daemons hold was not measured: the run ended before."]
        lines = [
            _HELD.format(survived=self.survived),
            "",
            "| daemon | open files | memory (MiB) | shared memory (MiB) |",
            "| --- | ---: | ---: | ---: |",
        ]
        for rank, (old, new) in enumerate(zip(self.before, self.after, strict=False)):
            lines.append(
                f"| n{rank} | {old.files} to {new.files} "
                f"| {old.memory / 2**20:.1f} to {new.memory / 2**20:.1f} "
                f"| {old.shared / 2**20:.1f} to {new.shared / 2**20:.1f} |"
            )
        return lines


def _notices(what: str, notices: Notices) -> list[str]:
    """Return the lines on how long programs waited for an error, and the machine's part in it."""
    lines = []
    for calm, where in ((False, "all"), (True, "where nothing else happened")):
        for waited, whose in ((True, "who waited already"), (False, "who began to wait later")):
            those = notices.those(calm=calm, waited=waited)
            if not those and not (calm and waited):
                continue
            seconds = _spread([notice.seconds for notice in those])
            lines.append(f"| {what}, {where}, {whose} ({len(those)}), {_SPREAD} | {seconds} |")
            noise = _spread([notice.noise for notice in those])
            lines.append(f"| ... by which a mere wake-up there was late meanwhile | {noise} |")
            buried = [notice.buried for notice in those if math.isfinite(notice.buried)]
            if buried:
                ends = _spread(buried)
                lines.append(f"| ... until a killed program's files were seen closed | {ends} |")
    return lines


def _spread(seconds: Sequence[float]) -> str:
    """Return median, 95th percentile and maximum, as "a / b / c"."""
    if not seconds:
        return "- / - / -"
    ranked = sorted(seconds)
    return " / ".join(
        f"{ranked[min(len(ranked) - 1, int(share * len(ranked)))]:.2f} s"
        for share in (0.5, 0.95, 1)
    )
