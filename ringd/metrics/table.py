"""The table of metrics: name, type, meaning and labels of each, and where its values are read.

docs/metrics.md shows it. Names and units follow Prometheus' rules: seconds and bytes, and
``_total`` for what only rises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Union

from ringd.collective.view import Side
from ringd.metrics.reading import LinkReading, Reading
from ringd.observe.counters import FOR_NO_CALL, Counters, Histogram

PREFIX = "ringd_"

Value = Union[float, Histogram]
Samples = Iterable[tuple[tuple[str, ...], Value]]
"""Values of the labels, and the metric's."""

STATES = ("forming", "ready", "draining")
MEMBER_STATES = ("self", "up", "down", "unknown")
RESULTS = (
    "ok",
    "deadline_exceeded",
    "error",
    "group_lost",
    "mismatch",
    "peer_lost",
    "refused",
    "resource_exhausted",
)
"""How calls end as a rule. Like the other words here it stands in the metrics before the first one
ends so: Prometheus sees no rise in what is new."""

LOSSES = ("silent", "broken", "closed", "goodbye", "protocol")
ENDS = (*LOSSES, "replaced", "dropped")
DROPPED_FRAMES = ("of another generation", "chunk while the ring is broken", FOR_NO_CALL)
DROPPED_MESSAGES = (
    "of a session unknown here",
    "of a rank that is none of the others in its session",
    "submitted twice",
    "a channel that cannot be",
    "a session that cannot be",
    "of a call beyond the window",
    "more programs of one member than are kept",
)
REFUSALS = (
    *("protocol", "version", "ring", "roster", "target", "neighbour", "settings", "key"),
    *("namesake", "silent", "closed", "crowded"),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table."""

    type: Literal["gauge", "counter", "histogram"]
    name: str
    """Without the prefix."""
    help: str
    read: Callable[[Reading], Samples]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.name


def _one(read: Callable[[Reading], float]) -> Callable[[Reading], Samples]:
    return lambda reading: [((), read(reading))]


def _by_reason(
    pick: Callable[[Counters], Mapping[str, int]], *known: str
) -> Callable[[Reading], Samples]:
    nothing = dict.fromkeys(known, 0)
    return lambda reading: [
        ((reason,), n) for reason, n in {**nothing, **pick(reading.counters)}.items()
    ]


def _by_end(
    pick: Callable[[Counters], Mapping[tuple[Side, str], int]], *known: str
) -> Callable[[Reading], Samples]:
    """Return how to read what is counted by side and reason."""

    def read(reading: Reading) -> Samples:
        nothing = {(side, reason): 0 for side in reading.links for reason in known}
        return {**nothing, **pick(reading.counters)}.items()

    return read


def _of_links(
    read: Callable[[Side, LinkReading, Counters], float | None],
) -> Callable[..., Samples]:
    def samples(reading: Reading) -> Samples:
        for side, link in reading.links.items():
            value = read(side, link, reading.counters)
            if value is not None:
                yield (side, link.peer), value

    return samples


def _calls(reading: Reading) -> Samples:
    for kind, calls in reading.counters.calls.items():
        if results := calls.results:
            for result in dict.fromkeys((*RESULTS, *results)):
                yield (kind, result), results[result]


def _seconds(reading: Reading) -> Samples:
    for kind, calls in reading.counters.calls.items():
        if calls.results:
            yield (kind,), calls.seconds


def _bytes(reading: Reading) -> Samples:
    for kind, calls in reading.counters.calls.items():
        if calls.results:
            yield (kind,), calls.nbytes


_SIDE = ("side", "peer")

METRICS = (
    Metric(
        "gauge",
        "info",
        "The daemon: always 1.",
        lambda reading: [((reading.ring, reading.node, str(reading.rank), reading.version), 1.0)],
        ("ring", "node", "rank", "version"),
    ),
    Metric(
        "gauge",
        "start_time_seconds",
        "When the daemon started, in seconds since 1970.",
        _one(lambda reading: reading.started),
    ),
    Metric(
        "counter",
        "cpu_seconds_total",
        "Processor time of the daemon.",
        _one(lambda reading: reading.cpu_seconds),
    ),
    Metric(
        "gauge",
        "ring_state",
        "1 for the state that the member is in, 0 for the others.",
        lambda reading: [((state,), float(state == reading.state)) for state in STATES],
        ("state",),
    ),
    Metric(
        "gauge",
        "ring_generation",
        "The life of the ring: rises whenever it forms.",
        _one(lambda reading: reading.generation),
    ),
    Metric(
        "gauge",
        "incarnation",
        "The life of the member's daemon: rises whenever it starts.",
        _one(lambda reading: reading.incarnation),
    ),
    Metric(
        "counter",
        "rings_formed_total",
        "Rings that formed with this member.",
        _one(lambda reading: reading.counters.rings),
    ),
    Metric(
        "gauge",
        "members",
        "Members of the ring by what is known of them here.",
        lambda reading: [
            ((state,), float(reading.members.get(state, 0))) for state in MEMBER_STATES
        ],
        ("state",),
    ),
    Metric(
        "gauge",
        "link_up",
        "1 where there is a link to that neighbour, else 0.",
        _of_links(lambda _side, link, _counters: float(link.up)),
        _SIDE,
    ),
    Metric(
        "gauge",
        "link_round_trip_seconds",
        "There and back over the link, at the last heartbeat.",
        _of_links(lambda _side, link, _counters: link.round_trip),
        _SIDE,
    ),
    Metric(
        "counter",
        "link_received_bytes_total",
        "Received from that neighbour, over all links so far.",
        _of_links(lambda side, link, counters: counters.bytes_in[side] + link.bytes_in),
        _SIDE,
    ),
    Metric(
        "counter",
        "link_sent_bytes_total",
        "Sent to that neighbour, over all links so far.",
        _of_links(lambda side, link, counters: counters.bytes_out[side] + link.bytes_out),
        _SIDE,
    ),
    Metric(
        "counter",
        "links_lost_total",
        "Links that were lost, by why.",
        _by_end(lambda counters: counters.links_lost, *LOSSES),
        ("side", "reason"),
    ),
    Metric(
        "counter",
        "link_reconnects_total",
        "Links that were made anew, by why the one before had ended.",
        _by_end(lambda counters: counters.reconnects, *ENDS),
        ("side", "reason"),
    ),
    Metric(
        "counter",
        "calls_total",
        "Calls of programs here that have ended, by how.",
        _calls,
        ("kind", "result"),
    ),
    Metric(
        "histogram",
        "call_seconds",
        "Calls that completed, by the time from when the daemon had them.",
        _seconds,
        ("kind",),
    ),
    Metric(
        "histogram",
        "call_bytes",
        "Calls that completed, by the bytes of the input or of the result, whichever has more.",
        _bytes,
        ("kind",),
    ),
    Metric(
        "gauge",
        "open_calls",
        'Calls of programs here without an outcome: "waiting", as not all ranks have made them, '
        'or "running".',
        lambda reading: [
            (("waiting",), float(reading.waiting_calls)),
            (("running",), float(reading.running_calls)),
        ],
        ("phase",),
    ),
    Metric(
        "gauge",
        "oldest_open_call_age_seconds",
        "For how long the oldest of these has been open; 0 without one.",
        _one(lambda reading: reading.oldest_call),
    ),
    Metric(
        "gauge",
        "programs",
        "Programs that are connected.",
        _one(lambda reading: reading.programs),
    ),
    Metric(
        "gauge",
        "shared_memory_bytes",
        "Memory of programs that the daemon has mapped.",
        _one(lambda reading: reading.shared_memory),
    ),
    Metric(
        "counter",
        "refused_connections_total",
        "Connections of other machines that were turned away, by why.",
        _by_reason(lambda counters: counters.refused_connections, *REFUSALS),
        ("reason",),
    ),
    Metric(
        "counter",
        "refused_programs_total",
        "Connections of programs and commands here that were turned away, by which limit.",
        _by_reason(
            lambda counters: counters.refused_programs, "open files", "programs", "protocol"
        ),
        ("reason",),
    ),
    Metric(
        "counter",
        "refused_requests_total",
        "Connections for metrics or probes that were hung up on, by why.",
        _by_reason(lambda counters: counters.refused_requests, "crowded", "slow"),
        ("reason",),
    ),
    Metric(
        "counter",
        "dropped_frames_total",
        "Frames of other members that were of no use, by why.",
        _by_reason(lambda counters: counters.dropped_frames, *DROPPED_FRAMES),
        ("reason",),
    ),
    Metric(
        "counter",
        "dropped_messages_total",
        "Messages between programs' groups that were of no use, by why.",
        _by_reason(lambda counters: counters.dropped_messages, *DROPPED_MESSAGES),
        ("reason",),
    ),
    Metric(
        "counter",
        "denied_messages_total",
        "Messages of programs that could not be used.",
        _one(lambda reading: reading.counters.denied_messages),
    ),
    Metric(
        "counter",
        "dropped_replies_total",
        "Messages to programs that could not be delivered.",
        _one(lambda reading: reading.counters.dropped_replies),
    ),
    Metric(
        "gauge",
        "open_files",
        "Open files of the daemon.",
        _one(lambda reading: reading.open_files),
    ),
    Metric(
        "gauge",
        "open_files_limit",
        "How many it may have.",
        _one(lambda reading: reading.open_files_limit),
    ),
    Metric(
        "gauge",
        "state_write_seconds",
        "For how long the state file is being written; else how long that took the last time.",
        _one(lambda reading: reading.disk_write),
    ),
    Metric(
        "counter",
        "lost_log_lines_total",
        "Lines of the log that nobody took.",
        _one(lambda reading: reading.lost_log_lines),
    ),
)
"""All of them."""


def as_markdown() -> str:
    """Return the table for the documentation."""
    lines = ["| metric | type | labels | |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = " ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.full_name}` | {metric.type} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"
