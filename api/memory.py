"""Numbers that cost something to find out, remembered for a while that fits their cost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
_COST = 20.0  # a number that took a second is good for so many seconds
_LONGEST = 30.0


@dataclass(slots=True)
class Memory:
    """The last value of each number; small tables are counted anew each time, large ones now and then."""

    _values: dict[str, tuple[Any, float]] = field(default_factory=dict)

    async def recall(self, name: str, find: Callable[[], Awaitable[T]]) -> T:
        now = time.monotonic()
        known = self._values.get(name)
        if known is not None and now < known[1]:
            found: T = known[0]
            return found
        value = await find()
        end = time.monotonic()
        took = end - now
        self._values[name] = (value, end + min(_LONGEST, took * _COST) if took > 0.02 else end)
        return value

    def last(self, name: str) -> Any:
        """None: it was never found out."""
        known = self._values.get(name)
        return known[0] if known is not None else None
