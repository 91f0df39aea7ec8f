"""Percentiles of the last minute."""

from __future__ import annotations

from sink.latency import Latencies


def test_percentiles_of_the_last_minute() -> None:
    latencies = Latencies()
    assert latencies.percentiles(0, 0.5) == [None]
    latencies.add(0, [1000.0])
    latencies.add(50, [float(i) for i in range(100)])
    assert latencies.percentiles(50, 0.5, 0.99) == [50.0, 99.0]
    assert latencies.percentiles(61, 0.99) == [99.0]
    assert latencies.percentiles(111, 0.5) == [None]


def test_a_burst_is_sampled_evenly() -> None:
    latencies = Latencies()
    latencies.add(0, [1.0])
    latencies.add(1, [5.0] * 100_000)
    assert latencies.percentiles(1, 0.0) == [1.0]
