"""When a provider may be asked again: open, paused (wait) or stopped (probed slowly). Pure; the clock is passed in.

Wait: all requests pause, `retry_after` is honoured, else the pause doubles with jitter; requests in flight halve.
Stop: one probe at a time, after 1, 2, 4 … at most 60 s; any answer that is not another stop heals it.
"""

from __future__ import annotations

from dataclasses import dataclass

from walvec.contracts.errors import ProviderStop, ProviderWait


@dataclass(frozen=True, slots=True)
class Backoff:
    first: float = 0.5
    longest: float = 60.0
    first_probe: float = 1.0


@dataclass(slots=True)
class Pace:
    backoff: Backoff
    max_in_flight: int
    stopped: str | None = None
    _until: float = 0.0
    _paused_at: float = -1.0
    _failures: int = 0
    _window: float = 0.0

    def __post_init__(self) -> None:
        self._window = float(self.max_in_flight)

    def window(self, now: float) -> int:
        """How many requests may be in flight now."""
        if now < self._until:
            return 0
        return 1 if self.stopped is not None else max(1, int(self._window))

    def opens_in(self, now: float) -> float | None:
        """Seconds until the next attempt is allowed; None when it is allowed now."""
        return self._until - now if now < self._until else None

    def answered(self) -> bool:
        """The provider works. True when that heals a stop."""
        healed = self.stopped is not None
        self.stopped = None
        self._failures = 0
        self._until = 0.0 if healed else self._until
        self._window = min(float(self.max_in_flight), self._window + 0.5)
        return healed

    def wait(self, error: ProviderWait, *, sent: float, now: float, jitter: float) -> None:
        """`jitter` in 0…1. Requests that were in flight together count as one failure."""
        if sent >= self._paused_at:
            self._failures += 1
            self._paused_at = now
            self._window = max(1.0, self._window / 2)
        if error.retry_after is not None:
            delay = error.retry_after * (1 + 0.05 * jitter)
        else:
            delay = min(self.backoff.longest, self.backoff.first * 2.0 ** min(self._failures - 1, 20))
            delay *= 0.5 + 0.5 * jitter
        self._until = max(self._until, now + delay)

    def stop(self, error: ProviderStop, *, now: float) -> bool:
        """True when it was not stopped with this reason before."""
        first = self.stopped is None
        news = self.stopped != str(error)
        self.stopped = str(error)
        self._failures = 1 if first else self._failures + 1
        delay = min(self.backoff.longest, self.backoff.first_probe * 2.0 ** min(self._failures - 1, 20))
        self._until = max(self._until, now + delay) if first else now + delay
        return news

    def reset(self, max_in_flight: int) -> None:
        """Another definition of the provider: everything learned about it is void."""
        self.max_in_flight = max_in_flight
        self._window = float(max_in_flight)
        self.stopped, self._until, self._paused_at, self._failures = None, 0.0, -1.0, 0
