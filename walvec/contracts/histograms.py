"""Counts of values by size, as plain data: what a Prometheus histogram is made of. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Latencies, from a millisecond to ten minutes."""
NUMBERS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)
"""Sizes of batches and requests."""


@dataclass(slots=True)
class Histogram:
    """`counts[i]`: values in (bounds[i - 1], bounds[i]]; the last one those above all bounds. `total`: their sum."""

    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Sequence[float], *, unit: float = 1.0) -> None:
        """A batch at once, each value times `unit`."""
        found = np.asarray(values, dtype=np.float64) * unit
        places = np.bincount(np.searchsorted(self.bounds, found), minlength=len(self.counts))
        for place in np.flatnonzero(places):
            self.counts[place] += int(places[place])
        self.total += float(found.sum())

    @property
    def count(self) -> int:
        return sum(self.counts)
