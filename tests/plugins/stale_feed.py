"""A control database whose feed is behind for one role: the definitions have changed, the role does not know it yet."""

from __future__ import annotations

import asyncio
from typing import Any

from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Snapshot


class StaleFeed:
    """Stands still until `bring`."""

    def __init__(self, control: MemoryControl) -> None:
        self._real = control.feed
        self.current = control.feed.current
        self._brought = asyncio.Event()

    async def changed(self, since: int) -> Snapshot:
        if self.current.version <= since:
            await self._brought.wait()
            self.current = await self._real.changed(since)
        return self.current

    def bring(self) -> None:
        self.current = self._real.current
        self._brought.set()


class StaleControl:
    """The same database, seen through a stale feed. `asked`: how often the definitions themselves were read."""

    def __init__(self, control: MemoryControl) -> None:
        self._control = control
        self.feed = StaleFeed(control)
        self.asked = 0

    @property
    def definitions(self) -> Any:
        self.asked += 1
        return self._control.definitions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)
