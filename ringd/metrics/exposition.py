"""The metrics as text, by Prometheus' own library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ringd.metrics.reading import Reading
from ringd.metrics.table import METRICS, Metric
from ringd.observe.counters import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FRESH = 0.25
"""Seconds for which a text is used again: whoever asks often costs the ring no more for that."""


class Exposition(Collector):
    """Gives the metrics as they are now.

    Args:
        take: Reads them.
        now: The time, in seconds.
    """

    def __init__(self, take: Callable[[], Reading], now: Callable[[], float]) -> None:
        self._take = take
        self._now = now
        self._text = b""
        self._made: float | None = None

    def collect(self) -> Iterator[Family]:
        """Yield all metrics with their values."""
        reading = self._take()
        for metric in METRICS:
            yield _family(metric, reading)

    def text(self) -> bytes:
        """Return them in Prometheus' text format, at most :data:`FRESH` seconds old."""
        now = self._now()
        if self._made is None or now - self._made >= FRESH:
            self._text, self._made = generate_latest(self), now
        return self._text


def _family(metric: Metric, reading: Reading) -> Family:
    if metric.type == "histogram":
        histogram = HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels)
        for labels, value in metric.read(reading):
            assert isinstance(value, Histogram)  # noqa: S101 - the table's promise
            histogram.add_metric(labels, _buckets(value), value.total)
        return histogram
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    family = kind(metric.full_name, metric.help, labels=metric.labels)
    for labels, value in metric.read(reading):
        assert not isinstance(value, Histogram)  # noqa: S101 - likewise
        family.add_metric(labels, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return how many values there are up to each bound, the last of which is infinite."""
    bounds = (*histogram.bounds, float("inf"))
    return list(zip(map(floatToGoString, bounds), accumulate(histogram.counts), strict=True))
