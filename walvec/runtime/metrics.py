"""Samples of plain counts -> what Prometheus reads.

Law: the only module that knows prometheus_client. Nothing is kept here: a role's sources are asked at each scrape, so
nothing is paid for while nobody scrapes, and the series of a deleted vector table end with it.
Next: `walvec.runtime.endpoint` serves it.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from walvec import __version__
from walvec.contracts.histograms import Histogram
from walvec.runtime import measures
from walvec.runtime.measures import Metric, Sample


class Metrics:
    """One role's."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._sources: list[Callable[[], Iterable[Sample]]] = []
        self._looks: list[Callable[[], Awaitable[None]]] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Exposition(self))
        ProcessCollector(registry=self._registry)

    @contextmanager
    def source(
        self, samples: Callable[[], Iterable[Sample]], look: Callable[[], Awaitable[None]] | None = None
    ) -> Iterator[None]:
        """Asks `samples` at each scrape as long as the block lasts; `look` is awaited before."""
        looks = [look] if look is not None else []
        self._sources.append(samples)
        self._looks += looks
        try:
            yield
        finally:
            self._sources.remove(samples)
            for each in looks:
                self._looks.remove(each)

    async def look(self) -> None:
        await asyncio.gather(*(look() for look in self._looks))

    def samples(self) -> Iterator[Sample]:
        yield measures.BUILD_INFO.of(1, self.role, __version__, platform.python_version())
        for source in list(self._sources):
            yield from source()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Body and content type, in the format that the scraper asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Exposition(Collector):
    """Samples by name, also the names that have none now."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Family]:
        found: dict[Metric, list[Sample]] = {m: [] for m in measures.ALL if self._metrics.role in m.roles}
        for sample in self._metrics.samples():
            found[sample.metric].append(sample)
        return [_family(metric, samples) for metric, samples in found.items()]


def _family(metric: Metric, samples: Sequence[Sample]) -> Family:
    labels = list(metric.labels)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for _, value, given in samples:
            assert isinstance(value, Histogram)
            histogram.add_metric(list(given), buckets=_buckets(value), sum_value=value.total)
        return histogram
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=labels)
    for _, value, given in samples:
        assert not isinstance(value, Histogram)
        family.add_metric(list(given), value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    below, out = 0, []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        out.append((bound, float(below)))
    return out
