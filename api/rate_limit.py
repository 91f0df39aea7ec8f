"""So many requests of an organization in a sliding window, over all API processes.

`limits` decides; its storage here is the control database, asked for permits in blocks: most requests cost no round
trip, and what is granted was counted before, so all processes together never admit more. Without the control database
each process counts alone, against the whole limit: an outage of the counter locks nobody out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from limits import RateLimitItem, parse
from limits.aio.storage import Storage
from limits.aio.storage.base import SlidingWindowCounterSupport
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from walvec.contracts.errors import WalvecError
from walvec.definitions.permits import Lease, MemoryPermits, weighed
from walvec.definitions.ports import Permits

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 1.0
_ALONE_SECONDS = 2.0
_BLOCKS_PER_WINDOW = 200
_LARGEST_BLOCK = 1000


@dataclass(slots=True)
class _Known:
    """What one process knows of one subject. `until`: when its window ends, by its own clock; `left`: permits that it
    may still give away until then; `nothing_before`: there was none, and there can be none before."""

    lease: Lease = field(default_factory=lambda: Lease(0, 0, 0, 0.0))
    seen: float = 0.0
    until: float = 0.0
    left: int = 0
    nothing_before: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class LeasedPermits(Storage, SlidingWindowCounterSupport):
    """The port of `limits`, on blocks of permits."""

    STORAGE_SCHEME = None

    def __init__(self, permits: Permits, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._permits = permits
        self._alone: Permits = MemoryPermits()
        self._alone_until = 0.0
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        known = self._known.setdefault(key, _Known())
        if not self._has(known, amount) and self._clock() >= known.nothing_before:
            async with known.asking:
                if not self._has(known, amount) and self._clock() >= known.nothing_before:
                    await self._lease(known, key, limit, expiry, amount)
                    if known.left >= amount:  # counted in the window that granted it, which may have ended on the way
                        known.left -= amount
                        return True
        if not self._has(known, amount):
            return False
        known.left -= amount
        return True

    def _has(self, known: _Known, amount: int) -> bool:
        return known.left >= amount and self._clock() < known.until

    async def _lease(self, known: _Known, key: str, limit: int, seconds: int, amount: int) -> None:
        block = max(amount, min(limit // _BLOCKS_PER_WINDOW, _LARGEST_BLOCK))
        began = self._clock()  # before it is asked: our window never ends after the database's
        lease = await self._ask(key, limit, seconds, block)
        kept = known.left if began < known.until else 0
        known.lease, known.seen = lease, began
        known.until = began + seconds - lease.elapsed
        known.left = kept + lease.granted
        known.nothing_before = 0.0 if known.left >= amount else began + wait(lease, limit, seconds)

    async def _ask(self, key: str, limit: int, seconds: int, wanted: int) -> Lease:
        if self._clock() >= self._alone_until:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    return await self._permits.lease(key, limit, seconds, wanted)
            except (WalvecError, TimeoutError):
                self._alone_until = self._clock() + _ALONE_SECONDS
                logger.warning("requests cannot be counted together", extra={"action": "rate_limit_alone"})
        return await self._alone.lease(key, limit, seconds, wanted)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """As last told by the database, less what is left of our blocks."""
        known = self._known.get(key)
        if known is None:
            return 0, 0.0, 0, float(expiry)
        now = self._clock()
        rest = known.until - now
        if rest > 0:
            return known.lease.previous, rest, known.lease.current - known.left, rest
        return (known.lease.current, rest + expiry, 0, rest + expiry) if rest > -expiry else (0, 0.0, 0, float(expiry))

    def retry_after(self, key: str) -> float:
        """Seconds until there can be a permit."""
        known = self._known.get(key)
        return max(0.0, known.nothing_before - self._clock()) if known else 0.0

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        self._known.pop(key, None)

    async def check(self) -> bool:
        return self._clock() >= self._alone_until

    async def clear(self, key: str) -> None:
        self._known.pop(key, None)

    async def reset(self) -> int | None:
        found = len(self._known)
        self._known.clear()
        return found

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return WalvecError

    # of fixed windows, which are not used
    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError

    async def get(self, key: str) -> int:
        raise NotImplementedError

    async def get_expiry(self, key: str) -> float:
        raise NotImplementedError


def wait(lease: Lease, limit: int, seconds: int) -> float:
    """Seconds until one permit more fits: others may only make it longer, nobody shorter."""
    rest = seconds - lease.elapsed
    if lease.previous and weighed(lease.previous, lease.current, seconds, seconds) + 1 <= limit:
        # the window before weighs less with time: when exactly `limit - current - 1` of it are left
        at = seconds * (1 - (limit - lease.current - 1) / lease.previous)
        return min(max(0.0, at - lease.elapsed), rest)
    # in the next window the current one is the one before
    return rest + max(0.0, seconds * (1 - (limit - 1) / lease.current)) if lease.current else rest


@dataclass(frozen=True, slots=True)
class Permit:
    """What a request is told of its organization's count. `again`: where it is refused, seconds until there can be
    one; `most`: the limit in words."""

    admitted: bool
    headers: Sequence[tuple[bytes, bytes]]
    again: float
    most: str


class Rate:
    """`rate`: as `limits` writes it, "600/minute"; "none" counts nothing."""

    def __init__(self, permits: Permits, rate: str) -> None:
        self._item: RateLimitItem | None = None if rate == "none" else parse(rate)
        self._storage = LeasedPermits(permits)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, organization: str) -> Permit | None:
        """None: nobody counts."""
        item = self._item
        if item is None:
            return None
        admitted = await self._limiter.hit(item, organization)
        stats = await self._limiter.get_window_stats(item, organization)
        again = self._storage.retry_after(item.key_for(organization))
        reset = time.time() + again if not admitted else stats.reset_time
        headers = (
            (b"x-ratelimit-limit", b"%d" % item.amount),
            (b"x-ratelimit-remaining", b"%d" % (stats.remaining if admitted else 0)),
            (b"x-ratelimit-reset", b"%d" % math.ceil(reset)),
        )
        return Permit(admitted, headers, again, f"{item.amount} requests in {item.get_expiry()} seconds")


class RateLimit:
    """Asked after the door: the count belongs to whoever was let in. The state's `permit`: it was asked before."""

    def __init__(self, app: ASGIApp, rate: Rate) -> None:
        self._app = app
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        caller = state.get("caller")
        if caller is None or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        permit = state["permit"] if "permit" in state else await self._rate.take(caller.organization.id)
        if permit is None:
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).extend(permit.headers)
            await send(message)

        if permit.admitted:
            await self._app(scope, receive, counted)
            return
        many = f"more than {permit.most}."
        await problems.known(Request(scope), "rate_limit_exceeded", many, permit.again)(scope, receive, counted)
