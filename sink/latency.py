"""Commit-to-store latencies -> percentiles of the last minute. Pure: the caller brings the clock. Next: `worker.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_WINDOW_SECONDS = 60.0
_MOST = 5000


class Latencies:
    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, now: float, milliseconds: Sequence[float]) -> None:
        """A large batch adds an even choice of its records: one burst must not push a minute out."""
        step = max(1, len(milliseconds) // 200)
        self._samples.extend((now, ms) for ms in milliseconds[::step])

    def percentiles(self, now: float, *shares: float) -> list[float | None]:
        while self._samples and self._samples[0][0] < now - _WINDOW_SECONDS:
            self._samples.popleft()
        values = sorted(ms for _, ms in self._samples)
        if not values:
            return [None] * len(shares)
        return [values[min(len(values) - 1, int(share * len(values)))] for share in shares]
