"""Waits out an outage of the log, the store, the source or the control database: a role outlives them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from walvec.contracts.errors import WalvecError

_log = logging.getLogger(__name__)
_LONGEST = 5.0
T = TypeVar("T")

waits: Counter[str] = Counter()
"""How often this process has waited for something that was away, by kind of error: what the metrics tell."""


async def persistently(
    call: Callable[[], Awaitable[T]], *errors: type[WalvecError], first: float = 0.05, action: str, table: str = ""
) -> T:
    """`call()` until it raises none of `errors`; other exceptions pass. `first`: seconds. Cancellable."""
    pause = first
    while True:
        try:
            return await call()
        except errors as e:
            waits[e.kind] += 1
            level = logging.WARNING if pause > 1 else logging.DEBUG
            _log.log(
                level,
                "waits and tries again",
                extra={"action": action, "table": table, "kind": e.kind, "reason": str(e)},
            )
        await asyncio.sleep(pause * (0.5 + random.random() / 2))
        pause = min(pause * 2, _LONGEST)
