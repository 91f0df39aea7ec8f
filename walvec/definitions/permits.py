"""Permits of a rate limit, leased in blocks from the control database: what all API processes count together.

A window's count is the current one's plus the one before, weighed by what is left of it in the last `seconds`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from walvec.definitions.pool import Pool


@dataclass(frozen=True, slots=True)
class Lease:
    """`granted` permits, good until the window ends. `previous`, `current`: what is counted, these included;
    `elapsed`: seconds since the window began."""

    granted: int
    previous: int
    current: int
    elapsed: float


def weighed(previous: int, current: int, elapsed: float, seconds: int) -> float:
    """What counts against the limit."""
    return previous * max(0.0, 1 - elapsed / seconds) + current


class MemoryPermits:
    """Implements `ports.Permits` for one process alone: where nothing is shared, or the database is away."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counts: dict[str, tuple[int, int, int]] = {}

    async def lease(self, subject: str, limit: int, seconds: int, wanted: int) -> Lease:
        now = self._clock()
        bucket, previous, current = self._counts.get(subject, (0, 0, 0))
        newest = max(bucket, math.floor(now / seconds))
        if newest > bucket:
            previous, current = (current if newest == bucket + 1 else 0), 0
        elapsed = min(max(now - newest * seconds, 0.0), seconds)
        granted = max(0, min(wanted, math.floor(limit - weighed(previous, current, elapsed, seconds))))
        self._counts[subject] = (newest, previous, current + granted)
        return Lease(granted, previous, current + granted, elapsed)


# The time is taken after the row is locked, and a window never goes back: the clock may.
_LEASE = """
INSERT INTO walvec_control.permits AS p (subject, bucket, previous, current, granted)
SELECT %(subject)s, floor(extract(epoch FROM clock_timestamp()) / %(seconds)s)::bigint, 0, n, n
FROM (SELECT least(%(wanted)s, %(limit)s)::bigint AS n) AS first
ON CONFLICT (subject) DO UPDATE SET (bucket, previous, current, granted) = (
    SELECT w.bucket, w.previous, w.current + g.granted, g.granted
    FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS now) AS c
    CROSS JOIN LATERAL (
        SELECT greatest(p.bucket, floor(c.now / %(seconds)s)::bigint) AS bucket
    ) AS b
    CROSS JOIN LATERAL (
        SELECT b.bucket,
               CASE b.bucket WHEN p.bucket THEN p.previous WHEN p.bucket + 1 THEN p.current ELSE 0 END AS previous,
               CASE b.bucket WHEN p.bucket THEN p.current ELSE 0 END AS current,
               least(greatest(c.now - b.bucket * %(seconds)s, 0), %(seconds)s)::float8 AS elapsed
    ) AS w
    CROSS JOIN LATERAL (
        SELECT greatest(0, least(%(wanted)s::bigint,
            floor(%(limit)s - w.previous * (1 - w.elapsed / %(seconds)s) - w.current)::bigint)) AS granted
    ) AS g
)
RETURNING p.granted, p.previous, p.current,
    least(greatest(extract(epoch FROM clock_timestamp())::float8 - p.bucket * %(seconds)s, 0), %(seconds)s)::float8
"""


class ControlPermits:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def lease(self, subject: str, limit: int, seconds: int, wanted: int) -> Lease:
        given: dict[str, Any] = {"subject": subject, "limit": limit, "seconds": seconds, "wanted": wanted}
        async with self._pool.transaction() as conn:
            row = await (await conn.execute(_LEASE, given)).fetchone()
        assert row is not None
        return Lease(int(row[0]), int(row[1]), int(row[2]), float(row[3]))
