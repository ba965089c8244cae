"""The metrics: what the table says, as Prometheus reads it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import tomli
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from ringd import errors
from ringd.collective.kinds import KINDS
from ringd.metrics import exposition, table
from ringd.metrics.exposition import Exposition
from ringd.metrics.reading import LinkReading, Reading
from ringd.net.link import Cause
from ringd.observe.counters import (
    BYTES,
    FOR_NO_CALL,
    SECONDS,
    UNKNOWN_KIND,
    Calls,
    Counters,
)
from ringd.wire.link.hello import Code

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"


def reading(counters=None, **changed):
    """Return one of a member of three, with its right neighbour alone."""
    values = {
        "version": "1",
        "ring": "home",
        "node": "b",
        "rank": 1,
        "started": 1.5e9,
        "cpu_seconds": 2.0,
        "state": "forming",
        "generation": 7,
        "incarnation": 3,
        "members": {"self": 1, "up": 1, "down": 1},
        "links": {
            "left": LinkReading("a", up=False),
            "right": LinkReading("c", up=True, round_trip=0.001, bytes_in=10, bytes_out=20),
        },
        "programs": 2,
        "shared_memory": 4096,
        "waiting_calls": 1,
        "running_calls": 0,
        "oldest_call": 5.0,
        "open_files": 30,
        "open_files_limit": 1024,
        "disk_write": 0.01,
        "lost_log_lines": 0,
        "counters": counters or Counters(),
    }
    return Reading(**{**values, **changed})


def samples(text):
    """Return the values in *text*, by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def shown(of):
    """Return the values that are shown of a reading."""
    return samples(Exposition(lambda: of, lambda: 0.0).text())


def test_the_page_shows_the_table():
    """Word for word."""
    text = PAGE.read_text()
    assert table.as_markdown() in text


def test_the_pages_first_lines(place):
    """What is typed first does to the sample what it says."""
    [line] = re.findall(r"sed -i '(.+)' /etc/ringd/ringd.toml", PAGE.read_text())
    path = place / "ringd.toml"
    path.write_text((ROOT / "etc" / "ringd.toml").read_text())
    subprocess.run(["sed", "-i.old", line, path], check=True)
    assert tomli.loads(path.read_text())["metrics"] == {"listen": "127.0.0.1:5690"}


def test_the_page_names_the_alerts():
    """All, and no others."""
    page = re.findall(r"^\| `(Ringd\w+)` \|", PAGE.read_text(), re.MULTILINE)
    alerts = (ROOT / "packaging" / "grafana" / "alerts.yml").read_text()
    assert page == re.findall(r"- alert: (\w+)", alerts)


def test_names_and_units_are_prometheus_own():
    """What only rises ends in _total, and nothing else does; the names are all different."""
    for metric in table.METRICS:
        assert re.fullmatch(r"ringd(_[a-z]+)+", metric.full_name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help.endswith(".")
    assert len({metric.name for metric in table.METRICS}) == len(table.METRICS)


def test_every_metric_is_there_from_the_start():
    """Those by kind once there was a call of that kind; all others with a first value."""
    counters = Counters()
    counters.calls["all_reduce"].completed(0.1, 8)
    names = {re.sub("_(bucket|count|sum)$", "", name) for name, *_ in shown(reading(counters))}
    assert names == {metric.full_name for metric in table.METRICS}


def test_values():
    """Gauges are as they were read; what links have carried includes those that have ended."""
    counters = Counters()
    counters.bytes_in["right"] = 5
    counters.links_lost["right", "silent"] = 2
    values = shown(reading(counters))
    right = (("peer", "c"), ("side", "right"))
    assert values[("ringd_link_received_bytes_total", *right)] == 15
    assert values["ringd_link_up", ("peer", "a"), ("side", "left")] == 0
    assert ("ringd_link_round_trip_seconds", ("peer", "a"), ("side", "left")) not in values
    assert values["ringd_ring_state", ("state", "forming")] == 1
    assert values["ringd_ring_state", ("state", "ready")] == 0
    lost = {
        labels[0][1]: value
        for (name, *labels), value in values.items()
        if name == "ringd_links_lost_total" and labels[1] == ("side", "right")
    }
    assert lost == {**dict.fromkeys(table.LOSSES, 0), "silent": 2}
    assert not any("kind" in dict(labels) for _, *labels in values)


def test_a_histogram_is_cumulative_and_its_bounds_belong_to_what_is_below():
    """As Prometheus has it: "le" is "less or equal"."""
    counters = Counters()
    calls = counters.calls["barrier"]
    for nbytes in (0, 64, 65, 1 << 40):
        calls.completed(0.002, nbytes)
    values = shown(reading(counters))
    kind = ("kind", "barrier")
    assert values["ringd_call_bytes_bucket", kind, ("le", "64.0")] == 2
    assert values["ringd_call_bytes_bucket", kind, ("le", "256.0")] == 3
    assert values["ringd_call_bytes_bucket", kind, ("le", floatToGoString(BYTES[-1]))] == 3
    assert values["ringd_call_bytes_bucket", kind, ("le", "+Inf")] == 4
    assert values["ringd_call_bytes_count", kind] == 4
    assert values["ringd_call_bytes_sum", kind] == 129 + (1 << 40)
    assert values["ringd_call_seconds_sum", kind] == pytest.approx(0.008)
    assert values["ringd_calls_total", kind, ("result", "mismatch")] == 0


def test_what_programs_make_up_makes_no_metrics():
    """A kind that there is not is counted among the unknown, whatever it is called."""
    counters = Counters()
    for number in range(100):
        counters.calls[f"kind {number}"].errors["refused"] += 1
    assert set(counters.calls) == {*KINDS, UNKNOWN_KIND}
    values = shown(reading(counters))
    assert values["ringd_calls_total", ("kind", UNKNOWN_KIND), ("result", "refused")] == 100
    assert counters.results() == {"refused": 100}


def test_the_words_are_all_that_there_are():
    """Of what is known before it happens for the first time."""
    assert set(table.ENDS) == set(get_args(Cause))
    codes = {error.code for error in vars(errors).values() if hasattr(error, "code")}
    assert set(table.RESULTS) - {"ok"} <= codes
    groups = "".join(path.read_text() for path in (ROOT / "ringd" / "groups").glob("*.py"))
    reasons = re.findall(r'Dropped\("(.+?)"\)|return "(of an? .+?)"', groups)
    assert set(table.DROPPED_MESSAGES) == {one or other for one, other in reasons}
    neighbours = (ROOT / "ringd" / "ring" / "neighbours.py").read_text()
    frames = set(re.findall(r'dropped_frames\["(.+?)"\]', neighbours))
    assert set(table.DROPPED_FRAMES) == {*frames, FOR_NO_CALL}
    assert set(table.REFUSALS) == {code.name.lower() for code in Code} | {
        "silent",
        "closed",
        "crowded",
    }


def test_a_text_is_used_again_for_a_moment():
    """Whoever asks a thousand times a second has it made four times."""
    clock, made = [0.0], []

    def take():
        made.append(clock[0])
        return reading()

    exposed = Exposition(take, lambda: clock[0])
    for step in range(1000):
        clock[0] = step / 1000
        exposed.text()
    assert made == [0.0, 0.25, 0.5, 0.75]
    assert exposition.FRESH == 0.25


def test_calls_are_counted():
    """Each once: one that completed by its seconds, another by its error."""
    calls = Calls()
    calls.errors["mismatch"] += 2
    for number in range(5):
        calls.completed(SECONDS[number], BYTES[number] + 1)
    assert calls.seconds.counts[:6] == [1, 1, 1, 1, 1, 0]
    assert calls.nbytes.counts[:7] == [0, 1, 1, 1, 1, 1, 0]
    assert calls.seconds.total == pytest.approx(sum(SECONDS[:5]))
    assert calls.results == {"ok": 5, "mismatch": 2}
    assert Calls().results == {}
