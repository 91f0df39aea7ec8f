"""Answers of requests that carry an idempotency key. Implements `ports.Answers`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import uuid4

from walvec.definitions.answers import HELD_SECONDS, KEPT_SECONDS, Begun, KeptAnswer, RequestKey


@dataclass(frozen=True, slots=True)
class _Held:
    digest: bytes
    attempt: str
    held_until: float
    created_at: float
    answer: KeptAnswer | None = None


class MemoryAnswers:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[RequestKey, _Held] = {}

    async def begin(self, key: RequestKey, request: str, digest: bytes) -> Begun:
        now = self._clock()
        found = self._kept.get(key)
        if found is not None and found.created_at < now - KEPT_SECONDS:
            found = None
        if found is not None and found.digest != digest:
            return Begun("reused")
        if found is not None and found.answer is not None:
            return Begun("done", answer=found.answer)
        if found is not None and found.held_until > now:
            return Begun("in_progress")
        made = _Held(digest, uuid4().hex, now + HELD_SECONDS, now)
        self._kept[key] = made
        return Begun("new", made.attempt)

    async def prolong(self, key: RequestKey, attempt: str) -> None:
        found = self._kept.get(key)
        if found is not None and found.attempt == attempt:
            self._kept[key] = replace(found, held_until=self._clock() + HELD_SECONDS)

    async def finish(self, key: RequestKey, attempt: str, answer: KeptAnswer) -> None:
        found = self._kept.get(key)
        if found is not None and found.attempt == attempt:
            self._kept[key] = replace(found, answer=answer)

    async def abandon(self, key: RequestKey, attempt: str) -> None:
        found = self._kept.get(key)
        if found is not None and found.attempt == attempt:
            del self._kept[key]
